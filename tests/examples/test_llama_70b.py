import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = "examples/llama-70b/recipe.yaml"


@pytest.mark.slow
def test_seventy_billion_weights_are_planned_from_a_config_alone() -> None:
    """The plan, traced, and the peak of the process that made it."""
    code = (
        "import json, resource; from pathlib import Path; "
        "from triptych.measure import traced; from triptych.plan import estimate; "
        "from triptych.recipe import load_recipe; "
        f"found = estimate(load_recipe(Path({RECIPE!r}), []), exact=True, trace=traced).as_dict(); "
        "print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True, timeout=300)
    found, kibibytes = json.loads(done.stdout.splitlines()[-1])
    stage = found["stages"]["sft"]
    assert stage["strategy"] == "fsdp"
    assert len([device for device in stage["devices"] if "GPU" in device]) == 8
    weights = stage["roles"]["policy"]["parts"]["weights"]["expected"]
    assert weights * 8 / 2 == 70_553_706_496
    assert weights < stage["peak_bytes"] < min(device["capacity_bytes"] for device in stage["devices"].values())
    assert kibibytes * 1024 < 4 * 2**30
