"""EVA: a LoRA whose A starts as the directions in which a layer's inputs vary most (Paischer et al. 2024, arXiv
2410.07170), found on the first batches by an incremental SVD.

Ranks stay as the recipe gives them (the paper's rho = 1): the plan and checkpoints know them before any data is seen.
"""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from triptych.forward.passes import begin_alike
from triptych.forward.roles import BASE, RoleModel
from triptych.methods.peft_family import PeftAttachment
from triptych.models.peft_files import PREFIX
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Method, parts_of
from triptych.train.batch import Batch
from triptych.train.group import Group

BATCHES = 64
"""Largest number of batches read; a layer whose directions have settled stops earlier."""
_SETTLED = 0.99
"""The cosine of a direction before and after a batch, as in the paper."""


def reads_inputs(method: Method) -> bool:
    """True for a method whose start depends on its layers' inputs (a LoRA with `init: eva`)."""
    return any(isinstance(part, Lora) and part.init == "eva" for part in parts_of(method))


def start_from_inputs(model: RoleModel, roles: Sequence[str], batches: Iterable[Batch], group: Group) -> None:
    """Give the A of these roles, which have one method, the directions of their layers' inputs.

    Every rank calls it before the model is sharded; rank 0 computes, and all get the same.
    """
    layers = _layers(model, roles[0])
    ranks = {name: model.adapter(roles[0])[name].shape[0] for name in layers}
    found = group.broadcast(_directions(model, layers, max(ranks.values()), batches) if group.rank == 0 else {})
    for role in roles:
        own = model.adapter(role)
        for name, directions in found.items():
            kept = directions[: ranks[name]]
            own[name][: len(kept)] = kept.to(own[name])


def _layers(model: RoleModel, role: str) -> dict[str, Any]:
    """The layers of a role's LoRA by the names of its A."""
    parts = ((prefix, part) for prefix, part in model.attached[role].items() if isinstance(part, PeftAttachment))
    return {f"{prefix}{PREFIX}{name}.lora_A.weight": layer for prefix, part in parts for name, layer in part.layers}


@torch.no_grad()
def _directions(model: RoleModel, layers: dict[str, Any], rank: int, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Principal directions [r, inputs], at most `rank`, of each layer that read something, on the CPU."""
    watch = _Watch(rank)
    model.eval()
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(watch.read, name)).remove)
        for batch in itertools.islice(batches, BATCHES):
            if watch.settled():
                break
            ids, mask = (batch[name].to(model.device) for name in ("ids", "mask"))
            watch.begin(None if model.packing else mask.gather(1, begin_alike(mask)[0]).bool())
            with model.use(BASE), model.autocast():
                model.hidden(ids, mask)
    return watch.directions()


class _Watch:
    """The principal components of what layers read; those that read one tensor share them."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._components: dict[str, IncrementalPCA] = {}
        self._shared: dict[str, str] = {}
        self._open: set[str] = set()
        self._mask: Tensor | None = None
        self._last: tuple[str, Tensor] | None = None

    def begin(self, mask: Tensor | None) -> None:
        """Begin a pass over padded rows [B, T], of which `mask` marks the tokens; None: rows laid end to end."""
        self._mask, self._last = mask, None

    def read(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of a layer: add its input [B, T, d] to its components."""
        if self._last is not None and args[0] is self._last[1]:
            self._shared[name] = self._last[0]
            return
        self._last = name, args[0]
        x = (args[0].flatten(0, -2) if self._mask is None else args[0][self._mask]).float()
        known = self._components.get(name)
        rank = min(self._rank, x.shape[1])
        if (known is not None and name not in self._open) or len(x) < rank:
            return
        if known is None:
            known = IncrementalPCA(n_components=rank, lowrank=True, lowrank_q=min(2 * rank, *x.shape), lowrank_seed=0)
            self._components[name] = known
        before = getattr(known, "components_", None)
        known.partial_fit(x)
        self._open.add(name)
        if before is not None and bool((torch.cosine_similarity(known.components_, before) >= _SETTLED).all()):
            self._open.discard(name)

    def settled(self) -> bool:
        """True once another batch would change nothing."""
        return bool(self._components) and not self._open

    def directions(self) -> dict[str, Tensor]:
        """Principal directions [r, inputs] by layer, on the CPU."""
        own = {name: known.components_.cpu() for name, known in self._components.items()}
        return own | {name: own[first] for name, first in self._shared.items() if first in own}
