"""Trainings as generators of step requests, so that several can take their steps in passes over one frozen base.

Why a generator: a training loop yields a `StepRequest` where it would call `learner.step`, and is sent the report. So
whoever drives it decides how the step is computed: `run_training` takes every step by itself, `LockstepTrainings`
takes those of several trials together (batched multi-LoRA, as in mLoRA, Ye et al. 2023, arXiv 2312.02515), in one
thread and in an order that does not depend on timing. A frozen layer then reads its weight once for many trials' rows,
and a pass's fixed costs are paid once. Everything else is each learner's own: its loss, clipping, optimizer, schedule.
What a learner computes does not depend on the others: no row meets another role's weights.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from triptych.errors import RunError
from triptych.train.batch import Batch
from triptych.train.clock import Clock
from triptych.train.learner import Learner, Metrics, Objective, StepReport, Sums
from triptych.train.usage import token_counts

T = TypeVar("T")


@dataclass(frozen=True)
class StepRequest:
    """An optimiser step that a training wants taken: the arguments of `Learner.step`."""

    learner: Learner
    objective: Objective
    micro_batches: Sequence[Batch | None]

    def run(self) -> StepReport:
        """Take the step in passes of its own."""
        return self.learner.step(self.objective, self.micro_batches)


TrainingSteps = Generator[StepRequest, StepReport, T]
"""A training that yields its steps one after another, is sent the report of each, and returns a `T`."""


def run_training(steps: TrainingSteps[T]) -> T:
    """Run a training to its end, each step in passes of its own. An error of a step is raised inside the training."""
    try:
        request = next(steps)
        while True:
            try:
                report = request.run()
            except BaseException as error:  # noqa: BLE001 - the training is told, and raises it
                request = steps.throw(error)
            else:
                request = steps.send(report)
    except StopIteration as end:
        result: T = end.value
        return result


class LockstepTrainings:
    """Trainings on one model that take their steps together, and may join and leave between steps.

    An error of one step ends its own training; an error of a shared pass is thrown into all that took part.
    """

    def __init__(self) -> None:
        self._steps: dict[str, TrainingSteps[None]] = {}
        self._requests: dict[str, StepRequest] = {}
        self.ended: dict[str, Exception | None] = {}
        """Ended trainings, with the error that ended each, or None after its last step. The caller takes them out."""

    def start(self, name: str, steps: TrainingSteps[None]) -> None:
        """Add a training under `name`, and bring it to its first step."""
        self._steps[name] = steps
        self._advance(name, lambda: next(steps))

    def stop(self, name: str) -> None:
        """End a training where it stands, if there is one of this name."""
        if name in self._steps:
            self._forget(name).close()

    def step(self, names: Collection[str], pass_tokens: int) -> None:
        """Take the next step of these trainings, and bring each to the one after it.

        `pass_tokens`: as `step_together` takes it.
        """
        requests = [self._requests.pop(name) for name in names]
        found: Sequence[StepReport | Exception]
        try:
            found = step_together(requests, pass_tokens)
        except Exception as error:  # noqa: BLE001 - of a pass, and so of all
            found = [error] * len(requests)
        for name, report in zip(names, found, strict=True):
            steps = self._steps[name]
            if isinstance(report, StepReport):
                self._advance(name, partial(steps.send, report))
            else:
                self._advance(name, partial(steps.throw, report))

    def _advance(self, name: str, onwards: Callable[[], StepRequest]) -> None:
        try:
            self._requests[name] = onwards()
        except StopIteration:
            self._forget(name)
            self.ended[name] = None
        except Exception as error:  # noqa: BLE001 - the caller is told
            self._forget(name)
            self.ended[name] = error

    def _forget(self, name: str) -> TrainingSteps[None]:
        self._requests.pop(name, None)
        return self._steps.pop(name)


@dataclass
class _Share:
    """One step's part of the passes."""

    request: StepRequest
    batches: list[Batch]
    denominators: Sums
    metrics: list[Metrics] = field(default_factory=list)
    tokens: int = 0

    @property
    def role(self) -> str:
        return self.request.objective.role

    def loss(self, batch: Batch) -> Tensor:
        """Loss of one micro-batch, scaled as the learner's strategy wants it."""
        learner = self.request.learner
        with learner.model.use(self.role):
            loss, measured = learner.loss(self.request.objective, batch, self.denominators)
        self.metrics.append(measured)
        return loss * learner.strategy.loss_factor(self.role)


_SharedPass = list[tuple[_Share, Batch]]


def step_together(requests: Sequence[StepRequest], pass_tokens: int) -> list[StepReport | RunError]:
    """Take the steps of several learners on one model, one rank, each with its own role; the report or error of each.

    A pass has at most `pass_tokens` tokens, or one micro-batch. A report's seconds are the step's own share of the
    passes by its tokens, and as `beside` the time that went to the other steps. An error is that of its step alone:
    the others have taken theirs.
    """
    if len(requests) == 1:
        return [_caught(requests[0].run)]
    model = requests[0].learner.model
    clock = Clock(model.device)
    shares = [_share(request) for request in requests]
    clock.lap("data")
    for rows in _passes(shares, pass_tokens):
        with model.side_by_side({share.role: (batch["ids"], batch["mask"]) for share, batch in rows}):
            losses = [share.loss(batch) for share, batch in rows]
            clock.lap("forward")
            torch.stack(losses).sum().backward()
            clock.lap("backward")
    return _updated(shares, clock.seconds)


def _share(request: StepRequest) -> _Share:
    learner = request.learner
    learner.model.train(learner.dropout)
    placed = [(learner.placed(batch), True) for batch in request.micro_batches if batch is not None]
    batches = [batch for batch, _ in learner.surveyed(request.objective, placed)]
    return _Share(request, batches, learner.denominators(request.objective, batches))


def _passes(shares: Sequence[_Share], pass_tokens: int) -> Iterator[_SharedPass]:
    """Every step's micro-batches in their order, at most one of each step in a pass."""
    filling: _SharedPass = []
    room = pass_tokens
    for rows in zip_longest(*(share.batches for share in shares)):
        for share, batch in zip(shares, rows, strict=True):
            if batch is None:
                continue
            tokens = _tokens(batch, packing=share.request.learner.model.packing)
            share.tokens += tokens
            if filling and (tokens > room or any(other is share for other, _ in filling)):
                yield filling
                filling, room = [], pass_tokens
            filling.append((share, batch))
            room -= tokens
    if filling:
        yield filling


def _tokens(batch: Batch, *, packing: bool) -> int:
    """Tokens that a pass computes for a batch: without padding and shared prefixes, where rows are packed."""
    return int(token_counts(batch, shared=True).tokens) if packing else batch["ids"].numel()


def _updated(shares: Sequence[_Share], spent: dict[str, float]) -> list[StepReport | RunError]:
    """Update every learner after the shared passes, which took `spent` seconds by part; reports or errors in order."""
    found = []
    tokens = sum(share.tokens for share in shares)
    for share in shares:
        learner, clock = share.request.learner, Clock(share.request.learner.model.device)
        report = _caught(lambda: learner.update(share.role, learner.reduced(share.metrics), clock))  # noqa: B023
        if isinstance(report, StepReport):
            own = {part: seconds * share.tokens / tokens for part, seconds in spent.items()}
            report.seconds.update(own, beside=sum(spent.values()) - sum(own.values()), communication=0.0)
        found.append(report)
    return found


def _caught(step: Callable[[], StepReport]) -> StepReport | RunError:
    try:
        return step()
    except RunError as error:
        return error
