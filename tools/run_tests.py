"""All tests, folder by folder: a folder that passed is not run again until the code changes.

    python tools/run_tests.py [FOLDER ...] [--again]

What passed stands in build/test-all, one file for each folder, with its time. It holds for as long as all files are
what they were, but for tests of other folders. Time by folder is printed at the end. Exit code 1: some failed.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "test-all"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder")


@dataclass(frozen=True)
class Result:
    """Seconds that a folder's tests took, and whether all passed."""

    seconds: float
    passed: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if all folders passed, now or before."""
    files = versioned_files(ROOT)
    known = test_folders(files)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="such as tests/train; all of them by default")
    parser.add_argument("--again", action="store_true", help="also what passed already")
    options = parser.parse_args(arguments)
    if unknown := [folder for folder in options.folders if folder not in known]:
        parser.error(f"no tests in {', '.join(unknown)}; allowed: {', '.join(known)}")
    results = {folder: run_folder(files, folder, again=options.again) for folder in options.folders or known}
    print(table(results))
    return int(not all(result.passed for result in results.values()))


def run_folder(files: Sequence[str], folder: str, *, again: bool) -> Result:
    """A folder's result: an earlier one if the code is the same, unless `again`."""
    digest, earlier = code_digest(ROOT, files, folder), read_pass(folder)
    if earlier is not None and earlier[0] == digest and not again:
        print(f"{folder} passed already", flush=True)
        return Result(earlier[1], passed=True)
    started = time.monotonic()
    done = subprocess.run([*PYTEST, *targets(files, folder)], cwd=ROOT, check=False)
    result = Result(time.monotonic() - started, passed=done.returncode == 0)
    if result.passed:
        write_pass(folder, digest, result.seconds)
    return result


def versioned_files(root: Path) -> list[str]:
    """Files that git tracks or would, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def folder_of(name: str) -> str | None:
    """Folder that a file of tests belongs to, below `tests` once, or `tests` itself; None: it is no file of tests."""
    path = PurePosixPath(name)
    if path.parts[0] != "tests" or not path.match("test_*.py"):
        return None
    return "/".join(path.parts[:-1][:2])


def test_folders(files: Iterable[str]) -> list[str]:
    """Folders with tests."""
    return sorted({folder for name in files if (folder := folder_of(name)) is not None})


def targets(files: Iterable[str], folder: str) -> list[str]:
    """What pytest is given: a folder, or the files in `tests` itself."""
    return [folder] if folder != "tests" else [n for n in files if PurePosixPath(n).match("tests/test_*.py")]


def code_digest(root: Path, files: Iterable[str], folder: str) -> str:
    """sha256 of all that a folder's tests may depend on: everything but the tests of other folders."""
    total = hashlib.sha256()
    for name in files:
        if folder_of(name) in (folder, None):
            total.update(name.encode() + b"\0" + hashlib.sha256((root / name).read_bytes()).digest())
    return total.hexdigest()


def read_pass(folder: str) -> tuple[str, float] | None:
    """Digest and seconds of the last time that a folder passed."""
    try:
        found = json.loads(_result(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found["digest"], found["seconds"]


def write_pass(folder: str, digest: str, seconds: float) -> None:
    """Remembered for the next call."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    _result(folder).write_text(json.dumps({"digest": digest, "seconds": round(seconds, 1)}), encoding="utf-8")


def _result(folder: str) -> Path:
    return RESULTS / f"{folder.replace('/', '-')}.json"


def table(results: Mapping[str, Result]) -> str:
    """Markdown: seconds by folder, the longest first."""
    lines = ["| folder | seconds | |", "| --- | ---: | --- |"]
    for folder, result in sorted(results.items(), key=lambda row: -row[1].seconds):
        lines.append(f"| {folder} | {result.seconds:.0f} | {'' if result.passed else 'FAILED'} |")
    return "\n".join([*lines, f"| all | {sum(result.seconds for result in results.values()):.0f} | |"])


if __name__ == "__main__":
    sys.exit(main())
