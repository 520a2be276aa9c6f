from collections.abc import Callable
from typing import Any

import pytest

from triptych.plan import Machine, MachineProfile, MemoryRecord, Node, calibrate, estimate, grown, machine_kind
from triptych.plan.calibration import LEAST
from triptych.plan.machines import GIB
from triptych.recipe import Recipe

LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * GIB),))


def record(ratio: float, **changes: Any) -> MemoryRecord:
    values: dict[str, Any] = {"machine": "cpu", "method": "lora", "strategy": "single", "dtype": "bfloat16"}
    return MemoryRecord(**(values | changes), predicted=1000, actual=round(1000 * ratio))


def test_the_median_resists_a_stray_run() -> None:
    records = [record(1.2 + 0.01 * number) for number in range(LEAST)] + [record(40.0)]
    found = calibrate(records, "cpu", "bfloat16")
    assert found.factor == pytest.approx(1.24)
    assert found.low < found.factor < found.high
    assert found.count == LEAST + 1


def test_too_few_runs_say_nothing() -> None:
    assert calibrate([record(2.0)] * (LEAST - 1), "cpu", "bfloat16").count == 0
    assert calibrate([record(2.0)] * LEAST, "h100-80", "bfloat16").count == 0


def test_runs_that_are_alike_decide() -> None:
    records = [record(1.1)] * LEAST + [record(1.5, dtype="float32")] * LEAST + [record(1.9, method="dora")] * LEAST
    assert calibrate(records, "cpu", "float32", "ddp", "lora").factor == 1.5
    assert calibrate(records, "cpu", "bfloat16", "single", "dora").factor == 1.9
    assert calibrate(records, "cpu", "float16").factor == 1.5  # the median of all


def test_an_estimate_takes_what_runs_needed(reviews: Callable[..., Recipe]) -> None:
    plain, known = (
        estimate(reviews(), machine=LAPTOP, stage="sft", profile=MachineProfile(records=records)).stages["sft"]
        for records in ([], [record(1.5, machine=machine_kind(LAPTOP))] * LEAST)
    )
    more = grown(plain.roles["policy"].parts).expected // 2
    assert known.roles["policy"].parts["allocator"].expected == pytest.approx(more, abs=1)
    assert known.peak_bytes - plain.peak_bytes == pytest.approx(more, abs=1)
