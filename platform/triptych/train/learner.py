"""The learner: the same optimiser step for every objective and every strategy. Torch only.

One denominator: an objective gives sums, and the global count that each is divided by is known before any forward.
So the gradient is the same however a batch is cut into micro-batches and over ranks.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from triptych.errors import RunError
from triptych.forward.roles import RoleModel
from triptych.methods.apply import without_prefix
from triptych.methods.base import Attachment
from triptych.recipe import Optimizer
from triptych.recipe.training import StrategyChoice
from triptych.train.batch import Batch
from triptych.train.clock import Clock
from triptych.train.group import Group
from triptych.train.optimizer import learning_rate
from triptych.train.strategies import Slice, make_strategy
from triptych.train.strategies.base import BUFFER, Update

Sums = dict[str, Tensor]
"""Name -> sum over the batch, a scalar."""
Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, weight): the metric is their quotient over all micro-batches and ranks."""

MAX_BAD_STEPS = 5
"""Steps in a row without a finite gradient, at any loss scale, that end a run."""

log = logging.getLogger(__name__)


class Objective(Protocol):
    """A loss that one optimiser step minimises, and the role that it trains."""

    @property
    def role(self) -> str:
        """The role that is trained."""

    def denominators(self, batch: Batch) -> Sums:
        """Divisor of each sum of `loss`, a scalar, from the batch alone; summed over micro-batches and ranks."""

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        """Sums with the same keys as `denominators`; the loss is the sum of sums[k] / denominators[k]."""


@runtime_checkable
class SurveyingObjective(Objective, Protocol):
    """An objective whose loss needs numbers of the whole step, such as a mean over all rows of all ranks."""

    def survey(self, model: RoleModel, batch: Batch) -> Metrics:
        """Sums and weights of numbers; `loss` finds the quotient of each, over the whole step, as a column [B].

        A pass before the loss's, without gradients and without dropout.
        """


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: metrics over the global batch, and the seconds of its parts."""

    metrics: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class LearnerState:
    """Tensors and counters from which `Learner.load_state` goes on exactly."""

    slices: list[Slice]
    """This rank's share of the tensors."""
    numbers: dict[str, Any]
    """The same on every rank."""


