"""Work done ahead: in order, one item at most, and an error in its turn."""

import threading

import pytest

from triptych.data.prefetch import ahead


def test_the_next_item_is_made_while_the_caller_works() -> None:
    begun = {number: threading.Event() for number in range(4)}

    def make(number: int) -> int:
        begun[number].set()
        return number * 10

    made = ahead(make, range(4))
    assert next(made) == 0
    assert begun[1].wait(10), "made without being asked for"
    assert not begun[2].is_set(), "but one ahead, not more"
    assert list(made) == [10, 20, 30]
    assert list(ahead(make, [])) == []


def test_an_error_comes_in_its_turn() -> None:
    made = ahead(lambda number: 1 // number, [1, 0, 1])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
