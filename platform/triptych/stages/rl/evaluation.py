"""What the policy answers to prompts that it never learned from, and the samples that a run leaves behind."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from triptych import storage
from triptych.data.text_scores import SCORERS, distinct_n
from triptych.recipe import POLICY, REFERENCE, Rl
from triptych.stages.context import StageContext
from triptych.stages.models import tokenizer_of
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker, request


def evaluate(run: RlWorker, label: str) -> dict[str, float]:
    """Sample every held-out prompt, always with the same seeds; `heldout_*` metrics back, answers written."""
    stage, seed = run.stage, run.ctx.recipe.seed
    requests = [
        request(prompt, f"heldout/{number}/{copy}", seed)
        for number, prompt in enumerate(run.heldout)
        for copy in range(stage.rollout.samples_per_prompt)
    ]
    samples = run.sample(requests, stage.evaluation)
    scores = run.scores(samples)
    logprobs = run.logprobs(samples, POLICY)
    reference = run.logprobs(samples, REFERENCE)
    answers = _texts(run.ctx, [record.response_ids for record in samples.records])
    metrics = {
        "heldout_reward": scores.mean().item(),
        "heldout_reward_std": scores.std().item(),
        "heldout_kl": (logprobs - reference).sum(dim=1).mean().item(),
        "heldout_length": samples.mask.sum(dim=1).float().mean().item(),
        "heldout_truncated": samples.truncated.float().mean().item(),
        "heldout_distinct2": distinct_n(answers),
    }
    judged = SCORERS[stage.judge](answers) if stage.judge else None
    if judged is not None:
        metrics["heldout_judge"] = sum(judged) / len(judged)
    if run.learner.group.rank == 0:
        _write_answers(run, label, samples, scores, answers, judged)
        storage.write_bytes(_evaluation(run.ctx, label), json.dumps(metrics).encode())
    return metrics


def read_evaluation(ctx: StageContext[Rl], label: str) -> dict[str, float]:
    """The metrics of an earlier `evaluate`."""
    metrics: dict[str, float] = json.loads(storage.read_bytes(_evaluation(ctx, label)))
    return metrics


def write_rollouts(ctx: StageContext[Rl], step: int, samples: Samples, scores: Tensor) -> None:
    """All answers of a step as one Parquet file; a step that is done again replaces it."""
    records = samples.records
    columns = {
        "lease": [record.lease for record in records],
        "prompt": _texts(ctx, [record.prompt_ids for record in records]),
        "response": _texts(ctx, [record.response_ids for record in records]),
        "prompt_ids": [list(record.prompt_ids) for record in records],
        "response_ids": [list(record.response_ids) for record in records],
        "logprobs": [list(record.logprobs) for record in records],
        "versions": [list(record.versions) for record in records],
        "finish_reason": [record.finish_reason for record in records],
        "seed": [record.seed for record in records],
        "score": scores.tolist(),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    storage.write_bytes(storage.join(ctx.folder, "rollouts", f"step-{step + 1:08d}.parquet"), buffer.getvalue())


def _write_answers(
    run: RlWorker, label: str, samples: Samples, scores: Tensor, answers: list[str], judged: list[float] | None
) -> None:
    prompts = _texts(run.ctx, [record.prompt_ids for record in samples.records])
    rows = [
        {"prompt": prompt, "response": answer, "reward": score, "judge": judged[number] if judged else None}
        for number, (prompt, answer, score) in enumerate(zip(prompts, answers, scores.tolist(), strict=True))
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    storage.write_bytes(storage.join(run.ctx.folder, "samples", f"{label}.jsonl"), text.encode())


def _evaluation(ctx: StageContext[Rl], label: str) -> str:
    return storage.join(ctx.folder, "evaluations", f"{label}.json")


def _texts(ctx: StageContext[Rl], sequences: list[tuple[int, ...]]) -> list[str]:
    tokenizer = tokenizer_of(ctx)
    texts: list[str] = tokenizer.batch_decode([list(ids) for ids in sequences], skip_special_tokens=True)
    return [text.strip() for text in texts]
