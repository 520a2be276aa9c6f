"""Calibration of memory predictions: factor and interval from the actual over predicted memory of earlier runs.

Tensors are predicted. Allocators keep more, and how much more depends on the machine and on what is computed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from triptych.plan.amounts import Bytes, Parts, total
from triptych.plan.machines import Machine
from triptych.plan.rates import Rates, kept_rates

LEAST = 8
"""Runs that say something: with fewer, the quantiles of their ratios are chance."""
NOT_GROWN = ("weights", "runtime")
"""Parts that are there before anything is attached to the base."""


@dataclass(frozen=True)
class MemoryRecord:
    """One learner process of a run that has ended."""

    machine: str
    """Kind of machine, as `machine_kind` names it."""
    method: str
    strategy: str
    dtype: str
    predicted: int
    """Predicted bytes before any calibration, by `grown`."""
    actual: int
    """Bytes at the process's peak (reserved ones on a GPU) less those that it held when the base was loaded."""


def memory_records(stored: Iterable[Mapping[str, Any]]) -> list[MemoryRecord]:
    """Records read from a registry's rows, whose further fields are left out."""
    names = [field.name for field in fields(MemoryRecord)]
    return [MemoryRecord(**{name: record[name] for name in names}) for record in stored]


@dataclass(frozen=True)
class MachineProfile:
    """Measurements of a machine; assumptions stand in for what was not measured."""

    rates: Rates | None = None
    """Speed of its processors."""
    records: Sequence[MemoryRecord] = ()
    """Memory of runs that have ended, on this kind of machine or others."""


NO_PROFILE = MachineProfile()


def profile_here(calibrations: Iterable[Mapping[str, Any]]) -> MachineProfile:
    """The profile of this machine: its kept rates, and the runs that a registry has stored (`calibrations`)."""
    return MachineProfile(kept_rates(), memory_records(calibrations))


@dataclass(frozen=True)
class Calibration:
    """Factors on predicted memory: median, and 5% and 95% quantiles, of actual over predicted."""

    low: float = 1.0
    factor: float = 1.0
    high: float = 1.0
    count: int = 0
    """Number of runs behind it; 0: no calibration."""


def machine_kind(machine: Machine) -> str:
    """The name of a machine's kind of GPU, or `cpu`: allocators behave alike within one kind."""
    return machine.gpu.name if machine.gpu else "cpu"


def calibrate(
    records: Iterable[MemoryRecord], machine: str, dtype: str, strategy: str | None = None, method: str | None = None
) -> Calibration:
    """The calibration by the runs most like the planned one, if there are `LEAST` of them; else none.

    Alike are those of one machine, and of the same method, strategy and precision; or strategy and precision; or
    precision.
    """
    known = [record for record in records if record.machine == machine and record.predicted > 0]
    narrower: list[dict[str, str | None]] = [
        {"dtype": dtype, "strategy": strategy, "method": method},
        {"dtype": dtype, "strategy": strategy},
        {"dtype": dtype},
        {},
    ]
    for wanted in narrower:
        alike = [r for r in known if all(getattr(r, field) == value for field, value in wanted.items())]
        if len(alike) >= LEAST:
            return _of_ratios([record.actual / record.predicted for record in alike])
    return Calibration()


def grown(parts: Parts) -> Bytes:
    """Memory that a process takes on the device beyond the loaded base."""
    return total(amount for part, amount in parts.items() if part not in NOT_GROWN and not part.startswith("cpu_"))


def allocator(parts: Parts, calibration: Calibration) -> Bytes:
    """The part `allocator` of a role: memory added so that the parts sum to what earlier runs needed."""
    own = grown(parts)
    low = int(own.low * (calibration.low - 1))
    expected = int(own.expected * (calibration.factor - 1))
    return Bytes(min(low, expected), expected, max(int(own.high * (calibration.high - 1)), expected))


def _of_ratios(ratios: Sequence[float]) -> Calibration:
    cuts = statistics.quantiles(ratios, n=20, method="inclusive")
    return Calibration(cuts[0], statistics.median(ratios), cuts[-1], len(ratios))
