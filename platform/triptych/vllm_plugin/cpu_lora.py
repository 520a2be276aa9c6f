"""LoRA on CPU for vLLM: every adapter of a batch in two batched products a layer, rows without one untouched.

vLLM's own wrapper copies A and B for every token, and gives a token without an adapter (index -1) the adapter in the
last slot. Here rows are laid out by adapter once a step (`Routing`); a layer then gathers its input into that layout,
multiplies by all adapters' A and B at once, and adds what comes out back to the rows that asked for it. A row never
meets another row's adapter, not even times zero: an adapter with a NaN in it spoils its own rows only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from triptych.vllm_plugin.routing import Routing, route


@dataclass
class Packed:
    """The weights of one layer, laid out for `delta`; `a` and `b` are vLLM's own tensors, now views of them.

    The projections that vLLM fuses (q, k, v; gate, up) have their A stacked along the rank and their B on the blocks of
    a diagonal, so that two products serve all of them. vLLM goes on writing adapters into its tensors and thereby into
    these: nothing is copied when an adapter comes or goes.
    """

    a: tuple[Tensor, ...]  # one a projection, [slots, 1, rank, in]
    b: tuple[Tensor, ...]  # one a projection, [slots, 1, out, rank]
    down: Tensor = field(init=False)  # [slots, projections * rank, in]
    up: Tensor = field(init=False)  # [slots, projections * rank, sum of out]
    _writes: int = field(init=False, default=-1)
    _used: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        slots, _, rank, width = self.a[0].shape
        outs = [b.shape[2] for b in self.b]
        count = len(self.a)
        # Not inference tensors, even if the first forward is under inference mode: adapters are written outside it too.
        with torch.inference_mode(False):
            self.down = self.a[0].new_zeros(slots, count * rank, width)
            self.up = self.b[0].new_zeros(slots, count * rank, sum(outs))
        offset = 0
        for i, (a, b, out) in enumerate(zip(self.a, self.b, outs, strict=True)):
            ranks = slice(i * rank, (i + 1) * rank)
            for old, view in (
                (a, self.down[:, ranks]),
                (b, self.up[:, ranks, offset : offset + out].transpose(1, 2)),
            ):
                old.set_(view.unsqueeze(1).copy_(old))  # type: ignore[call-overload]
            offset += out

    def used(self) -> int:
        """Bit s is set if the adapter in slot s touches this layer; looked up again only after vLLM wrote weights."""
        writes = sum(b._version for b in self.b)
        if writes != self._writes:
            self._writes = writes
            touched = self.up.flatten(1).any(1).tolist()
            self._used = sum(1 << slot for slot, touches in enumerate(touched) if touches)
        return self._used


def add_delta(y: Tensor, x: Tensor, weights: Packed, routing: Routing) -> None:
    """y[i] += x[i] @ down[slot of i].T @ up[slot of i], in place. y [rows, out], x [rows, in]."""
    x = x.to(weights.down.dtype)
    down, up = weights.down, weights.up
    if routing.whole:
        middle = F.linear(x, down[routing.first])
        if y.dtype == up.dtype:
            y.addmm_(middle, up[routing.first, :, : y.shape[1]])
        else:
            y.add_(middle @ up[routing.first, :, : y.shape[1]])
        return
    laid_out = x.index_select(0, routing.gather)
    size, slots, width = routing.size, routing.last - routing.first + 1, up.shape[2]
    delta = up.new_empty(size + 1, width)
    delta[size].zero_()
    if routing.padded:
        span = slice(routing.first, routing.last + 1)
        middle = torch.bmm(laid_out.view(slots, -1, x.shape[1]), down[span].transpose(1, 2))
        torch.bmm(middle, up[span], out=delta[:size].view(slots, -1, width))
    else:
        for slot, start, stop in zip(
            range(routing.first, routing.last + 1), routing.bounds, routing.bounds[1:], strict=False
        ):
            if stop > start:
                torch.mm(F.linear(laid_out[start:stop], down[slot]), up[slot], out=delta[start:stop])
    y.add_(delta.index_select(0, routing.scatter)[:, : y.shape[1]])


class GroupedLoRAWrapper(PunicaWrapperCPU):
    """Takes the place of vLLM's PunicaWrapperCPU; what it does not override is right there (the full linear head)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens: Routing | None = None  # by token, for the layers
        self._samples: Routing | None = None  # by sampled position, for the logits
        self._only: int | None = None  # the slot of every row of logits, where these are of one request's prompt
        self._packed: dict[int, Packed] = {}  # by identity of vLLM's tensors, which each entry keeps alive

    def update_metadata(
        self,
        mapping: LoRAMapping,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._tokens = route(self.token_lora_indices)
        self._samples = route(self.sampler_indices)

    @contextmanager
    def logits_of_prompt(self, token: int) -> Iterator[None]:
        """Context in which all rows of logits are of one prompt: that of the step's token at this place."""
        self._only = int(self.token_lora_indices[token])
        try:
            yield
        finally:
            self._only = None

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """`scale` is 1 in all of vLLM (the adapter's own is folded into B when it is loaded)."""
        assert scale == 1.0
        self._add(y, x, lora_a_stacked, lora_b_stacked, self._tokens)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """The head may be padded: columns of y beyond B's rows stay as they are."""
        assert scale == 1.0
        y, x = y.view(-1, y.shape[-1])[:, : lora_b_stacked.shape[2]], x.view(-1, x.shape[-1])
        samples = self._samples if self._only is None else route(torch.full((len(x),), self._only))
        self._add(y, x, (lora_a_stacked,), (lora_b_stacked,), samples)

    def _add(self, y: Tensor, x: Tensor, a: tuple[Tensor, ...], b: tuple[Tensor, ...], routing: Routing | None) -> None:
        if routing is None:
            return
        weights = self._packed.get(id(b[0]))
        if weights is None:
            weights = self._packed[id(b[0])] = Packed(a, b)
        if weights.used() & routing.slots:
            add_delta(y, x, weights, routing)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """x: each token's row of its adapter's A, [tokens, rank] (of slot 0's where there is no adapter)."""
        self._apply_expand(y, x, lora_b_stacked, 0, y.shape[-1], add_inputs)

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        """Reached only by sharded LoRA under tensor parallelism, which communicates between the two products."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._tokens.groups if self._tokens else ():
            y[rows] = F.linear(x[rows], w_t_all[slot, 0]).to(y.dtype) * scale

    def _apply_expand(
        self, y: Tensor, x: Tensor, w_t_all: Tensor, y_offset: int, y_slice_size: int, add_inputs: bool = True
    ) -> None:
        y = y.view(-1, y.shape[-1])[:, y_offset : y_offset + y_slice_size]
        if not add_inputs:
            y.zero_()
        for slot, rows in self._tokens.groups if self._tokens else ():
            y[rows] += F.linear(x[rows].to(w_t_all.dtype), w_t_all[slot, 0]).to(y.dtype)
