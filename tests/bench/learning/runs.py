"""Runs of the comparison, which stay in one folder of the checkout."""

from pathlib import Path
from typing import Any

import yaml

from command import triptych
from training import ROOT

SCRATCH = ROOT / "build" / "bench" / "learning"
RUNS = SCRATCH / "runs"
"""Runs, and the registry that they share."""


def run(recipe: dict[str, Any]) -> Path:
    """`triptych run`; the folder of the run. One that was stopped goes on, one that has ended stays as it is."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    file = SCRATCH / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    triptych("run", str(file), "--set", f"storage.runs={RUNS}", log=file.with_suffix(".log"))
    return folder_of(recipe)


def folder_of(recipe: dict[str, Any]) -> Path:
    """Folder of a recipe's run, whether it is there or not."""
    return RUNS / str(recipe["name"])
