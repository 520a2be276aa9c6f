"""The learner: the same optimiser step for every objective. Torch only.

One denominator: an objective gives sums, and the global count that each is divided by is known before any forward.
So the gradient is the same however a batch is cut into micro-batches and over ranks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from triptych.errors import RunError
from triptych.recipe import Optimizer
from triptych.train.batch import Batch
from triptych.train.clock import Clock
from triptych.train.group import Group
from triptych.train.optimizer import adamw, learning_rate
from triptych.train.roles import RoleModel

Sums = dict[str, Tensor]
"""Name -> sum over the batch, a scalar."""
Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, weight): the metric is their quotient over all micro-batches and ranks."""

MAX_BAD_STEPS = 5
"""Steps in a row without a finite gradient that end a run."""


class Objective(Protocol):
    """What one optimiser step minimises, and for which role."""

    @property
    def role(self) -> str:
        """The role that is trained."""

    def denominators(self, batch: Batch) -> Sums:
        """What each sum of `loss` is divided by, from the batch alone; summed over micro-batches and ranks."""

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        """Sums with the same keys as `denominators`; the loss is the sum of sums[k] / denominators[k]."""


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: metrics over the global batch, and the seconds of its parts."""

    metrics: dict[str, float]
    seconds: dict[str, float]


class Learner:
    """Updates the trainable roles of a model; every trainable role has an optimiser of its own."""

    def __init__(
        self,
        model: RoleModel,
        optimizers: Mapping[str, Optimizer],
        total_steps: Mapping[str, int],
        group: Group | None = None,
        dropout: bool = False,
    ) -> None:
        """`total_steps`: optimiser steps of each role over the whole run, for its schedule.

        `dropout` acts in `accumulate` alone. PPO trains without: its ratios compare two passes over one batch.
        """
        self.model = model
        self.group = group or Group()
        self._config = dict(optimizers)
        self._total = dict(total_steps)
        self._parameters = {role: model.parameters_of(role) for role in optimizers}
        self._optimizers = {role: adamw(self._parameters[role].values(), c) for role, c in optimizers.items()}
        self._steps = dict.fromkeys(optimizers, 0)
        self._bad_steps = 0
        self._dropout = dropout

    def step(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> StepReport:
        """One optimiser step. None stands for an empty micro-batch: ranks have equally many.

        A step without a finite gradient is skipped and counted (`skipped`).

        Raises:
            RunError: MAX_BAD_STEPS such steps in a row.
        """
        clock = Clock()
        metrics = self.accumulate(objective, micro_batches, clock)
        parameters = self._parameters[objective.role]
        self.group.sum_gradients(parameters.values())
        clock.lap("communication")
        norm = self._gradient_norm(objective.role)
        rate = learning_rate(self._config[objective.role], self._steps[objective.role], self._total[objective.role])
        finite = self._finite(objective.role, norm)
        optimizer = self._optimizers[objective.role]
        if finite:
            clip_grads_with_norm_(parameters.values(), self._config[objective.role].max_grad_norm, torch.tensor(norm))
            for param_group in optimizer.param_groups:
                param_group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._steps[objective.role] += 1
        clock.lap("optimizer")
        metrics |= {"grad_norm": norm, "learning_rate": rate, "skipped": float(not finite)}
        return StepReport(metrics, dict(clock.seconds))

    def accumulate(
        self, objective: Objective, micro_batches: Sequence[Batch | None], clock: Clock | None = None
    ) -> dict[str, float]:
        """Add this rank's share of the global gradient to the role's parameters; global metrics back."""
        clock = clock or Clock()
        batches = [self._placed(batch) for batch in micro_batches if batch is not None]
        denominators = self._sum_over_all(objective.denominators(batch) for batch in batches)
        metrics: list[Metrics] = []
        self.model.train(self._dropout)
        clock.lap("data")
        for batch in batches:
            with self.model.use(objective.role):
                sums, measured = objective.loss(self.model, batch)
            loss = torch.stack([total / denominators[name] for name, total in sums.items()]).sum()
            clock.lap("forward")
            loss.backward()
            clock.lap("backward")
            metrics.append(measured)
        return self._reduced(metrics)

    @torch.no_grad()
    def evaluate(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> dict[str, float]:
        """The objective's metrics over all ranks' batches, nothing updated."""
        metrics: list[Metrics] = []
        self.model.eval()
        for batch in micro_batches:
            if batch is not None:
                with self.model.use(objective.role):
                    metrics.append(objective.loss(self.model, self._placed(batch))[1])
        return self._reduced(metrics)

    @torch.no_grad()
    def forward(self, role: str, compute: Callable[[RoleModel, Batch], Tensor], batch: Batch) -> Tensor:
        """`compute` of one batch as `role`, without gradients."""
        self.model.eval()
        with self.model.use(role):
            return compute(self.model, self._placed(batch))

    def gradients(self, role: str) -> dict[str, Tensor]:
        """Full float32 gradients of a role, between `accumulate` and an update; zero where nothing flowed."""
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self._parameters[role].items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and counters from which `load_state` goes on exactly."""
        tensors: dict[str, Tensor] = {}
        for role, named in self._parameters.items():
            optimizer_state = self._optimizers[role].state
            for name, parameter in named.items():
                tensors[f"{role}/value/{name}"] = parameter.detach()
                for key, value in optimizer_state.get(parameter, {}).items():
                    tensors[f"{role}/{key}/{name}"] = value
        return tensors, dict(self._steps)

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        for role, named in self._parameters.items():
            optimizer_state = self._optimizers[role].state
            for name, parameter in named.items():
                parameter.copy_(tensors[f"{role}/value/{name}"])
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if (value := tensors.get(f"{role}/{key}/{name}")) is not None:
                        optimizer_state[parameter][key] = value.clone()
        self._steps = dict(counters)

    def _placed(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def _reduced(self, metrics: Iterable[Metrics]) -> dict[str, float]:
        """Sum over weight of each metric, over micro-batches and ranks."""
        pairs = [
            {name: torch.stack([total.detach().double(), weight.double()]) for name, (total, weight) in m.items()}
            for m in metrics
        ]
        return {name: float(pair[0] / pair[1].clamp(min=1e-12)) for name, pair in self._sum_over_all(pairs).items()}

    def _sum_over_all(self, parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Sum name by name over micro-batches, then over ranks in one message; ranks may lack names."""
        local: dict[str, Tensor] = {}
        for part in parts:
            for name, value in part.items():
                local[name] = local[name] + value if name in local else value
        if not self.group.together:
            return local
        totals: dict[str, Tensor] = {}
        for rank_values in self.group.gather({name: value.cpu() for name, value in local.items()}):
            for name, value in rank_values.items():
                totals[name] = totals[name] + value if name in totals else value
        return {name: value.to(self.model.device) for name, value in totals.items()}

    def _gradient_norm(self, role: str) -> float:
        return float(get_total_norm([p.grad for p in self._parameters[role].values() if p.grad is not None]))

    def _finite(self, role: str, norm: float) -> bool:
        if math.isfinite(norm):
            self._bad_steps = 0
            return True
        self._bad_steps += 1
        if self._bad_steps >= MAX_BAD_STEPS:
            bad = next(name for name, grad in self.gradients(role).items() if not torch.isfinite(grad).all())
            raise RunError(
                f"{role}: {self._bad_steps} steps in a row had a gradient that is not finite, first in {bad}; "
                "lower the learning rate, or train in float32"
            )
        return False
