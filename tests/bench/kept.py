"""Results that a benchmark keeps: cells in one file, which grows run by run, and the code that they are of."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All cells of a file; none where there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one cell a line. The file is whole at every moment."""
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    staging = path.with_suffix(".tmp")
    staging.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    staging.replace(path)


def code_version() -> str:
    """Commit of the checkout, `+` where files differ from it; empty where there is none."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "platform") else "")
    return ""


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=os.environ)
    return done.stdout.strip()
