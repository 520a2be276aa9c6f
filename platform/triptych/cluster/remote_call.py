"""Remote calls: a verb sent to the cluster with a Ray job, its result sent back in the job's output.

The call is a file in the job's working folder, not a command line: nothing needs quoting, and nothing shows in a list
of processes. Marked lines of the job's output are the result; all other lines are the verb's own log.
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

ENTRYPOINT = "python -m triptych.cli.remote_main"
FILE = "triptych-call.json"
RECIPE = "triptych-recipe.yaml"
FOLDER = "triptych-folder"
"""Name, in the working folder, of a folder that travels to the job or back."""
MARK = "::triptych:: "

MAX_BYTES = 512 * 2**20
"""Bytes of files that come back; they pass through the memory of the cluster's head."""

_CHUNK = 2**20


def recipe_format() -> str:
    """Digest of the schemas of recipe and endpoint: two installations with the same digest read both alike."""
    return storage.digest_of([Recipe.model_json_schema(), ServeConfig.model_json_schema()])[:12]


@dataclass(frozen=True)
class RemoteCall:
    """A verb for the cluster to run; without arguments, an inspection of the cluster (`cluster_facts`)."""

    arguments: tuple[str, ...] = ()
    width: int = 100
    """Columns of the terminal that shows the verb's tables."""
    run: str | None = None
    """URL of the run whose registry the verb uses if no other is named."""
    path: str | None = None
    """Folder that an inspection looks for on every node."""
    brings: bool = False
    """The verb prints the URL of a file, and that file comes back."""


@dataclass(frozen=True)
class CallResult:
    """Exit code of the verb, its stdout, and the digests of the files that come back."""

    code: int
    stdout: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Relative path of each file that comes back -> its digest."""


def dump_call(call: RemoteCall) -> bytes:
    """Serialise a call as the content of FILE."""
    return json.dumps(asdict(call)).encode()


def read_call() -> RemoteCall:
    """Read the call from the working folder of the job."""
    content = json.loads(Path(FILE).read_bytes())
    return RemoteCall(**content | {"arguments": tuple(content["arguments"])})


def write_result(result: CallResult) -> None:
    """Print the files under FOLDER and then the result, as marked lines of the job's output.

    Files of more than MAX_BYTES in total are not sent; the result is then exit code 2.
    """
    folder = Path(FOLDER)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        sys.stderr.write(
            f"error: {size / 1e6:.0f} MB are too much to send back (allowed: {MAX_BYTES / 1e6:.0f}); name a URL\n"
        )
        _write_record(asdict(CallResult(2)))
        return
    names = {path: path.relative_to(folder).as_posix() for path in files}
    digests = {name: _write_file(path, name) for path, name in names.items()}
    _write_record(asdict(CallResult(result.code, result.stdout, digests)))


def _write_file(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            _write_record({"file": name, "part": base64.b64encode(chunk).decode()})
    return digest.hexdigest()


def _write_record(record: Mapping[str, object]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(record)}\n")  # a library may have left a line without its end
    sys.stdout.flush()


def parse_result(output: str) -> CallResult | None:
    """The result in a job's output; None if the job ended before it printed one."""
    found = [record for record in _records(output) if "code" in record]
    return CallResult(**found[-1]) if found else None


def fetch(output: str, sha256: Mapping[str, str], folder: Path) -> None:
    """Write the files that came back to a new folder.

    Args:
        output: all that the job printed.
        sha256: relative path of each file -> its digest, as in CallResult.
        folder: must not exist.

    Raises:
        RunError: a file is damaged, or its name points outside the folder.
    """
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
