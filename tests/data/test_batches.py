"""Properties of micro-batches for whatever lengths, budgets and ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.batches import epoch_order, micro_batches, pad_right

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(lengths=LENGTHS, budget=st.integers(1, 1000), world=st.integers(1, 5), packed=st.booleans())
def test_micro_batches(lengths: list[int], budget: int, world: int, packed: bool) -> None:
    ranks = micro_batches(lengths, budget, world, packed=packed)
    assert len(ranks) == world
    assert len({len(rank) for rank in ranks}) == 1, "the same number on every rank"
    assert sorted(row for rank in ranks for micro in rank for row in micro) == list(range(len(lengths)))
    for micro in (micro for rank in ranks for micro in rank):
        tokens = [lengths[row] for row in micro]
        assert len(micro) <= 1 or (sum(tokens) if packed else len(micro) * max(tokens)) <= budget
    assert ranks == micro_batches(lengths, budget, world, packed=packed), "deterministic"


@given(lengths=LENGTHS.filter(bool), budget=st.integers(1, 1000), world=st.integers(1, 5), packed=st.booleans())
def test_no_rank_idles_while_another_has_rows_to_share(
    lengths: list[int], budget: int, world: int, packed: bool
) -> None:
    ranks = micro_batches(lengths, budget, world, packed=packed)
    if any(not micro for rank in ranks for micro in rank):
        assert max(len(micro) for rank in ranks for micro in rank) == 1
        for rank in ranks:
            assert all(rank[:-1]), "only the last round has gaps"


def test_rows_of_like_length_go_together() -> None:
    lengths = [100, 10, 90, 11, 95, 9]
    ranks = micro_batches(lengths, 300, 1)
    assert ranks == [[[0, 4, 2], [3, 1, 5]]]


def test_one_micro_batch_is_shared_between_ranks() -> None:
    assert micro_batches([8, 8, 8, 8], 64, 2) == [[[0, 1]], [[2, 3]]]


def test_work_is_even_over_ranks() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 200, (256,), generator=generator).tolist()
    load = [
        sum(len(micro) * max(lengths[row] for row in micro) for micro in rank)
        for rank in micro_batches(lengths, 1024, 4)
    ]
    assert max(load) < 1.05 * min(load)
    assert sum(load) < 1.15 * sum(lengths), "little padding"


def test_packed_micro_batches_are_even_and_few() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 200, (256,), generator=generator).tolist()
    loads = [
        sum(lengths[row] for row in micro) for rank in micro_batches(lengths, 1024, 4, packed=True) for micro in rank
    ]
    assert len(loads) == 4 * -(-sum(lengths) // (4 * 1024)), "no more rounds than the tokens need"
    assert max(loads) < 1.02 * min(loads), "no small last one"


def test_packing_where_few_rows_share_the_budget() -> None:
    ranks = micro_batches([34] * 1000, 100, 1, packed=True)
    assert 500 <= len(ranks[0]) <= 540
    assert [len(rank) for rank in micro_batches([60] * 1001, 100, 2, packed=True)] == [501, 501]


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_to_do(packed: bool) -> None:
    assert micro_batches([], 10, 2, packed=packed) == [[], []]


@given(n=st.integers(0, 50), seed=st.integers(0, 2**63), epoch=st.integers(0, 100))
def test_epoch_order_is_a_permutation_and_repeats(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert order == epoch_order(n, seed, epoch)


def test_epochs_and_seeds_differ() -> None:
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_pad_right() -> None:
    ids, mask = pad_right([[5, 6, 7], [8], []], pad=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
    assert pad_right([], pad=0)[0].shape == (0, 0)
