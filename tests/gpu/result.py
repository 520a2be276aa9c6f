"""What a check found: one row of the table, and of the JSON."""

import gc
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

Figures = dict[str, float | str]
Verdict = Literal["ok", "FAILED", "ERROR", "measured", "skipped"]

BAD: tuple[Verdict, ...] = ("FAILED", "ERROR")


@dataclass(frozen=True)
class Result:
    """`ok` and `FAILED` are the verdicts of a property; what is only `measured` has none."""

    part: str
    case: str
    verdict: Verdict
    figures: Mapping[str, float | str] = field(default_factory=dict)

    def cells(self) -> list[str]:
        return [self.part, self.case, self.verdict, ", ".join(f"{k} {_text(v)}" for k, v in self.figures.items())]


def attempt(part: str, case: str, check: Callable[[], tuple[Verdict, Figures]]) -> Result:
    """The check's result; an exception is a result too, and takes no other check with it."""
    try:
        found = Result(part, case, *check())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
        found = broken(part, case, error)
    release()
    return found


def broken(part: str, case: str, error: Exception) -> Result:
    """What an exception says; its traceback goes to stderr."""
    traceback.print_exception(error)
    return Result(part, case, "ERROR", {type(error).__name__: (str(error).strip().splitlines() or [""])[0][:160]})


def release() -> None:
    """Give back the memory of what is no longer referred to, and count peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(results: Iterable[Result]) -> str:
    """Plain text: no library that draws tables need be there."""
    head = ["part", "case", "result", "figures"]
    rows = [head, *(result.cells() for result in results)]
    widths = [max(map(len, column)) for column in itertools.islice(zip(*rows, strict=True), 3)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*padded, *cells[len(widths) :]]).rstrip()


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
