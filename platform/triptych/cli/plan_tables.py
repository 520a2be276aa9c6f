"""The tables of `triptych plan`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from triptych.observe.oom import OomDiagnosis
    from triptych.plan import Bytes, Choice, Duration, Estimate, Option, Placement
    from triptych.recipe.work_shape import MicroBatch

_SHOWN = 5
"""Number of settings shown that were not chosen."""


def placement_table(placement: "Placement") -> Table:
    """Table of the processes of each stage, with their CPUs and GPUs, in the order in which stages start."""
    table = Table(title=f"Placement on {placement.machine}")
    for column, align in (
        ("starts", "right"),
        ("stage", "left"),
        ("processes", "left"),
        ("CPUs", "right"),
        ("GPUs", "right"),
    ):
        table.add_column(column, justify=align)  # type: ignore[arg-type]
    for number, wave in enumerate(placement.waves, start=1):
        for name in wave:
            if not placement.requests[name]:
                table.add_row(str(number), name, "the driver", "", "")
            for request in placement.requests[name]:
                processes = f"{request.count} {request.role}{'s' * (request.count > 1)}"
                shares = (f"{request.count} x {share:g}" for share in (request.cpus, request.gpus))
                table.add_row(str(number), name, processes, *shares)
    return table


def memory_table(predicted: "Estimate", batches: Mapping[str, "MicroBatch"]) -> Table:
    """Table of a process's memory by role and part, and the largest micro-batches of data that were read for it."""
    read = [
        f"{name}: the first rows of data.train make micro-batches of up to {batch.tokens} tokens, "
        f"rows of up to {batch.length}"
        for name, batch in batches.items()
    ]
    table = Table(title="Memory of one process, MiB (estimates)", caption="\n".join(read) or None)
    for column in ("stage", "role", "part"):
        table.add_column(column)
    table.add_column("expected", justify="right")
    table.add_column("from - to", justify="right")
    for name, stage in predicted.stages.items():
        for role, found in stage.roles.items():
            for part, amount in found.parts.items():
                table.add_row(name, role, part, *_amounts(amount))
            table.add_row(name, role, "all parts", *_amounts(found.peak), style="bold", end_section=True)
    return table


def totals_table(predicted: "Estimate", *, measured: bool) -> Table:
    """Table of each device's peak memory and each stage's speed."""
    notes = [] if measured else ["Speed at assumed rates; --measure measures this machine's."]
    notes += [f"{name}: {one.speed.at_least}" for name, one in predicted.stages.items() if one.speed.at_least]
    table = Table(title="Totals (estimates)", caption="\n".join(notes) or None)
    for column in ("stage", "strategy", "device"):
        table.add_column(column)
    for column in ("peak MiB", "from - to", "has MiB", "tokens/s", "s/step"):
        table.add_column(column, justify="right")
    for name, stage in predicted.stages.items():
        for label, device in stage.devices.items():
            style = "bold red" if device.peak.expected > device.capacity else None
            seconds = f"{_least(stage.speed.at_least)}{stage.speed.step_seconds:.2g}"
            speed = (f"{stage.tokens_per_second:,.0f}", seconds)
            amounts = (*_amounts(device.peak), f"{device.capacity / 2**20:,.0f}")
            table.add_row(name, stage.strategy, label, *amounts, *speed, style=style)
    return table


def duration_table(found: "Duration") -> Table:
    """Table of time, device-hours and cost."""
    cost = "" if found.cost is None else f", cost {found.cost:,.2f}"
    least = _least(any(stage.at_least for stage in found.stages.values()))
    table = Table(title=f"Training in all: {least}{_time(found.seconds)}, {found.device_hours:.2g} device-hours{cost}")
    table.add_column("stage")
    for column in ("rows", "steps", "time", "device-hours"):
        table.add_column(column, justify="right")
    for name, stage in found.stages.items():
        rows = "1,000 (assumed)" if stage.rows is None else f"{stage.rows:,}"
        time = f"{_least(stage.at_least)}{_time(stage.seconds)}"
        table.add_row(name, rows, f"{stage.steps:,}", time, f"{stage.device_hours:.2g}")
    return table


def choice_table(choices: Mapping[str, "Choice"]) -> Table:
    """Table of chosen settings, runners-up that fit, and faster settings that do not fit."""
    table = _options_table("Chosen for what is left to auto")
    for name, choice in choices.items():
        _add(table, name, choice.best, "chosen", "bold green")
        for option in choice.runners_up[:_SHOWN]:
            _add(table, name, option, "fits", None)
        for option in choice.refused[:_SHOWN]:
            _add(table, name, option, option.why_not, "dim")
    return table


def grid_table(name: str, options: Sequence["Option"]) -> Table:
    """Table of all settings of a stage by micro-batch."""
    table = _options_table(f"Micro-batch, memory and speed of stages.{name}")
    for option in sorted(options, key=lambda option: option.settings.micro_tokens):
        _add(table, name, option, "fits" if option.fits else "may not fit", None if option.fits else "red")
    return table


def oom_table(diagnoses: Sequence["OomDiagnosis"]) -> Table:
    """Planned memory of each stage, the peak that it reached, and what to change."""
    table = Table(title="Out of memory: plan and end")
    for column in ("stage", "planned MiB", "reached MiB", "had MiB", "part", "why", "what to change"):
        table.add_column(column)
    for diagnosis in diagnoses:
        reached = "unknown" if diagnosis.actual_bytes is None else f"{diagnosis.actual_bytes / 2**20:,.0f}"
        sizes = (f"{diagnosis.predicted_bytes / 2**20:,.0f}", reached, f"{diagnosis.room_bytes / 2**20:,.0f}")
        table.add_row(diagnosis.stage, *sizes, diagnosis.outgrew, diagnosis.why, diagnosis.advice)
    return table


def _options_table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("stage")
    table.add_column("micro_tokens", justify="right")
    for column in ("checkpointing", "loss_chunk", "strategy"):
        table.add_column(column)
    for column in ("peak MiB", "to MiB", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("")
    return table


def _add(table: Table, name: str, option: "Option", word: str, style: str | None) -> None:
    settings = option.settings
    chunk = "all" if settings.loss_chunk is None else str(settings.loss_chunk)
    sizes = (f"{size / 2**20:,.0f}" for size in (option.peak.expected, option.peak.high))
    setting = (f"{settings.micro_tokens:,}", settings.checkpointing, chunk, settings.strategy)
    table.add_row(name, *setting, *sizes, f"{option.tokens_per_second:,.0f}", word, style=style)


def _least(reason: object) -> str:
    """What stands before a number that may grow, where there is a reason."""
    return "at least " if reason else ""


def _amounts(amount: "Bytes") -> tuple[str, str]:
    low, expected, high = (f"{part / 2**20:,.0f}" for part in (amount.low, amount.expected, amount.high))
    return expected, low if low == high else f"{low} - {high}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
