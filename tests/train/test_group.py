"""Sums by name over ranks, of which some lack some names."""

import pytest
import torch

from tests.support import rank_group
from tests.support.ranks import Ranks
from triptych.train.group import Group


@pytest.mark.slow
def test_two_ranks(ranks: Ranks) -> None:
    one, other = ranks.run(rank_group.what_each_gets)
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
