"""Peak memory without computing: `FakeTensorMode` with accounting of live storages."""

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OF_WEIGHTS = ("weights", "adapter", "casts")
"""Parts that hold weights: a tensor computed from these alone is a cast."""

Moments = dict[str, Counter[str]]
"""Moment of a step -> bytes by part that were alive at the moment's peak."""

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
        self.peaks: Moments = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._moment, self._now, self._most = "", 0, 0
        self._alive: dict[int, tuple[Any, int, str]] = {}
        self._by_part: Counter[str] = Counter()

    def mark(self, moment: str) -> None:
        """Begin a moment: later peaks are recorded under this name."""
        self._moment = moment
        self._most = self.peaks.setdefault(moment, Counter()).total()
        self._look()

    def own(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Assign tensors to a part, whatever made them."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key not in self._alive:
                self._add(tensor, part)
                continue
            held, size, before = self._alive[key]
            self._alive[key] = held, size, part
            self._by_part[before] -= size
            self._by_part[part] += size

    def watch(self, blocks: Sequence[nn.Module]) -> None:
        """Mark the moments of a step by a model's blocks; between two moments, memory is linear in their number."""
        for number, block in enumerate(blocks):
            place = "last" if number == len(blocks) - 1 else "middle" if number else "first"
            block.register_forward_pre_hook(partial(self._begins, place))
            block.register_forward_hook(partial(self._ends, place))

    def _begins(self, place: str, *_: Any) -> None:
        if torch._C._current_graph_task_id() < 0:  # not computed again in the backward pass
            self.mark(f"forward {place}")

    def _ends(self, place: str, block: nn.Module, args: Any, out: Any) -> None:
        """The block's backward pass begins when the gradient of its output is there."""
        if torch._C._current_graph_task_id() >= 0:
            return
        if place == "last":
            self.mark("loss")
        states = out[0] if isinstance(out, tuple) else out
        if states.requires_grad:
            states.register_hook(lambda _: self.mark(f"backward {place}"))

    def forget(self) -> None:
        """Forget all moments recorded so far."""
        self.peaks.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        faked = any(isinstance(tensor, FakeTensor) for tensor in given)
        if faked and func is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point * 1.0
        if faked and func in _BY_MASK:
            args = (args[0], _places(args[1]), *args[2:])
        if faked and func is _aten._grouped_mm.default:
            out = _grouped(func, args, kwargs)
        elif faked or given:
            out = func(*args, **kwargs)
        else:
            with self._fake:
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and not out.is_floating_point():
                out = func(*args, **kwargs)
        self._see(out, given)
        return out

    def _see(self, out: Any, given: list[Tensor]) -> None:
        """Count the new tensors among an operator's results, by part."""
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


def peak_at(low: Moments, high: Moments, steps: float) -> Counter[str]:
    """Bytes by part at the peak moment, extrapolated linearly in depth.

    Args:
        low: moments at the smaller depth.
        high: moments at the larger depth.
        steps: depth beyond the smaller one, in units of the distance between both.
    """
    found = [
        Counter({part: round(one[part] + steps * (two[part] - one[part])) for part in one | two})
        for one, two in ((low[moment], high[moment]) for moment in low.keys() & high.keys())
    ]
    return max(found, key=Counter.total)


def converting() -> Any:
    """Let modules of fake parameters be converted (`.to`): torch would swap them, which weak references forbid."""
    return patch.object(torch.utils, "swap_tensors", _set)


def _set(parameter: Tensor, converted: Tensor) -> None:
    parameter.data = converted.data


def _grouped(func: Any, args: Any, kwargs: Any) -> Tensor:
    """A mixture's product in the precision of its inputs: without numbers torch has it in bfloat16 alone."""
    states, weights, *others = args
    out: Tensor = func(states.bfloat16(), weights.bfloat16(), *others, **kwargs)
    return out.to(states.dtype)


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with masks replaced by the positions that they select."""
    found: list[Tensor | None] = []
    for index in indices:
        found += [index] if index is None or index.dtype != torch.bool else list(index.nonzero(as_tuple=True))
    return found