class Learner:
    """Updates the trainable roles of a model; every trainable role has an optimiser of its own."""

    def __init__(
        self,
        model: RoleModel,
        optimizers: Mapping[str, Optimizer],
        total_steps: Mapping[str, int],
        group: Group | None = None,
        *,
        dropout: bool = False,
        strategy: StrategyChoice = "auto",
        offload: bool = False,
        max_bad_steps: int = MAX_BAD_STEPS,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Spread the model over the ranks, and make an optimizer for each role.

        Args:
            model: the base with every role attached. A strategy may shard it in place, so roles are added before.
            optimizers: settings of the optimizer of each role that is trained; its keys are the learner's roles.
            total_steps: optimiser steps of each role over the whole run, for its learning-rate schedule.
            group: the ranks that train together; None: the default process group.
            dropout: turn dropout on in `accumulate`. PPO trains without: its ratios compare two passes over one batch.
            strategy: how parameters, gradients and optimizer state lie on the ranks; `auto`: whole on each.
            offload: keep what `strategy` shards in CPU memory.
            max_bad_steps: steps in a row without a finite gradient after which `step` raises. Those that lower
                float16's loss scale are not counted.
            names: names of the roles in checkpoints, where they differ from those on this model.
        """
        self.model = model
        self.group = group or Group()
        self.strategy = make_strategy(strategy, model, optimizers, self.group, offload=offload)
        self._config = dict(optimizers)
        self._total = dict(total_steps)
        self._steps = dict.fromkeys(optimizers, 0)
        self._bad_steps = dict.fromkeys(optimizers, 0)
        self._max_bad_steps = max_bad_steps
        self._names = {role: role for role in optimizers} | dict(names or {})
        self.dropout = dropout

    def step(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> StepReport:
        """One optimiser step. None stands for an empty micro-batch: ranks have equally many.

        A step without a finite gradient is skipped and counted (`skipped`). Where a loss scale stood above 1 it is
        lowered: steps that search for it are no sign of divergence.

        Raises:
            RunError: `max_bad_steps` such steps in a row.
        """
        clock = Clock(self.model.device)
        return self.update(objective.role, self.accumulate(objective, micro_batches, clock), clock)

    def update(self, role: str, metrics: Mapping[str, float], clock: Clock) -> StepReport:
        """Update a role from the gradients of `accumulate`, whose result is `metrics`; the second half of a step."""
        adaptive = self._adaptive(role)
        gradients = self.strategy.gradients(role) if adaptive else {}
        rate = learning_rate(self._config[role], self._steps[role], self._total[role])
        update = self.strategy.update(role, rate)
        if adaptive and math.isfinite(update.norm):
            self._adapt(role, adaptive, gradients, update.norm)
        self._steps[role] += 1
        self._count_bad(role, update)
        clock.lap("optimizer")
        own = {"grad_norm": update.norm, "learning_rate": rate, "skipped": float(not math.isfinite(update.norm))}
        own |= {name: value for part in adaptive.values() for name, value in part.metrics().items()}
        return StepReport({**metrics, **own}, clock.seconds)

    def accumulate(
        self, objective: Objective, micro_batches: Sequence[Batch | None], clock: Clock | None = None
    ) -> dict[str, float]:
        """Put the global gradient, or this rank's share of it, into the role's parameters; return global metrics."""
        clock, role = clock or Clock(), objective.role
        placed = [None if batch is None else self.placed(batch) for batch in micro_batches]
        self.model.train(self.dropout)
        for part in self.model.attached[role].values():
            part.begin(self._steps[role])
        clock.lap("data")
        denominators = self.denominators(objective, [batch for batch in placed if batch is not None])
        batches = self._lockstep(placed)
        metrics: list[Metrics] = []
        self._penalize(role, self._penalty_share(role, batches))
        clock.lap("communication")
        batches = self.surveyed(objective, batches)
        clock.lap("forward")
        for number, (batch, real) in enumerate(batches):
            with self.model.use(role):  # the backward pass too: it may compute activations again
                loss, measured = self.loss(objective, batch, denominators)
                clock.lap("forward")
                self.strategy.backward(role, loss if real else loss * 0, last=number == len(batches) - 1)
                clock.lap("backward")
            if number == 0:
                self._penalize(role, 0.0)
            if real:
                metrics.append(measured)
        self.strategy.reduce_gradients(role)
        found = self.reduced(metrics)
        clock.lap("communication")
        return found

    def denominators(self, objective: Objective, batches: Iterable[Batch]) -> Sums:
        """Divisors of the sums of a step's loss, over all micro-batches and ranks."""
        return self._sum_over_all((objective.denominators(batch) for batch in batches), 1)

    def loss(self, objective: Objective, batch: Batch, denominators: Sums) -> tuple[Tensor, Metrics]:
        """A micro-batch's share of a step's loss, and its metrics; the objective's role is in use."""
        sums, measured = self._forward(objective.role, partial(objective.loss, self.model, batch))
        return torch.stack([total / denominators[name].to(total) for name, total in sums.items()]).sum(), measured

    @torch.no_grad()
    def surveyed(self, objective: Objective, batches: list[tuple[Batch, bool]]) -> list[tuple[Batch, bool]]:
        """A step's micro-batches, with the numbers of the whole step that the objective asks for. Collective."""
        if not isinstance(objective, SurveyingObjective):
            return batches
        training = self.model.training
        self.model.eval()
        found = []
        for batch, real in batches:
            with self.model.use(objective.role):
                measured = self._forward(objective.role, partial(objective.survey, self.model, batch))
            found += [measured] if real else []
        self.model.train(training)
        numbers = self.reduced(found)
        return [(batch | _constant_columns(batch, numbers), real) for batch, real in batches]

    @torch.no_grad()
    def evaluate(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> dict[str, float]:
        """The objective's metrics over all ranks' batches, nothing updated."""
        metrics: list[Metrics] = []
        placed = [None if batch is None else self.placed(batch) for batch in micro_batches]
        with self.evaluating():
            for batch, real in self.surveyed(objective, self._lockstep(placed)):
                with self.model.use(objective.role):
                    measured = self._forward(objective.role, partial(objective.loss, self.model, batch))[1]
                if real:
                    metrics.append(measured)
        return self.reduced(metrics)

    @torch.no_grad()
    def forward(self, role: str, compute: Callable[[RoleModel, Batch], Tensor], batch: Batch) -> Tensor:
        """`compute` of one batch as `role`, without gradients."""
        with self.evaluating(), self.model.use(role):
            return self._forward(role, partial(compute, self.model, self.placed(batch)))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context without dropout, and with the weights that the optimizer ends at. Does not nest."""
        self.model.eval()
        self.strategy.averaging(on=True)
        try:
            yield
        finally:
            self.strategy.averaging(on=False)

    def settle(self) -> None:
        """Bring roles to what their methods promise (AdaLoRA: its target rank), once training has ended. Collective."""
        for role in self._config:
            if adaptive := self._adaptive(role):
                values = self.strategy.values(role)
                for prefix, part in adaptive.items():
                    self._assign(role, prefix, part.settle(without_prefix(values, prefix)))

    def gradients(self, role: str) -> dict[str, Tensor]:
        """Full float32 gradients of a role, between `accumulate` and an update; zero where nothing flowed."""
        return self.strategy.gradients(role)

    def weights(self, role: str) -> dict[str, Tensor]:
        """A role's full trained parameters, and what its method keeps beside, by name; on the CPU. Collective."""
        with self.evaluating():
            named = self.strategy.values(role) | self.model.buffers_of(role)
            return {name: value.detach().cpu() for name, value in named.items()}

    def weights_in_turn(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """A role's full trained parameters one at a time, by name, on the CPU. Collective: every rank takes them all.

        No process holds all of them at once. They are those that the optimizer trains at.
        """
        for name in self.strategy.parameters[role]:
            yield name, self.strategy.value(role, name).detach().cpu()

    @property
    def loaded_bytes(self) -> int:
        """Memory that is held with this process's share of the base, and nothing else."""
        return self.model.loaded_bytes

    @property
    def each(self) -> "tuple[Learner]":
        """This learner, as one of one model."""
        return (self,)

    def state(self) -> LearnerState:
        """This rank's tensors, and counters, from which `load_state` goes on exactly."""
        beside = [Slice(name, tuple(b.shape), 0, b.reshape(-1)) for name, b in self._buffers() if self.group.rank == 0]
        slices = [replace(own, name=_renamed(own.name, self._names)) for own in (*self.strategy.slices(), *beside)]
        counters = {"steps": self._steps, "bad_steps": self._bad_steps}
        named = {key: {self._names[role]: n for role, n in counts.items()} for key, counts in counters.items()}
        return LearnerState(slices, named)

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from whole tensors, whatever strategy and however many ranks wrote them."""
        roles = {name: role for role, name in self._names.items()}
        if any(name != role for name, role in roles.items()):
            tensors = {_renamed(name, roles): tensor for name, tensor in tensors.items()}
        self.strategy.load(tensors)
        for name, buffer in self._buffers():
            buffer.copy_(tensors[name])
        self._steps = {roles[name]: count for name, count in numbers["steps"].items()}
        earlier = dict.fromkeys(roles, 0)  # versions before kept no count of bad steps
        self._bad_steps = {roles[name]: count for name, count in numbers.get("bad_steps", earlier).items()}

    def _adaptive(self, role: str) -> dict[str, Attachment]:
        """The parts of a role's method that follow its training, by what stands before their names."""
        return {prefix: part for prefix, part in self.model.attached[role].items() if part.adaptive}

    def _penalty_share(self, role: str, batches: Sequence[tuple[Batch, bool]]) -> float:
        """Factor of a penalty on this rank, chosen so that over all ranks that run something it is added once."""
        if not self._adaptive(role):
            return 0.0
        running = sum(row[0] for row in self.group.table([float(bool(batches))], self.model.device))
        return self.strategy.loss_factor(role) / max(running, 1.0)

    def _penalize(self, role: str, factor: float) -> None:
        for part in self._adaptive(role).values():
            part.penalize(factor)

    def _adapt(
        self, role: str, adaptive: Mapping[str, Attachment], gradients: Mapping[str, Tensor], norm: float
    ) -> None:
        """Overwrite what the role's method says after an update, from the gradients as they were clipped."""
        clip = min(1.0, self._config[role].max_grad_norm / (norm + 1e-6))
        values = self.strategy.values(role)
        for prefix, part in adaptive.items():
            own, clipped = without_prefix(values, prefix), without_prefix(gradients, prefix)
            clipped = {name: gradient * clip for name, gradient in clipped.items()}
            self._assign(role, prefix, part.adapt(self._steps[role], self._total[role], own, clipped))

    def _assign(self, role: str, prefix: str, changed: Mapping[str, Tensor]) -> None:
        """Overwrite parameters of the part of a role's method whose names begin with `prefix`."""
        self.strategy.assign(role, {f"{prefix}{name}": value for name, value in changed.items()})

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Buffers of the trained roles' methods, by their names in a checkpoint."""
        return [(f"{role}/{BUFFER}/{n}", b) for role in self._config for n, b in self.model.buffers_of(role).items()]

    def _forward(self, role: str, compute: Callable[[], Any]) -> Any:
        def in_precision() -> Any:
            with self.model.autocast():
                return compute()

        return self.strategy.run(role, in_precision)

    def placed(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _lockstep(self, batches: Sequence[Batch | None]) -> list[tuple[Batch, bool]]:
        """Micro-batches to run, and whether each counts: where passes are collective, fillers stand for empty ones."""
        present = [batch for batch in batches if batch is not None]
        if not self.strategy.lockstep:
            return [(batch, True) for batch in present]
        if self.group.all(len(present) == len(batches), self.model.device):
            return [(batch, True) for batch in present]
        own = present[0] if present else None
        filler = next(batch for batch in self.group.gather(own) if batch is not None)
        return [(filler, False) if batch is None else (batch, True) for batch in batches]

    def reduced(self, metrics: Iterable[Metrics]) -> dict[str, float]:
        """Sum over weight of each metric, over micro-batches and ranks."""
        pairs = [
            {name: torch.stack([total.detach().double(), weight.double()]) for name, (total, weight) in m.items()}
            for m in metrics
        ]
        return {
            name: float(total / weight.clamp(min=1e-12))
            for name, (total, weight) in self._sum_over_all(pairs, 2).items()
        }

    def _sum_over_all(self, parts: Iterable[Mapping[str, Tensor]], width: int) -> dict[str, Tensor]:
        """Sum tensors [width], or scalars, name by name over micro-batches, then over ranks, which may lack names."""
        local: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.items():
                local[name] = local[name] + value if name in local else value
        return self.group.sum_by_name(local, width, self.model.device) if self.group.together else local

    def _count_bad(self, role: str, update: Update) -> None:
        if math.isfinite(update.norm):
            self._bad_steps[role] = 0
            return
        if update.overflow:
            log.info("%s: step %d skipped: float16's loss scale was too large, and is halved", role, self._steps[role])
            return
        self._bad_steps[role] += 1
        first = f", first in {update.bad}" if update.bad else ""
        log.warning("%s: step %d skipped: its gradient is not finite%s", role, self._steps[role], first)
        if self._bad_steps[role] >= self._max_bad_steps:
            raise RunError(
                f"{role}: {self._bad_steps[role]} steps in a row had a gradient that is not finite{first}; "
                "lower the learning rate, or train in float32"
            )


def _constant_columns(batch: Batch, numbers: Mapping[str, float]) -> Batch:
    """Columns [B] of a batch that have one number in all rows."""
    ids = batch["ids"]
    return {name: torch.full((len(ids),), n, dtype=torch.float64, device=ids.device) for name, n in numbers.items()}


def _renamed(name: str, roles: Mapping[str, str]) -> str:
    """A tensor's name in a checkpoint, under its role's other name."""
    role, _, rest = name.partition("/")
    return f"{roles[role]}/{rest}"
