"""What a reward model is worth on held-out pairs: their order, its calibration, the pull of length.

Scores are [members, pairs, 2] and lengths [pairs, 2]: of the chosen answer, then of the rejected one. An ensemble's
score is the mean over its members; a tie counts as half right.
"""

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.errors import RunError
from triptych.models.adapter import Normalization
from triptych.stages.supervised.loop import Rows
from triptych.train.learner import Learner
from triptych.train.tasks.forward import member_scores

BINS = 10
"""Of the calibration; the histogram of gaps has as many on either side of zero."""

Pairs = Mapping[str, Sequence[Any]]
"""Columns `chosen` and `rejected` (tokens of prompt and answer) and `start` (tokens of the prompt)."""


def draw_pairs(count: int, prompt_of: Callable[[int], Hashable], most: int, seed: int) -> list[int]:
    """Numbers of up to `most` of `count` pairs, drawn at random, one of each prompt first.

    Second ones follow where there are fewer prompts. No more pairs are looked at than needed.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    first: dict[Hashable, int] = {}
    further: list[int] = []
    for row in order:
        if len(first) == most:
            break
        if first.setdefault(prompt_of(row), row) != row:
            further.append(row)
    return [*first.values(), *further][:most]


def score_pairs(
    learner: Learner, roles: Sequence[str], rows: Rows, budget: int, chosen: Sequence[int] | None = None
) -> Tensor:
    """Every member's scores of all rows, or of the chosen ones, [members, pairs, 2], float64, on every rank."""
    numbers = range(len(rows.sequences)) if chosen is None else chosen
    place_of = {row: place for place, row in enumerate(numbers)}
    scores = torch.zeros(len(roles), len(numbers), 2, dtype=torch.float64)
    numbered = Rows(rows.sequences, lambda some: rows.batch(some) | {"row": torch.tensor([place_of[r] for r in some])})
    for batch in numbered.micro_batches(numbers, budget, learner):
        # Ranks that shard the weights work together: one that has no rows left scores one for nothing.
        scored = rows.batch([0]) if batch is None else batch
        values = learner.forward(roles[0], partial(member_scores, roles=roles), scored).double().cpu()
        if batch is not None:
            scores[:, batch["row"]] = values.unflatten(1, (2, -1)).transpose(1, 2)
    return torch.stack(learner.group.gather(scores)).sum(dim=0)


def measure_normalization(scores: Tensor) -> Normalization:
    """Mean and standard deviation over all answers, chosen and rejected alike.

    Raises:
        RunError: a score is no finite number, and so would be all that is normalised by them.
    """
    ensemble = scores.mean(dim=0)
    if lost := int((~ensemble.isfinite().all(dim=1)).sum()):
        raise RunError(
            f"the reward model's scores of {lost} of {len(ensemble)} training pairs are no finite numbers, so scores "
            "cannot be normalised: its weights have diverged, or model.dtype is too narrow; lower optimizer.lr, or "
            "take another model.dtype"
        )
    return Normalization(ensemble.mean().item(), max(ensemble.std(correction=0).item(), 1e-6))


def reward_report(scores: Tensor, pairs: Pairs, trained: Pairs, normalization: Normalization) -> dict[str, Any]:
    """Plain numbers about held-out pairs, None where one is of nothing; `trained` are the pairs that were learned."""
    ensemble = scores.mean(dim=0)
    gaps = ensemble[:, 0] - ensemble[:, 1]
    shared, asked = shared_prompts(trained, pairs)
    report: dict[str, Any] = {
        "pairs": len(gaps),
        "accuracy": _mean(_right(gaps)),
        "gaps": _histogram(gaps),
        "calibration": _calibration(gaps),
        "length": _length_probe(ensemble, answer_lengths(pairs), answer_lengths(trained)),
        "normalization": asdict(normalization),
        "prompts": {"asked": asked, "trained_on": shared},
    }
    return report | ({"members": _members(scores)} if len(scores) > 1 else {})


def answer_lengths(pairs: Pairs) -> Tensor:
    """Tokens of the answers, [pairs, 2]."""
    columns = zip(pairs["chosen"], pairs["rejected"], pairs["start"], strict=True)
    return torch.tensor([[len(chosen) - start, len(rejected) - start] for chosen, rejected, start in columns])


def shared_prompts(train: Pairs, heldout: Pairs) -> tuple[int, int]:
    """How many held-out prompts are training prompts too, and how many distinct held-out prompts there are."""
    seen, asked = (
        {tuple(chosen[:start]) for chosen, start in zip(pairs["chosen"], pairs["start"], strict=True)}
        for pairs in (train, heldout)
    )
    return len(seen & asked), len(asked)


def _histogram(gaps: Tensor) -> dict[str, list[float]]:
    """Counts between equally far edges, zero the middle one."""
    widest = gaps.abs().max().item() or 1.0
    edges = torch.tensor([widest * step / BINS for step in range(-BINS, BINS + 1)], dtype=gaps.dtype)
    return {"edges": edges.tolist(), "counts": torch.histogram(gaps, bins=edges).hist.tolist()}


def _calibration(gaps: Tensor) -> dict[str, Any]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) of sigmoid(|gap|), the probability that
    Bradley-Terry gives to the answer that scores higher; bins of equal width from 0.5 to 1.
    """
    confidence, right = torch.sigmoid(gaps.abs()), _right(gaps)
    place = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins: list[dict[str, Any]] = [
        {
            "low": 0.5 + number * 0.5 / BINS,
            "high": 0.5 + (number + 1) * 0.5 / BINS,
            "pairs": int((place == number).sum()),
            "confidence": _mean(confidence[place == number]),
            "accuracy": _mean(right[place == number]),
        }
        for number in range(BINS)
    ]
    error = sum(b["pairs"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["pairs"]) / len(gaps)
    return {"ece": error, "bins": bins}


def _length_probe(ensemble: Tensor, lengths: Tensor, trained: Tensor) -> dict[str, Any]:
    """How far scores follow length, and what length alone would get right: always the longer answer, or always the
    shorter one, whichever the training pairs prefer.
    """
    right = _right(ensemble[:, 0] - ensemble[:, 1])
    excess = lengths[:, 0] - lengths[:, 1]
    longer = bool((trained[:, 0] - trained[:, 1]).sign().sum() >= 0)
    probe: dict[str, Any] = {
        "correlation": _correlation(ensemble.flatten(), lengths.flatten().double()),
        "baseline": {
            "prefers": "longer" if longer else "shorter",
            "accuracy": _mean(_right(excess if longer else -excess)),
        },
    }
    for name, where in (("chosen_shorter", excess < 0), ("chosen_longer", excess > 0)):
        probe[name] = {"pairs": int(where.sum()), "accuracy": _mean(right[where])}
    return probe


def _members(scores: Tensor) -> dict[str, Any]:
    """How well each member does, and how far they disagree about a pair's gap."""
    gaps = scores[..., 0] - scores[..., 1]
    return {
        "accuracy": [_mean(_right(member)) for member in gaps],
        "disagreement": gaps.std(dim=0).mean().item(),
        "split": _mean((gaps.sign() != gaps[0].sign()).any(dim=0).double()),
    }


def _right(gaps: Tensor) -> Tensor:
    """1 where positive, 0 where negative, a half at a tie."""
    return (gaps.sign().double() + 1) / 2


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def _correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's; None where one of them does not vary."""
    value = torch.corrcoef(torch.stack([x, y]))[0, 1].item() if len(x) > 1 else math.nan
    return value if math.isfinite(value) else None
