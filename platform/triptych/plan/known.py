"""What is known of a machine beside what it is made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.plan.calibration import MemoryRecord, memory_records
from triptych.plan.rates import Rates, kept_rates


@dataclass(frozen=True)
class Known:
    """What was measured on it; without anything, assumptions stand."""

    rates: Rates | None = None
    """Of its processors."""
    records: Sequence[MemoryRecord] = ()
    """Of runs that have ended; they say of which kind of machine they are."""


NOTHING = Known()


def known_here(calibrations: Iterable[Mapping[str, Any]]) -> Known:
    """Of this machine: the rates that are kept, and what a registry has stored of runs."""
    return Known(kept_rates(), memory_records(calibrations))
