"""The policy's weights into the engines, and the proof, every time, that the engines run them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor

from triptych.engines.base import Logprobs
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.methods.freeze import whole_tables
from triptych.models.adapter import peft_json
from triptych.models.adapter_effect import LARGEST_GAP
from triptych.models.full import in_buckets
from triptych.models.stored import stored_in_turn
from triptych.recipe import POLICY
from triptych.rollout.coordinator import SyncReport
from triptych.rollout.sync_check import check_sync
from triptych.rollout.trajectory import Trajectory
from triptych.stages.rl.worker import RlWorker
from triptych.stages.whole_model import WholeModel
from triptych.train.batch import Batch, sample_batch
from triptych.train.tasks.forward import response_logprobs

PROBES = 4
"""Answers whose log-probabilities engines and learner are asked for after a sync."""


@dataclass(frozen=True)
class Probe:
    """Fixed sequences, and the learner's log-probabilities of their answers before an update."""

    prompts: list[list[int]]
    answers: list[list[int]]
    before: Logprobs | None
    """None: nobody can compute them."""


def probe(worker: RlWorker, records: Sequence[Trajectory], role: str = POLICY) -> Probe:
    """Ask the learner about some answers, as `role`.

    Engines score sequences that are shorter than their context: what fills it loses its first tokens.
    """
    room = worker.stage.shape().context - 1
    prompts = [list(r.prompt_ids)[max(len(r.prompt_ids) + len(r.response_ids) - room, 0) :] for r in records]
    answers = [list(r.response_ids) for r in records]
    return Probe(prompts, answers, _learner_logprobs(worker, role, prompts, answers))


def first_sync(worker: RlWorker, version: int) -> None:
    """Before any answer is there: prompts cut in two stand for answers, and what engines start with for old weights."""
    sync_policy(worker, version, _halved(worker, worker.sampled_first))


def sync_others(worker: RlWorker, version: int, load: Callable[[], None]) -> None:
    """Let `load` give the policy other weights, and send them to every engine as `version`."""
    before = _halved(worker, POLICY)
    load()
    sync_policy(worker, version, before)


def sync_policy(worker: RlWorker, version: int, asked: Probe) -> dict[str, float]:
    """Send the policy to every engine as `version`.

    Raises:
        RunError: an engine still runs older weights, or others.
    """
    learner = worker.learner
    now = _learner_logprobs(worker, POLICY, asked.prompts, asked.answers)
    metrics: dict[str, float] = {}
    report = _send(worker, version)
    worker.version = version
    if report is not None:
        sequences = [p + a for p, a in zip(asked.prompts, asked.answers, strict=True)]
        engines = worker.pool.logprobs(sequences, [len(prompt) for prompt in asked.prompts])
        check = check_sync(engines, now, asked.before, LARGEST_GAP[worker.ctx.recipe.model.dtype])
        restarts = float(worker.pool.stats()["restarts"])
        metrics = {"sync_seconds": report.seconds, "sync_gap": check.gap, "engine_restarts": restarts}
    return learner.group.broadcast(metrics)


def _halved(worker: RlWorker, role: str | None) -> Probe:
    """Prompts cut in two, the second half as the answer, and what the learner says of it as `role`, if there is one."""
    whole = [prompt.input_ids for prompt in worker.prompts[:PROBES]]
    prompts, answers = [ids[: len(ids) // 2] for ids in whole], [ids[len(ids) // 2 :] for ids in whole]
    return Probe(prompts, answers, None if role is None else _learner_logprobs(worker, role, prompts, answers))


def _send(worker: RlWorker, version: int) -> SyncReport | None:
    """Send the policy to every engine. Every rank calls it; rank 0 gets the pool's report."""
    learner, policy, dtype = worker.learner, worker.policy, worker.learner.model.dtype
    if isinstance(policy, WholeModel):
        trained = _stored(worker, policy, learner.weights_in_turn(POLICY))
        if learner.group.rank == 0:
            return worker.pool.replace(in_buckets(trained, dtype), version)
        deque(trained, maxlen=0)  # rank 0 gathers each tensor from all
        return None
    weights = learner.weights(POLICY)
    if learner.group.rank != 0:
        return None
    adapter = adapter_of(policy.method, weights, worker.stage.output)
    if adapter.is_lora:  # and not of experts
        tensors = {name: value.contiguous() for name, value in adapter.weights.items()}
        return worker.pool.sync(save(tensors), peft_json(adapter.configs["lora"]), version)
    changed = worker.weight_changes(adapter.method).of(adapter.weights)
    return worker.pool.replace(in_buckets(changed.items(), dtype), version)


def _stored(
    worker: RlWorker, policy: WholeModel, trained: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """What a whole policy trains, by the names and in the form of the files that the engines started with."""
    folder = policy.folder or worker.ctx.base_dir
    model = worker.learner.model.lm
    return stored_in_turn(model, whole_tables(policy.method, folder, trained), folder)


def _learner_logprobs(worker: RlWorker, role: str, prompts: list[list[int]], answers: list[list[int]]) -> Logprobs:
    """Log-probabilities at temperature 1 of each answer's tokens."""

    def compute(model: RoleModel, batch: Batch) -> Tensor:
        return response_logprobs(model, batch, temperature=1.0)

    rows = worker.learner.forward(role, compute, sample_batch(prompts, answers, worker.pad)).float().tolist()
    return [row[: len(answer)] for row, answer in zip(rows, answers, strict=True)]
