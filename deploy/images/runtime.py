"""Writes out the pins of locks but those that only development or a tracker needs: `runtime.py LOCK...`, from the root.

What a cluster needs is held: PostgreSQL's driver for the registry, and S3 for runs and adapters.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {"jsonschema", "alembic"}
"""By Ray and by Optuna too."""
extras = project["optional-dependencies"]
wanted = [*extras["dev"], *extras["mlflow"], *extras["wandb"]]
left_out = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted} - NEEDED
for lock in sys.argv[1:]:
    for line in Path(lock).read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0] not in left_out:
            sys.stdout.write(f"{line}\n")
