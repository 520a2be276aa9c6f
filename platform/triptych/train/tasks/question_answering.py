"""Cross-entropy of the first and last token of an answer in its context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from triptych.forward.roles import RoleModel
from triptych.recipe.kinds import QuestionAnswering
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.task import Limits, Task

AnswerScorer = Callable[[int, int, int], tuple[float, float]]
"""Row, first and last token of the answer in its context -> exact match and F1 of the text there."""


@dataclass(frozen=True)
class SpanSelection:
    """Mean over rows of the cross-entropies of an answer's first and last token among those of the context.

    Needs `context_start`, `start`, `end` [B] in the batch (`QuestionExample`); the context goes to the row's end.
    Where nothing is trained the best span is judged as well, and `row` [B] is needed.
    """

    role: str
    max_answer_tokens: int
    judge: AnswerScorer | None = None

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


def _objectives(stage: QuestionAnswering, roles: Sequence[str]) -> list[SpanSelection]:
    return [SpanSelection(role, stage.max_answer_tokens) for role in roles]


def _full_batch(stage: QuestionAnswering, limits: Limits) -> Batch:
    """Random rows with a context where a chat would be learned."""
    batch = limits.chats()
    starts = torch.tensor([limits.unlearned(length) for length in batch["mask"].sum(dim=1).tolist()])
    first = torch.zeros(len(batch.pop("labels")), dtype=torch.long)
    return batch | {"context_start": starts, "start": first, "end": first}


TASK = Task(_objectives, _full_batch)
