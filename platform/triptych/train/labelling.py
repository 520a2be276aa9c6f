"""Objectives of heads that read single positions: tags of words, borders of answers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from triptych.forward.roles import RoleModel
from triptych.objectives.language import IGNORE
from triptych.objectives.spans import EntityCounts
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums


@dataclass(frozen=True)
class TokenTagging:
    """Mean cross-entropy of the tags of words; needs `tags` [B, T] in the batch, -100 where none is read.

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
        """Of rows of so many words each, laid end to end."""
        counts = EntityCounts()
        for row in zip(tags.split(words), predicted.split(words), strict=True):
            counts.add(*([self.labels[index] for index in side.tolist()] for side in row))
        return {
            name: (torch.tensor(float(part)), torch.tensor(float(whole)))
            for name, (part, whole) in counts.quotients().items()
        }


Judge = Callable[[int, int, int], tuple[float, float]]
"""Row, first and last token of the answer in its context -> exact match and F1 of the text there."""


@dataclass(frozen=True)
class SpanSelection:
    """Mean over rows of the cross-entropies of an answer's first and last token among those of the context.

    Needs `context_start`, `start`, `end` [B] in the batch (`QuestionExample`); the context goes to the row's end.
    Where nothing is trained the best span is judged as well, and `row` [B] is needed.
    """

    role: str
    max_answer_tokens: int
    judge: Judge | None = None

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["ids"]), device=batch["ids"].device)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        scores = context_scores(model, batch)
        borders = torch.stack([batch["start"], batch["end"]], dim=1)
        total = cross_entropy(scores, borders, reduction="sum") / 2
        count = self.denominators(batch)["loss"]
        metrics = {"loss": (total, count)}
        if self.judge is not None and not torch.is_grad_enabled():
            spans = zip(batch["row"].tolist(), best_spans(scores, self.max_answer_tokens), strict=True)
            exact, f1 = zip(*(self.judge(row, *span) for row, span in spans), strict=True)
            sums = torch.tensor([sum(exact), sum(f1)], device=count.device)
            metrics |= {"exact_match": (sums[0], count), "f1": (sums[1], count)}
        return {"loss": total}, metrics


def context_scores(model: RoleModel, batch: Batch) -> Tensor:
    """[B, C, 2]: how well each token of a row's second context begins and ends the answer; -inf behind its end."""
    lengths = batch["mask"].sum(dim=1) - batch["context_start"]
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    places = (batch["context_start"][:, None] + steps).clamp(max=batch["ids"].shape[1] - 1)
    hidden = model.hidden(batch["ids"], batch["mask"])
    scores = model.scores(hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2])))
    return scores.masked_fill((steps >= lengths[:, None])[:, :, None], -torch.inf)


def best_spans(scores: Tensor, most: int) -> list[tuple[int, int]]:
    """First and last token of each row's best span of at most `most` tokens, by the sum of its two scores."""
    sums = scores[:, :, :1] + scores[:, None, :, 1]
    possible = torch.ones_like(sums[0], dtype=torch.bool).triu().tril(most - 1)
    best = sums.masked_fill(~possible, -torch.inf).flatten(1).argmax(dim=1).tolist()
    return [divmod(place, scores.shape[1]) for place in best]
