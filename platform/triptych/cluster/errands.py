"""What a laptop asks of a job on the cluster, and how the answer comes back in the job's output.

The question is a file in the job's working folder and never a command line: nothing is quoted, and nothing shows in a
list of processes. Marked lines of the output are the answer; all others are the verb's own log.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from triptych import storage
from triptych.errors import RunError
from triptych.recipe import Recipe
from triptych.recipe.serve import ServeConfig

ENTRYPOINT = "python -m triptych.cli.errand"
FILE = "triptych-errand.json"
RECIPE = "triptych-recipe.yaml"
FOLDER = "triptych-folder"
"""Name, in the working folder, of a folder that travels to the job or back."""
MARK = "::triptych:: "

MOST = 512 * 2**20
"""Bytes of files that come back; they pass through the memory of the cluster's head."""

_CHUNK = 2**20


def recipe_format() -> str:
    """Digest of all fields of a recipe and of an endpoint: installations that differ here read them differently."""
    return storage.digest_of([Recipe.model_json_schema(), ServeConfig.model_json_schema()])[:12]


@dataclass(frozen=True)
class Errand:
    """A verb for the cluster to run, or (without arguments) a look at the cluster."""

    arguments: tuple[str, ...] = ()
    width: int = 100
    """Of the terminal that tables are for."""
    run: str | None = None
    """URL of a run whose registry is meant where the verb names none."""
    path: str | None = None
    """A look tells which nodes do not see this folder."""
    brings: bool = False
    """The verb prints the URL of a file, and that file comes back."""


@dataclass(frozen=True)
class Answer:
    """What the verb printed to stdout, and its exit code."""

    code: int
    stdout: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Relative path of each file that comes back -> its digest."""


def ask(errand: Errand) -> bytes:
    """The errand's file."""
    return json.dumps(asdict(errand)).encode()


def asked() -> Errand:
    """On the cluster: the errand in the working folder."""
    content = json.loads(Path(FILE).read_bytes())
    return Errand(**content | {"arguments": tuple(content["arguments"])})


def tell(answer: Answer) -> None:
    """On the cluster: send the answer, and before it the files under FOLDER."""
    folder = Path(FOLDER)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(path.stat().st_size for path in files)
    if size > MOST:
        sys.stderr.write(
            f"error: {size / 1e6:.0f} MB are too much to send back (allowed: {MOST / 1e6:.0f}); name a URL\n"
        )
        _say(asdict(Answer(2)))
        return
    names = {path: path.relative_to(folder).as_posix() for path in files}
    digests = {name: _tell_file(path, name) for path, name in names.items()}
    _say(asdict(Answer(answer.code, answer.stdout, digests)))


def _tell_file(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            _say({"file": name, "part": base64.b64encode(chunk).decode()})
    return digest.hexdigest()


def _say(record: Mapping[str, object]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(record)}\n")  # a library may have left a line without its end
    sys.stdout.flush()


def heard(output: str) -> Answer | None:
    """The answer in a job's output; None where the job ended before it gave one."""
    found = [record for record in _records(output) if "code" in record]
    return Answer(**found[-1]) if found else None


def fetch(output: str, sha256: Mapping[str, str], folder: Path) -> None:
    """Write the files of an answer to a new folder. RunError where one is damaged, or would land elsewhere."""
    folder.mkdir()
    for name in sha256:
        if not _is_safe(name):
            raise RunError(f"the cluster sent a file with an unsafe name, {name!r}: nothing was written")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for record in _records(output):
        if record.get("file") in sha256:
            with (folder / record["file"]).open("ab") as file:
                file.write(base64.b64decode(record["part"], validate=True))
    for name, digest in sha256.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise RunError(f"{name} came back damaged: its sha256 differs; try again")


def _is_safe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and str(PurePosixPath(*parts)) == name and ".." not in parts and not name.startswith("/")


def _records(output: str) -> Iterator[dict[str, Any]]:
    for line in output.split("\n"):
        if line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))
