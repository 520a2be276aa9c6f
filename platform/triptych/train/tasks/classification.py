"""Cross-entropy of the classes of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych.forward.roles import RoleModel
from triptych.recipe.kinds import Classification
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.forward import sequence_scores
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class TextClassification:
    """Mean cross-entropy of the classes of texts; needs `label` [B] in the batch.

    F1 of each class is measured as well, where nothing is trained.
    """

    role: str
    labels: tuple[str, ...]

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["label"]), device=batch["label"].device)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        logits, labels = sequence_scores(model, batch), batch["label"]
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        predicted = logits.argmax(dim=1)
        right, count = predicted == labels, self.denominators(batch)["loss"]
        metrics = {"loss": (total, count), "accuracy": (right.sum(), count)}
        if not torch.is_grad_enabled():
            for label, name in enumerate(self.labels):
                hits = (right & (labels == label)).sum()
                metrics[f"f1_{name}"] = (2 * hits, (predicted == label).sum() + (labels == label).sum())
        return {"loss": total}, metrics


def _objectives(stage: Classification, roles: Sequence[str]) -> list[TextClassification]:
    return [TextClassification(role, stage.labels) for role in roles]


def _full_batch(stage: Classification, limits: Limits) -> Batch:
    batch = limits.chats()
    labels = batch.pop("labels")
    return batch | {"label": torch.zeros(len(labels), dtype=torch.long)}


TASK = Task(_objectives, _full_batch)
