"""Work that is done while its caller is busy with what came before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`make` of each item, in order: the next one is made, in a thread, while the caller works on this one.

    What `make` raises is raised in the item's turn.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending: Future[T] | None = None
        for item in items:
            following = thread.submit(make, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
