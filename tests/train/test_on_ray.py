"""The launcher: what a worker raises reaches the driver, and what cannot be placed ends."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from triptych.errors import RunError, UserError
from triptych.recipe import Workers
from triptych.train.on_ray import launch

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def _write_threads(config: dict[str, Any]) -> None:
    Path(config["out"]).write_text(str(torch.get_num_threads()))


def _fail(config: dict[str, Any]) -> None:
    raise UserError(config["message"])


@pytest.mark.usefixtures("ray_cluster")
def test_launch(tmp_path: Path) -> None:
    out = tmp_path / "threads"
    launch("a", _write_threads, {"out": str(out)}, Workers(threads=3), str(tmp_path / "ray"))
    assert out.read_text() == "3"

    with pytest.raises(UserError, match="rows are wrong"):
        launch("b", _fail, {"message": "rows are wrong"}, Workers(max_restarts=0), str(tmp_path / "ray"))

    @ray.remote(num_cpus=2)
    class Occupant:
        def ready(self) -> None:
            """Both CPUs are taken once this answers."""

    occupant: Any = Occupant.remote()  # type: ignore[attr-defined]
    ray.get(occupant.ready.remote())
    with pytest.raises(RunError, match=r"stage c was not placed within 1 s: its workers need .*'CPU': 1.0"):
        launch("c", _write_threads, {"out": str(out)}, Workers(), str(tmp_path / "ray"), placement_timeout_s=1)
