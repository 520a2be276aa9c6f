"""Where each row goes: every row of an adapter exactly once, in its own segment; none of the base's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.vllm_plugin.routing import CHEAP_ROWS, route


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=80))
def test_each_row_sits_once_in_the_segment_of_its_slot(slots: list[int]) -> None:
    routing = route(torch.tensor(slots))
    if set(slots) == {-1}:
        assert routing is None
        return
    assert routing is not None
    assert routing.slots == sum(1 << slot for slot in set(slots) if slot >= 0)
    used = []
    for row, slot in enumerate(slots):
        position = int(routing.scatter[row])
        if slot < 0:
            assert position == routing.size
            continue
        used.append(position)
        assert int(routing.gather[position]) == row
        segment = slot - routing.first
        assert routing.bounds[segment] <= position < routing.bounds[segment + 1]
    assert len(set(used)) == len(used)
    assert {slot: rows.tolist() for slot, rows in routing.groups} == {
        slot: [row for row, other in enumerate(slots) if other == slot] for slot in set(slots) if slot >= 0
    }
    assert routing.whole == (len(set(slots)) == 1)


@pytest.mark.parametrize(
    ("counts", "padded"),
    [
        ([64, 64, 64], True),
        ([CHEAP_ROWS // 4, 1, 1, 1], True),  # few rows: padding is cheaper than more calls
        ([1000, 1, 1, 1], False),  # a long prompt beside three that decode
    ],
)
def test_padding_only_where_it_is_cheap(counts: list[int], padded: bool) -> None:
    rows = [slot for slot, count in enumerate(counts) for _ in range(count)]
    routing = route(torch.tensor(rows))
    assert routing is not None
    assert routing.padded is padded
    lengths = [high - low for low, high in zip(routing.bounds, routing.bounds[1:], strict=False)]
    assert lengths == ([max(counts)] * len(counts) if padded else counts)
