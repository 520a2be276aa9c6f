"""Diagnosis of a run that ran out of memory: its plan, what was measured before the end, and what to change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from triptych.errors import UserError
from triptych.observe.runs import RunView, StageView

_ADVICE = {
    "activations": "lower micro_tokens, or set memory.checkpointing to selective or full",
    "logits": "set memory.loss_chunk to 128 or 512, or lower micro_tokens",
    "gathered": "spread the model over more workers, or use bfloat16",
    "casts": "set memory.checkpointing to full, or train fewer layers",
    "weights": "use model.quantization, or strategy fsdp over more workers",
    "masters": "use a method that trains less, or strategy fsdp over more workers",
    "optimizer": "use optimizer adamw_8bit or lion, or a strategy that shards it (zero1, fsdp)",
    "gradients": "use a method that trains less, or a strategy that shards gradients (zero2, fsdp)",
    "adapter": "use a lower rank, or fewer targets",
    "snapshot": "use a method that trains less, or more workers, each of which copies its share of a checkpoint",
    "message": "use strategy fsdp in place of ddp",
    "bucket": "use ddp or fsdp in place of zero",
}
_GROWS_WITH_BATCH = ("activations", "logits", "allocator")
_SIGNS = ("out of memory", "outofmemory", "low on memory", "allocate memory", "not enough memory", "killed")


@dataclass(frozen=True)
class OomDiagnosis:
    """Planned and measured memory of one stage, the part that most likely outgrew its plan, and advice."""

    stage: str
    ran_out: bool
    """True if the stage's error says that memory ran out."""
    error: str | None
    predicted_bytes: int
    actual_bytes: int | None
    """Highest peak of the metrics rows; None before the first row."""
    room_bytes: int
    outgrew: str
    """The part that most likely took more than was planned for it."""
    why: str
    advice: str
    parts: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def diagnose_oom(run: RunView) -> list[OomDiagnosis]:
    """Diagnoses of the planned stages that did not end, or of all planned stages if all ended.

    Raises:
        UserError: no stage of the run was planned.
    """
    planned = [stage for stage in run.stages if stage.plan is not None]
    if not planned:
        raise UserError(f"{run.url}: no stage has a plan.json; runs write it before a stage begins")
    return [_diagnose(stage) for stage in [s for s in planned if s.status != "done"] or planned]


def _diagnose(stage: StageView) -> OomDiagnosis:
    assert stage.plan is not None
    predicted, actual = stage.plan["predicted"], stage.plan["actual"]
    error = stage.plan.get("error")
    expected, room = int(predicted["peak_bytes"]["expected"]), int(predicted["capacity_bytes"])
    peak = actual.get("peak_bytes")
    outgrew, why = _culprit(predicted["parts"], expected, peak, room)
    return OomDiagnosis(
        stage.name,
        error is not None and any(sign in error.lower() for sign in _SIGNS),
        error,
        expected,
        None if peak is None else int(peak),
        room,
        outgrew,
        why,
        _ADVICE.get(outgrew, "lower micro_tokens, or give the stage more memory"),
        predicted["parts"],
    )


def _culprit(parts: Mapping[str, int], expected: int, peak: float | None, room: int) -> tuple[str, str]:
    """The part that most likely grew, and the reason to name it.

    Only the sum of all parts is measured: the largest part that varies with the micro-batch is suspected.
    """
    variable = {part: size for part, size in parts.items() if part in _GROWS_WITH_BATCH}
    largest = max(variable or parts, key=lambda part: parts[part])
    if peak is None:
        if expected > room:
            return max(parts, key=lambda part: parts[part]), "the plan itself needs more than there is"
        return largest, "it ended before its first row of metrics, in a step whose largest part that varies is this one"
    if peak <= expected:
        return largest, "measured steps stayed within the plan; the one that failed had a fuller micro-batch"
    more = (peak - expected) / 2**20
    return largest, f"measured steps took {more:,.0f} MiB more than planned, and this part varies most"
