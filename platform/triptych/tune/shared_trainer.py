"""Actor of a shared base: one model, one thread that trains it, and trials that join and leave."""

import asyncio
import logging
import math
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.recipe import Workers
from triptych.stages.context import StageContext
from triptych.stages.models import role_model
from triptych.stages.supervised.training import Learn
from triptych.train.allocator import allocator_variables
from triptych.train.stepping import LockstepTrainings
from triptych.tune.executor import RendezvousMonitor

_POLL_S = 0.05

log = logging.getLogger(__name__)


def start_trainer(workers: Workers) -> Any:
    """Start the actor with the resources of one worker; if it dies, trials continue from checkpoints in another."""
    actor = ray.remote(SharedTrainer).options(
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        max_restarts=workers.max_restarts,
        max_task_retries=workers.max_restarts,
        runtime_env={"env_vars": allocator_variables()},
    )
    return actor.remote(workers.threads or math.ceil(workers.cpus), "cuda" if workers.gpus else "cpu")


@dataclass
class _Member:
    """A trial that trains in the actor."""

    ctx: StageContext[Any]
    learn: Learn
    done: "Future[None]" = field(default_factory=Future)
    resumed: Any = None
    """Future of the driver's `resume`; None while the trial may train."""


@dataclass(frozen=True)
class _Parking:
    """A stage's `Monitor` that returns at once; `_may_go_on` holds the member back in its stead."""

    at: RendezvousMonitor
    member: _Member

    def wants(self, step: int) -> bool:
        """Same as of the monitor that it stands for."""
        return self.at.wants(step)

    def evaluated(self, step: int) -> None:
        """Report the evaluation to the rendezvous, and let the member wait for the driver."""
        self.member.resumed = self.at.rendezvous.evaluated.remote(step)


class SharedTrainer:
    """State of the actor. Calls queue functions for the thread that trains, and wait for their result."""

    def __init__(self, threads: int, device: str) -> None:
        self._device = torch.device(device)
        self._model: RoleModel | None = None
        self._side = LockstepTrainings()
        self._members: dict[str, _Member] = {}
        self._news: queue.Queue[Callable[[], None]] = queue.Queue()
        threading.Thread(target=self._run, args=(threads,), daemon=True).start()

    async def train(self, ctx: StageContext[Any], learn: Learn) -> None:
        """Train a stage to its end, and raise what it raises; returns early if the trial is dropped."""
        member = _Member(ctx, learn)
        self._news.put(lambda: self._join(member))
        await asyncio.wrap_future(member.done)

    async def drop(self, name: str) -> None:
        """Remove a trial; returns when its role has left the model."""
        gone: Future[None] = Future()

        def leave() -> None:
            self._leave(name)
            gone.set_result(None)

        self._news.put(leave)
        await asyncio.wrap_future(gone)

    def _run(self, threads: int) -> None:
        """Body of the thread that trains. An error in it ends the process; Ray starts another for the trials."""
        torch.set_num_threads(threads)
        try:
            while True:
                self._turn()
        except BaseException:
            log.exception("the trainer of a shared base")
            os._exit(1)

    def _turn(self) -> None:
        """Take one step of every trial that may."""
        self._hear()
        ready = [name for name, member in self._members.items() if self._may_go_on(name, member)]
        if ready:
            most = max(self._members[name].ctx.stage.train.batch.micro_tokens for name in ready)
            self._side.step(ready, most)
        self._settle()

    def _hear(self) -> None:
        """Run the functions that calls queued; wait for one, or for a moment, while no trial can continue."""
        waiting = [member.resumed for member in self._members.values()]
        if not self._members:
            self._news.get()()
        elif None not in waiting:
            ray.wait(waiting, timeout=_POLL_S)
        while not self._news.empty():
            self._news.get()()

    def _join(self, member: _Member) -> None:
        ctx, name = member.ctx, member.ctx.recipe.name
        self._leave(name)
        self._members[name] = member
        if isinstance(ctx.monitor, RendezvousMonitor):
            ctx = replace(ctx, monitor=_Parking(ctx.monitor, member))
        if self._model is None:
            self._model = role_model(ctx, ctx.stage.train.memory, self._device)
        torch.manual_seed(ctx.recipe.seed)  # as a model of its own begins
        self._side.start(name, member.learn(ctx, self._model, name))
        if name in self._model.trainable and not self._model.can_stand_beside(name):
            base = ctx.recipe.model.base
            self._end(name, UserError(f"sweep.shared_base: {base} has layers that cannot be shared"))

    def _may_go_on(self, name: str, member: _Member) -> bool:
        """True if a trial has a step to take and its driver let it continue; ends a trial whose driver is gone."""
        if name in self._side.ended:
            return False
        if member.resumed is None:
            return True
        if not ray.wait([member.resumed], timeout=0)[0]:
            return False
        try:
            ray.get(member.resumed)
        except RayError:
            self._end(name, None)
            return False
        member.resumed = None
        return True

    def _end(self, name: str, error: Exception | None) -> None:
        self._side.stop(name)
        self._side.ended[name] = error

    def _settle(self) -> None:
        """Remove the trials whose training has ended."""
        for name, error in list(self._side.ended.items()):
            self._leave(name, error)

    def _leave(self, name: str, error: Exception | None = None) -> None:
        """Remove a trial, if it is here, and finish the call that brought it."""
        self._side.stop(name)
        self._side.ended.pop(name, None)
        if self._model is not None and name in self._model.trainable:
            self._model.remove(name)
        member = self._members.pop(name, None)
        if member is None or member.done.done():
            return
        if error is None:
            member.done.set_result(None)
        else:
            member.done.set_exception(error)
