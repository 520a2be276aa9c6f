"""Evaluation of the policy on prompts that it never learned from."""

import json

from torch import Tensor

from triptych import storage
from triptych.data.text_scores import SCORERS, distinct_n
from triptych.observe.log import plain
from triptych.recipe import POLICY, REFERENCE, Rl
from triptych.stages.context import StageContext
from triptych.stages.rl.rewarding import score_answers
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker


def evaluate(worker: RlWorker, label: str) -> dict[str, float]:
    """Sample every held-out prompt, always with the same seeds; `heldout_*` metrics back, answers written.

    `heldout_kl`, where there is a reference, and `heldout_teacher_kl`, where there is a teacher, are those of the
    policies that the evaluation samples from: all at its temperature.
    """
    stage = worker.stage
    samples = worker.sample(worker.heldout, "heldout", stage.evaluation)
    rewarded = score_answers(worker, samples)
    answers = worker.texts([record.last_turn for record in samples.records])
    metrics = {
        **rewarded.metrics("heldout_"),
        **_kl(worker, samples),
        "heldout_length": samples.mask.sum(dim=1).float().mean().item(),
        "heldout_truncated": samples.truncated.float().mean().item(),
        "heldout_distinct2": distinct_n(answers),
    }
    judged = SCORERS[stage.judge](answers) if stage.judge else None
    if judged is not None:
        metrics["heldout_judge"] = sum(judged) / len(judged)
    if worker.learner.group.rank == 0:
        _write_answers(worker, label, samples, rewarded.total, answers, judged)
        storage.write_bytes(_evaluation(worker.ctx, label), json.dumps(plain(metrics)).encode())
    return metrics


def _kl(worker: RlWorker, samples: Samples) -> dict[str, float]:
    """KL to the reference and to the teacher, nats an answer, as far as there are such."""
    others = {
        "heldout_kl": worker.logprobs(samples, REFERENCE) if worker.stage.needs_reference else None,
        "heldout_teacher_kl": worker.teacher_logprobs(samples),
    }
    there = {name: logprobs for name, logprobs in others.items() if logprobs is not None}
    if not there:
        return {}
    policy = worker.logprobs(samples, POLICY)
    return {name: (policy - logprobs).sum(dim=1).mean().item() for name, logprobs in there.items()}


def _write_answers(
    worker: RlWorker, label: str, samples: Samples, scores: Tensor, answers: list[str], judged: list[float] | None
) -> None:
    prompts = worker.texts([record.prompt_ids for record in samples.records])
    rows = [
        {"prompt": prompt, "response": answer, "reward": score, "judge": judged[number] if judged else None}
        for number, (prompt, answer, score) in enumerate(zip(prompts, answers, scores.tolist(), strict=True))
    ]
    text = "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
    storage.write_bytes(storage.join(worker.ctx.folder, "samples", f"{label}.jsonl"), text.encode())


def _evaluation(ctx: StageContext[Rl], label: str) -> str:
    return storage.join(ctx.folder, "evaluations", f"{label}.json")
