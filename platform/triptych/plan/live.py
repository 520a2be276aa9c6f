"""Tensors without their numbers, and what of them is alive: the memory of a computation that is not carried out."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OF_WEIGHTS = ("weights", "adapter", "casts")
"""Parts such that what is computed of them alone is a cast."""

_aten = torch.ops.aten
_BY_MASK = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
"""Operators with a list of indices, masks among them, as second argument."""


class LiveMemory(TorchDispatchMode):
    """Floating-point tensors are fake; integers and masks are real, so that shapes can depend on them.

    `peaks` holds for each moment (`mark`) the bytes by part that were alive when those were most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vocab = 0
        """Tensors with a side of this length are logits."""
        self.peaks: dict[str, Counter[str]] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._moment, self._now, self._most = "", 0, 0
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self._by_part: Counter[str] = Counter()

    def mark(self, moment: str) -> None:
        """What happens from here on belongs to this moment."""
        self._moment = moment
        self._most = self.peaks.setdefault(moment, Counter()).total()
        self._look()

    def own(self, part: str, tensors: Iterable[Tensor]) -> None:
        """These tensors belong to a part, whatever made them."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in self._alive:
                self._add(tensor, part)
                continue
            held, size, before = self._alive[key]
            self._alive[key] = held, size, part
            self._by_part[before] -= size
            self._by_part[part] += size

    def forget(self) -> None:
        """No moments from here on but new ones."""
        self.peaks.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        faked = any(isinstance(tensor, FakeTensor) for tensor in given)
        if faked and func is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point * 1.0
        if faked and func in _BY_MASK:
            args = (args[0], _places(args[1]), *args[2:])
        if faked or given:
            out = func(*args, **kwargs)
        else:
            with self._fake:
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and not out.is_floating_point():
                out = func(*args, **kwargs)
        self._see(out, given)
        return out

    def _see(self, out: Any, given: list[Tensor]) -> None:
        """Count what is new."""
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in self._alive]
        if not new:
            return
        sources = {self._part_of(tensor) for tensor in given}
        for tensor in new:
            if sources and sources <= set(OF_WEIGHTS):
                self._add(tensor, "casts")
            else:
                self._add(tensor, "logits" if self.vocab in tensor.shape else "activations")
        self._look()

    def _part_of(self, tensor: Tensor) -> str:
        known = self._alive.get(tensor.untyped_storage()._cdata)
        return known[2] if known else ""

    def _add(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._drop(key)), size, part
            self._now += size
            self._by_part[part] += size

    def _drop(self, key: int) -> None:
        _, size, part = self._alive.pop(key)
        self._now -= size
        self._by_part[part] -= size

    def _look(self) -> None:
        if self._now > self._most:
            self._most = self._now
            self.peaks[self._moment] = Counter({part: size for part, size in self._by_part.items() if size})


@contextmanager
def converting() -> Iterator[None]:
    """Let modules of fake parameters be converted (`.to`): torch would swap them, which weak references forbid."""
    before = torch.utils.swap_tensors
    torch.utils.swap_tensors = _set
    try:
        yield
    finally:
        torch.utils.swap_tensors = before


def _set(parameter: Tensor, converted: Tensor) -> None:
    parameter.data = converted.data


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as the indices that they stand for."""
    found: list[Tensor | None] = []
    for index in indices:
        found += [index] if index is None or index.dtype != torch.bool else list(index.nonzero(as_tuple=True))
    return found
