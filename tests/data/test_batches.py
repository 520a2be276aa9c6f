"""Properties of micro-batches for whatever lengths, budgets and ranks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.batches import distinct_tokens, epoch_order, micro_batches, packed_micro_batches, pad_right

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ROWS = st.lists(st.lists(SEQUENCE, min_size=1, max_size=2), max_size=40)


def assert_sound(ranks: list[list[list[int]]], rows: int, world: int) -> None:
    assert len(ranks) == world
    assert len({len(rank) for rank in ranks}) == 1, "the same number on every rank"
    assert sorted(row for rank in ranks for micro in rank for row in micro) == list(range(rows))
    if any(not micro for rank in ranks for micro in rank):
        assert max(len(micro) for rank in ranks for micro in rank) == 1, "no rank idles while another could share"
        assert all(all(rank[:-1]) for rank in ranks), "only the last round has gaps"


@given(lengths=LENGTHS, budget=st.integers(1, 1000), world=st.integers(1, 5))
def test_padded_micro_batches(lengths: list[int], budget: int, world: int) -> None:
    ranks = micro_batches(lengths, budget, world)
    assert_sound(ranks, len(lengths), world)
    for micro in (micro for rank in ranks for micro in rank):
        assert len(micro) <= 1 or len(micro) * max(lengths[row] for row in micro) <= budget
    assert ranks == micro_batches(lengths, budget, world), "deterministic"


@given(rows=ROWS, budget=st.integers(1, 100), world=st.integers(1, 5))
def test_packed_micro_batches(rows: list[list[list[int]]], budget: int, world: int) -> None:
    ranks = packed_micro_batches(rows, budget, world)
    assert_sound(ranks, len(rows), world)
    for micro in (micro for rank in ranks for micro in rank):
        sequences = [sequence for row in micro for sequence in rows[row]]
        assert len(micro) <= 1 or distinct_tokens(sequences) <= budget
    assert ranks == packed_micro_batches(rows, budget, world), "deterministic"


@given(sequences=st.lists(SEQUENCE, max_size=20))
def test_distinct_tokens_are_the_nodes_of_the_trie(sequences: list[list[int]]) -> None:
    nodes = {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}
    assert distinct_tokens(sequences) == len(nodes)


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
    rows = [[[1000 * k + step for step in range(n)]] for k, n in enumerate(lengths)]
    tokens = sum(len(sequence) for row in rows for sequence in row)
    loads = [sum(len(rows[row][0]) for row in micro) for rank in packed_micro_batches(rows, 1024, 4) for micro in rank]
    assert len(loads) <= 4 * (-(-tokens // (4 * 1024)) + 1), "no more rounds than the tokens need"
    assert max(loads) < 2 * min(loads), "no small last one"


def test_samples_of_a_prompt_stay_together() -> None:
    prompts = [list(range(100 * k, 100 * k + 30)) for k in range(4)]
    rows = [[[*prompts[k % 4], 1000 + k]] for k in range(16)]
    ranks = packed_micro_batches(rows, 2 * (30 + 4), 1)
    assert sorted(sorted(micro) for micro in ranks[0]) == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]


def test_nothing_to_do() -> None:
    assert micro_batches([], 10, 2) == packed_micro_batches([], 10, 2) == [[], []]


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
