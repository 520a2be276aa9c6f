"""Optimiser steps of several learners whose roles sit on one frozen base, in passes over the rows of all of them.

A frozen layer then reads its weight once for many trials' rows, and what a pass costs beside its arithmetic is paid
once, as in mLoRA (Ye et al. 2023, arXiv 2312.02515). Everything else is each learner's own: its loss, clipping,
optimizer, schedule. What a learner computes does not depend on the others: no row meets another role's weights.
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
from triptych.train.usage import work_of

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """A step that a learner is to take."""

    learner: Learner
    objective: Objective
    micro_batches: Sequence[Batch | None]

    def alone(self) -> StepReport:
        """Take it in passes of its own."""
        return self.learner.step(self.objective, self.micro_batches)


Steps = Generator[Ask, StepReport, T]
"""A training: it asks for its steps one after another, and is sent what became of each."""


def take(steps: Steps[T]) -> T:
    """Train to the end, each step in passes of its own."""
    try:
        ask = next(steps)
        while True:
            try:
                report = ask.alone()
            except BaseException as error:  # noqa: BLE001 - the training is told, and raises it
                ask = steps.throw(error)
            else:
                ask = steps.send(report)
    except StopIteration as end:
        result: T = end.value
        return result


class SideBySide:
    """Trainings on one model that take their steps together. They come and go; an error ends its own training alone."""

    def __init__(self) -> None:
        self._steps: dict[str, Steps[None]] = {}
        self._asks: dict[str, Ask] = {}
        self.ended: dict[str, Exception | None] = {}
        """What ended each training that has ended: an error, or its last step. The caller takes them out."""

    def start(self, name: str, steps: Steps[None]) -> None:
        """Bring a training to its first step."""
        self._steps[name] = steps
        self._advance(name, lambda: next(steps))

    def stop(self, name: str) -> None:
        """End a training where it stands."""
        if name in self._steps:
            self._forget(name).close()

    def step(self, names: Collection[str], pass_tokens: int) -> None:
        """Take the next step of these trainings, and bring them to the one after it."""
        asks = [self._asks.pop(name) for name in names]
        found: Sequence[StepReport | Exception]
        try:
            found = step_together(asks, pass_tokens)
        except Exception as error:  # noqa: BLE001 - of a pass, and so of all
            found = [error] * len(asks)
        for name, report in zip(names, found, strict=True):
            steps = self._steps[name]
            if isinstance(report, StepReport):
                self._advance(name, partial(steps.send, report))
            else:
                self._advance(name, partial(steps.throw, report))

    def _advance(self, name: str, onwards: Callable[[], Ask]) -> None:
        try:
            self._asks[name] = onwards()
        except StopIteration:
            self._forget(name)
            self.ended[name] = None
        except Exception as error:  # noqa: BLE001 - the caller is told
            self._forget(name)
            self.ended[name] = error

    def _forget(self, name: str) -> Steps[None]:
        self._asks.pop(name, None)
        return self._steps.pop(name)


@dataclass
class _Share:
    """One step's part of the passes."""

    ask: Ask
    batches: list[Batch]
    denominators: Sums
    metrics: list[Metrics] = field(default_factory=list)
    tokens: int = 0

    @property
    def role(self) -> str:
        return self.ask.objective.role

    def loss(self, batch: Batch) -> Tensor:
        """Of one micro-batch, scaled as the learner's strategy wants it."""
        learner = self.ask.learner
        with learner.model.use(self.role):
            loss, measured = learner.loss(self.ask.objective, batch, self.denominators)
        self.metrics.append(measured)
        return loss * learner.strategy.loss_factor(self.role)


Pass = list[tuple[_Share, Batch]]


def step_together(asks: Sequence[Ask], pass_tokens: int) -> list[StepReport | RunError]:
    """Take the steps of several learners on one model, one rank, each of a role of its own; what became of each.

    A pass has at most `pass_tokens` tokens, or one micro-batch. A report's seconds are the step's own share of the
    passes by its tokens, and as `beside` the time that went to the other steps. An error is that of its step alone:
    the others have taken theirs.
    """
    if len(asks) == 1:
        return [_caught(asks[0].alone)]
    model = asks[0].learner.model
    clock = Clock(model.device)
    shares = [_share(ask) for ask in asks]
    clock.lap("data")
    for rows in _passes(shares, pass_tokens):
        with model.side_by_side({share.role: (batch["ids"], batch["mask"]) for share, batch in rows}):
            losses = [share.loss(batch) for share, batch in rows]
            clock.lap("forward")
            torch.stack(losses).sum().backward()
            clock.lap("backward")
    return _updated(shares, clock.seconds)


def _share(ask: Ask) -> _Share:
    learner = ask.learner
    learner.model.train(learner.dropout)
    batches = [learner.placed(batch) for batch in ask.micro_batches if batch is not None]
    return _Share(ask, batches, learner.denominators(ask.objective, batches))


def _passes(shares: Sequence[_Share], pass_tokens: int) -> Iterator[Pass]:
    """Every step's micro-batches in their order, at most one of each step in a pass."""
    filling: Pass = []
    room = pass_tokens
    for rows in zip_longest(*(share.batches for share in shares)):
        for share, batch in zip(shares, rows, strict=True):
            if batch is None:
                continue
            tokens = _tokens(batch, packing=share.ask.learner.model.packing)
            share.tokens += tokens
            if filling and (tokens > room or any(other is share for other, _ in filling)):
                yield filling
                filling, room = [], pass_tokens
            filling.append((share, batch))
            room -= tokens
    if filling:
        yield filling


def _tokens(batch: Batch, *, packing: bool) -> int:
    """That a pass computes of a batch."""
    return int(work_of(batch, shared=True).tokens) if packing else batch["ids"].numel()


def _updated(shares: Sequence[_Share], spent: dict[str, float]) -> list[StepReport | RunError]:
    """Every learner's own part of its step, behind the passes that took so many seconds."""
    found = []
    tokens = sum(share.tokens for share in shares)
    for share in shares:
        learner, clock = share.ask.learner, Clock(share.ask.learner.model.device)
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
