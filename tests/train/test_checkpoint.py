"""Checkpoints are whole or not there, and hold each element once, however many ranks wrote them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from triptych.errors import RunError
from triptych.train import checkpoint
from triptych.train.group import Group
from triptych.train.strategies import Slice


def piece(name: str, shape: tuple[int, ...], start: int, values: list[float]) -> Slice:
    return Slice(name, shape, start, torch.tensor(values))


class Rank(Group):
    """One of several ranks, in one process."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


def test_pieces_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    writers = [checkpoint.Writer(str(tmp_path), Rank(rank, 2)) for rank in range(2)]
    writers[1].save(7, [piece("w", (3, 2), 4, [4.0, 5.0])], {"steps": 7})
    writers[0].save(7, [piece("w", (3, 2), 0, [0.0, 1.0, 2.0, 3.0]), piece("n", (), 0, [9.0])], {"steps": 7})
    for writer in writers:
        writer.wait()
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert (found.step, found.state, sorted(found.tensors)) == (7, {"steps": 7}, ["n", "w"])
    assert found.tensors["w"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert found.tensors["n"].shape == ()


def test_the_copy_is_taken_before_training_goes_on(tmp_path: Path) -> None:
    values = torch.zeros(3)
    writer = checkpoint.Writer(str(tmp_path), Group())
    writer.save(1, [Slice("w", (3,), 0, values)], {})
    values.fill_(1.0)
    writer.wait()
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.tensors["w"].tolist() == [0.0, 0.0, 0.0]


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    writer = checkpoint.Writer(str(tmp_path), Group())
    for step in range(1, 7):
        writer.save(step, [piece("w", (1,), 0, [float(step)])], {}, best=2 if step >= 2 else None)
    writer.wait()
    for step in (2, 5, 6):
        assert checkpoint.load(str(tmp_path), step).tensors["w"].item() == step
    assert len(list((tmp_path / "shares").iterdir())) == 3


def test_a_share_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    writer = checkpoint.Writer(str(tmp_path), Group())
    writer.save(1, [piece("w", (1,), 0, [1.0])], {})
    writer.save(2, [piece("w", (1,), 0, [2.0])], {})
    writer.wait()
    one, two = (tmp_path / "shares" / f"step-0000000{step}-0-of-1" for step in (1, 2))
    one.rename(tmp_path / "old")
    two.rename(one)
    with pytest.raises(RunError, match=r"step-00000001-0-of-1: missing, or not the share"):
        checkpoint.load(str(tmp_path), 1)


def test_an_error_of_the_writing_thread_reaches_the_caller(tmp_path: Path) -> None:
    writer = checkpoint.Writer(str(tmp_path), Group())
    (tmp_path / "shares").write_text("in the way")
    writer.save(1, [piece("w", (1,), 0, [1.0])], {})
    with pytest.raises(Exception, match="shares"):
        writer.wait()


WRITE_FOR_EVER = """
import sys, torch
from triptych.train import checkpoint
from triptych.train.group import Group
from triptych.train.strategies import Slice
writer = checkpoint.Writer(sys.argv[1], Group())
for step in range(1, 10_000):
    writer.save(step, [Slice("w", (3_000_000,), 0, torch.full((3_000_000,), float(step)))], {})
"""


@pytest.mark.slow
def test_killed_while_it_writes_the_one_before_is_intact(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (checkpoint.latest(str(tmp_path)) and list((tmp_path / "shares").glob(".*staging*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = checkpoint.latest(str(tmp_path))
    assert found is not None
    assert found.tensors["w"].eq(found.step).all()
    checkpoint.Writer(str(tmp_path), Group())
    whole = {f"step-{step:08d}" for step in range(found.step - 2, found.step + 1)}
    assert {share.name[:13] for share in (tmp_path / "shares").iterdir() if not share.name.startswith(".")} <= whole
