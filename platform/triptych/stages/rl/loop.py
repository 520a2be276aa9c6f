"""The loop of reinforcement learning: steps, evaluations and checkpoints, to the last step or to where a rule fires."""

import logging
from typing import Any

from triptych.observe.metrics import RlMetrics
from triptych.stages.recorder import Recorder
from triptych.stages.rl.evaluation import evaluate
from triptych.stages.rl.flat_groups import warning
from triptych.stages.rl.normalization import normalize_by_policy
from triptych.stages.rl.step import rl_step, seconds_of
from triptych.stages.rl.stopping import write_ending
from triptych.stages.rl.sync import first_sync, sync_others
from triptych.stages.rl.worker import RlWorker, resume, save
from triptych.train import checkpoint
from triptych.train.clock import Clock

SHOWN = ("reward", "kl", "logprob_gap")

log = logging.getLogger(__name__)


def fit(worker: RlWorker) -> dict[str, float]:
    """Train from the last checkpoint to the end; metrics of the weights that it ends with, if prompts are held out.

    Every rank calls it; rank 0 writes.
    """
    done, total, rank = resume(worker), worker.stage.train.steps, worker.learner.group.rank
    with Recorder(worker.ctx, RlMetrics, rank, SHOWN, done=done, total=total) as recorder:
        first_sync(worker, done)
        normalize_by_policy(worker)
        if worker.heldout and done == 0 and _judge(worker, 0, evaluate(worker, "before")):
            save(worker, recorder, 0)
        for step in range(done + 1, total + 1):
            if worker.stopping.stopped:
                break
            _step(worker, recorder, step)
    worker.writer.wait()
    worker.learner.group.barrier()  # what rank 0 commits last, all may read next
    _end(worker)
    return evaluate(worker, "after") if worker.heldout else {}


def _step(worker: RlWorker, recorder: Recorder, step: int) -> None:
    """One step, with the evaluation and the checkpoint that are due after it."""
    train = worker.stage.train
    row = {"step": step} | rl_step(worker, step)
    _tell_of_flat_groups(worker, row.get("flat_groups"))
    clock, evaluated = Clock(), _is_evaluated(worker, step)
    if evaluated:
        row |= evaluate(worker, f"step-{step:08d}")
        clock.lap("evaluate")
    best = _judge(worker, step, row)
    recorder.record(row)
    ends = step == train.steps or worker.stopping.stopped is not None
    pauses = evaluated and worker.ctx.monitor is not None and not ends
    if best or ends or pauses or step % train.checkpoint_every == 0:
        save(worker, recorder, step)
        clock.lap("checkpoint")
    recorder.count(seconds_of(clock))
    if pauses:
        _pause(worker, step)


def _tell_of_flat_groups(worker: RlWorker, share: float | None) -> None:
    """Warn where most prompts of a step teach nothing, for many steps in a row."""
    mean = worker.flat.see(share)
    if mean is not None and worker.learner.group.rank == 0:
        log.warning("stage %s: %s", worker.ctx.name, warning(worker.stage, mean))


def _is_evaluated(worker: RlWorker, step: int) -> bool:
    """Whether held-out prompts are due; the last weights are measured after the loop, unless they may not be kept."""
    train, monitor = worker.stage.train, worker.ctx.monitor
    if not worker.heldout:
        return False
    if step == train.steps:
        return worker.stopping.keeps_best
    due = train.evaluate_every is not None and step % train.evaluate_every == 0
    return due or (monitor is not None and monitor.wants(step))


def _judge(worker: RlWorker, step: int, row: dict[str, Any]) -> bool:
    """Give the rules the numbers of rank 0; True if the evaluation is the best so far."""
    stopping, group = worker.stopping, worker.learner.group
    if not stopping.rules:
        return False
    seen = {name: value for name, value in row.items() if isinstance(value, float)} | {"seconds": stopping.seconds}
    return stopping.judge(step, group.broadcast(seen))


def _pause(worker: RlWorker, step: int) -> None:
    """Let the stage's monitor say when to go on; the other ranks wait for rank 0 in their next collective."""
    worker.writer.wait()
    if worker.ctx.monitor is not None and worker.learner.group.rank == 0:
        worker.ctx.monitor.evaluated(step)


def _end(worker: RlWorker) -> None:
    """Go back to the best weights where they are kept, in learner and engines, and say which rule ended the stage."""
    stopping, stopped = worker.stopping, worker.stopping.stopped
    best = stopping.best_step
    if best is not None and best != stopping.step:
        found = checkpoint.load(worker.ctx.checkpoints, best)
        sync_others(worker, stopping.step + 1, lambda: worker.learner.load_state(found.tensors, found.state["learner"]))
    if worker.learner.group.rank == 0 and stopping.rules:
        write_ending(worker.ctx, stopping)
        if stopped is not None:
            kept = "the last weights are kept" if best is None else f"the weights of step {best} are kept"
            log.warning(
                "stage %s ended at step %d by train.stopping.%s: %s; %s",
                worker.ctx.name,
                stopped.step,
                stopped.rule,
                stopped.why,
                kept,
            )
