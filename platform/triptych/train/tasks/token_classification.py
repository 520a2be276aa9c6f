"""Cross-entropy of the tags of words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from triptych.forward.roles import RoleModel
from triptych.objectives import IGNORE
from triptych.objectives.spans import EntityCounts
from triptych.recipe.kinds import TokenClassification
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class TokenTagging:
    """Mean cross-entropy of the tags of words; needs `tags` [B, T] in the batch, `IGNORE` where none is read.

    `accuracy` counts words. Entities are measured as well where nothing is trained and the labels mark them.
    """

    role: str
    labels: tuple[str, ...]
    mark_entities: bool

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": (batch["tags"] != IGNORE).sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        read = batch["tags"] != IGNORE
        tags, count = batch["tags"][read], read.sum()
        logits = model.scores(model.hidden(batch["ids"], batch["mask"])[read])
        total = cross_entropy(logits, tags, reduction="sum")
        predicted = logits.argmax(dim=1)
        metrics = {"loss": (total, count), "accuracy": ((predicted == tags).sum(), count)}
        if self.mark_entities and not torch.is_grad_enabled():
            metrics |= self._entities(tags, predicted, read.sum(dim=1).tolist())
        return {"loss": total}, metrics

    def _entities(self, tags: Tensor, predicted: Tensor, words: list[int]) -> Metrics:
        """Entity metrics of rows laid end to end; `words`: words of each row."""
        counts = EntityCounts()
        for row in zip(tags.split(words), predicted.split(words), strict=True):
            counts.add(*([self.labels[index] for index in side.tolist()] for side in row))
        return {
            name: (torch.tensor(float(part)), torch.tensor(float(whole)))
            for name, (part, whole) in counts.quotients().items()
        }


def _objectives(stage: TokenClassification, roles: Sequence[str]) -> list[TokenTagging]:
    return [TokenTagging(role, stage.labels, stage.mark_entities) for role in roles]


def _full_batch(stage: TokenClassification, limits: Limits) -> Batch:
    """Random rows with a tag at each token that a chat would learn."""
    batch = limits.chats()
    return batch | {"tags": batch.pop("labels").clamp(max=0)}


TASK = Task(_objectives, _full_batch)
