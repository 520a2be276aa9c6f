"""Evaluation of the policy on prompts that it never learned from."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from triptych import storage
from triptych.data.encode import PromptExample
from triptych.data.text_scores import SCORERS, distinct_n
from triptych.observe.log import plain
from triptych.recipe import POLICY, REFERENCE
from triptych.recipe.heldout import UNNAMED
from triptych.stages.evaluation.statistics import Statistic, mean, mean_of_groups, pass_at
from triptych.stages.rl.rewarding import Rewarded, score_answers
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker

ROUNDED_OFF = 1e-6
"""Relative error of a sum of a few rewards in 32 bits."""


@dataclass(frozen=True)
class MeasuredAnswers:
    """N answers to the prompts of one set, and what is told of them."""

    samples: Samples
    answers: Sequence[str]
    rewarded: Rewarded
    watched: Mapping[str, Sequence[float]]
    """`judge` or `watch`, whichever there is -> its score of each answer; NaN stands for none."""


def evaluate(worker: RlWorker, label: str) -> dict[str, float]:
    """Sample every held-out prompt, always with the same seeds; metrics of all sets back, answers written.

    Those of the set without a name are `heldout_*`, those of others `heldout_<set>_*`. `heldout_kl`, where there is a
    reference, and `heldout_teacher_kl`, where there is a teacher, are those of the policies that the evaluation samples
    from: all at its temperature.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float | None]] = {}
    for split, prompts in worker.heldout.items():
        found = _measured(worker, split, prompts)
        figures = {f"{split}_{name}": one for name, one in _figures(worker, split, found).items()}
        intervals |= {name: [(ends := one.interval()).low, ends.high] for name, one in figures.items()}
        metrics |= {name: one.value for name, one in figures.items()} | _metrics(worker, split, found)
        if worker.learner.group.rank == 0:
            _write_answers(worker, label, split, found)
    if worker.learner.group.rank == 0:
        content = plain(metrics | {"intervals": intervals})
        storage.write_bytes(
            storage.join(worker.ctx.folder, "evaluations", f"{label}.json"), json.dumps(content).encode()
        )
    return metrics


def _measured(worker: RlWorker, split: str, prompts: Sequence[PromptExample]) -> MeasuredAnswers:
    """Answers to the prompts of a set, and their scores, those that training never sees too."""
    stage, one = worker.stage, worker.stage.heldout_sets[split]
    samples = worker.sample(prompts, split, one.sampling, one.samples_per_prompt)
    answers = worker.texts([record.last_turn for record in samples.records])
    watched: dict[str, Sequence[float]] = {}
    if stage.judge is not None:
        judged = torch.tensor(SCORERS[stage.judge](answers), dtype=torch.float64)
        watched["judge"] = judged.masked_fill(samples.failed, math.nan).tolist()
    if worker.watch is not None:
        watched["watch"] = score_answers(worker, samples, worker.watch).total.tolist()
    return MeasuredAnswers(samples, answers, score_answers(worker, samples, worker.heldout_terms[split]), watched)


def _figures(worker: RlWorker, split: str, found: MeasuredAnswers) -> dict[str, Statistic]:
    """Figures that have an interval, over prompts: reward, pass@k, and what training never sees."""
    scores = found.rewarded.total.double().tolist()
    figures: dict[str, Sequence[float]] = {"reward": scores, **found.watched}
    known = {name: _by_group(found.samples, values) for name, values in figures.items()}
    statistics = {name: mean_of_groups(groups) for name, groups in known.items()}
    one = worker.stage.heldout_sets[split]
    bar = one.bar(worker.stage.rewards)
    for k in one.pass_at:
        assert bar is not None, "a recipe without one is refused"
        statistics[f"pass_at_{k}"] = pass_at_k(k, known["reward"], bar)
    return statistics


def pass_at_k(k: int, groups: Mapping[int, Sequence[float]], bar: float) -> Statistic:
    """pass@k over prompts with at least `k` scored answers; one that scores `bar` or more is right.

    NaN where there is no such prompt. A score falls short of `bar` by what 32 bits round off and still reaches it.
    """
    least = bar - ROUNDED_OFF * max(1.0, abs(bar))
    rows = [pass_at(k, sum(score >= least for score in own), len(own)) for own in groups.values() if len(own) >= k]
    return mean(rows or [math.nan])


def _by_group(samples: Samples, scores: Sequence[float]) -> dict[int, list[float]]:
    """Prompt -> the scores of its answers that have one."""
    found: dict[int, list[float]] = defaultdict(list)
    for group, score in zip(samples.groups, scores, strict=True):
        if not math.isnan(score):
            found[group].append(score)
    return found


def _metrics(worker: RlWorker, split: str, found: MeasuredAnswers) -> dict[str, float]:
    samples = found.samples
    return {
        **found.rewarded.metrics(f"{split}_"),
        **{f"{split}_{name}": value for name, value in _kl(worker, samples).items()},
        f"{split}_length": samples.mask.sum(dim=1).float().mean().item(),
        f"{split}_truncated": samples.truncated.float().mean().item(),
        f"{split}_distinct2": distinct_n(found.answers),
    }


def _kl(worker: RlWorker, samples: Samples) -> dict[str, float]:
    """KL to the reference and to the teacher, nats an answer, as far as there are such."""
    others = {
        "kl": worker.logprobs(samples, REFERENCE) if worker.stage.needs_reference else None,
        "teacher_kl": worker.teacher_logprobs(samples),
    }
    there = {name: logprobs for name, logprobs in others.items() if logprobs is not None}
    if not there:
        return {}
    policy = worker.logprobs(samples, POLICY)
    return {name: (policy - logprobs).sum(dim=1).mean().item() for name, logprobs in there.items()}


def _write_answers(worker: RlWorker, label: str, split: str, found: MeasuredAnswers) -> None:
    """Write the answers of a set as rows of JSON: `samples/<label>.jsonl`, or `samples/<label>.<set>.jsonl`."""
    records, scores = found.samples.records, found.rewarded.total.tolist()
    prompts = worker.texts([record.prompt_ids for record in records])
    rows = [
        {
            "group": found.samples.groups[number],
            "prompt": prompts[number],
            "response": found.answers[number],
            "reward": scores[number],
            **{name: watched[number] for name, watched in found.watched.items()},
            "tokens": sum(record.drawn),
            "finish_reason": record.finish_reason,
            "version": record.versions[-1],
        }
        for number, record in enumerate(records)
    ]
    text = "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
    name = label if split == UNNAMED else f"{label}.{split.removeprefix(f'{UNNAMED}_')}"
    storage.write_bytes(storage.join(worker.ctx.folder, "samples", f"{name}.jsonl"), text.encode())
