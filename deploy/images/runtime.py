"""Writes out the pins of locks but those that only development needs: `runtime.py LOCK...`, from the root."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {"jsonschema"}
"""By our tests and by Ray too."""
development = {re.split(r"[^\w-]", wanted)[0] for wanted in project["optional-dependencies"]["dev"]} - NEEDED
for lock in sys.argv[1:]:
    for line in Path(lock).read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0] not in development:
            sys.stdout.write(f"{line}\n")
