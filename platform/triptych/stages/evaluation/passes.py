"""Passes of one model over rows, on all ranks together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.data.batches import cut
from triptych.forward.roles import RoleModel
from triptych.train.batch import Batch
from triptych.train.learner import Learner


@dataclass(frozen=True)
class Passes:
    """One model, as a role of a learner that trains nothing."""

    learner: Learner
    role: str
    pad: int
    """The padding token."""
    micro_tokens: int
    """Tokens of a micro-batch."""
    labels: tuple[str, ...] = ()
    """The classes of a classifier, in the order of its head."""
    judges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reward model -> the roles of its members."""

    def over(
        self,
        sequences: Sequence[Sequence[int]],
        batch: Callable[[list[int]], Batch],
        compute: Callable[[RoleModel, Batch], Tensor],
    ) -> Tensor:
        """`compute` of every row: [B, k] of each micro-batch becomes [N, k], the same on every rank.

        Args:
            sequences: the tokens of each row, by which micro-batches are cut.
            batch: numbers of some rows -> their micro-batch.
            compute: a pass over it.
        """
        found = [(rows, self.learner.forward(self.role, compute, batch(rows)).cpu()) for rows in self._cut(sequences)]
        whole: dict[int, Tensor] = {}
        for part in self.learner.group.gather(found):
            whole |= {row: value for rows, values in part for row, value in zip(rows, values, strict=True)}
        return torch.stack([whole[row] for row in range(len(sequences))])

    def _cut(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """This rank's micro-batches, as numbers of rows."""
        group = self.learner.group
        found = cut([[row] for row in sequences], self.micro_tokens, group.size, packing=self.learner.model.packing)
        return [rows for rows in found[group.rank] if rows]
