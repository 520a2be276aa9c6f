"""Sums by name over ranks, of which some lack some names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triptych.train.group import Group


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    out, script = tmp_path / "out.json", Path(__file__).with_name("rank_group.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(script), str(out)], check=True, timeout=120)
    one, other = json.loads(out.read_text())
    assert one == other
    assert one["sums"] == [
        {"loss": [3.0, 4.0], "only_one": [5.0, 1.0]},
        {"loss": [10.0, 3.0]},
        {"late": [2.0, 2.0]},
    ]
    assert one["messages"] == 2  # at the first call, and for `late`
    assert one["table"] == [[0.0, 2.5], [1.0, 2.5]]
    assert one["all"] == [True, False]


def test_alone() -> None:
    group, cpu = Group(), torch.device("cpu")
    assert group.table([1, 2.5], cpu) == [[1.0, 2.5]]
    assert group.all(True, cpu)
    assert not group.all(False, cpu)
