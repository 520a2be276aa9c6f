"""What a run keeps of its plan: before the stage, after it, and in the registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.observe.log import MetricsLog
from triptych.observe.runs import StageView
from triptych.plan import Machine, Node, estimate
from triptych.plan.calibration import memory_records
from triptych.stages.context import StageContext
from triptych.stages.prediction import predict, settle

LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))
STAGE = {
    "kind": "sft",
    "data": {"train": {"path": "none.jsonl"}},
    "train": {"steps": 2, "batch": {"max_length": 128}, "workers": {"strategy": "single"}},
}
Make = Callable[[dict[str, Any]], StageContext[Any]]


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose speed nobody has measured."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def ended(ctx: StageContext[Any], peak: int) -> None:
    log = MetricsLog(ctx.folder)
    for step, speed in ((1, 10.0), (2, 200.0), (3, 100.0), (4, 300.0)):
        row = {"step": step, "tokens": 50, "tokens_per_second": speed}
        log.add(row | {"peak_memory_bytes": peak + step, "grown_memory_bytes": 7 * step})
    log.flush(4)


def test_predicted_before_and_actual_after(make_context: Make) -> None:
    ctx = make_context(STAGE)
    predict(ctx, LAPTOP)
    view = StageView("only", {"kind": "sft"}, ctx.folder)
    before = view.compared
    assert [figure.actual for figure in before] == [None, None]
    expected = estimate(ctx.recipe, machine=LAPTOP).stages["only"]
    assert before[0].predicted == expected.peak_bytes
    assert before[1].predicted == expected.tokens_per_second

    ended(ctx, 10**9)
    settle(ctx)
    plan = json.loads((Path(ctx.folder) / "plan.json").read_text())
    assert plan["actual"] == {"peak_bytes": 10**9 + 4, "grown_bytes": 28, "tokens_per_second": 200.0}
    after = StageView("only", {"kind": "sft"}, ctx.folder).compared
    assert after[1].ratio == expected.tokens_per_second / 200
    assert after[0].cells()[3] == "954 MiB"


def test_the_registry_has_each_stage_once(make_context: Make) -> None:
    ctx = make_context(STAGE)
    predict(ctx, LAPTOP)
    settle(ctx)  # nothing was measured yet
    assert ctx.registry().calibrations() == []
    ended(ctx, 10**9)
    settle(ctx)
    settle(ctx)
    (record,) = ctx.registry().calibrations()
    assert (record["method"], record["strategy"], record["dtype"], record["actual"]) == (
        "lora",
        "single",
        "float32",
        28,
    )
    (known,) = memory_records(ctx.registry().calibrations())
    assert (known.machine, known.actual) == ("cpu", 28)
    assert 0 < known.predicted < estimate(ctx.recipe, machine=LAPTOP).peak_bytes
    assert record["tokens_per_second"]["actual"] == 200.0


def test_what_cannot_fit_is_refused_before_anything_is_written(make_context: Make) -> None:
    ctx = make_context(STAGE)
    with pytest.raises(UserError, match=r"stages\.only does not fit machine tight"):
        predict(ctx, Machine("tight", (Node(cpus=2, gpus=0, memory=2**28),)))
    assert not Path(ctx.folder).exists()


def test_a_base_of_an_unknown_family_runs_without_a_plan(make_context: Make, tiny_model_copy: Path) -> None:
    ctx = make_context(STAGE)
    config = json.loads((tiny_model_copy / "config.json").read_text())
    (tiny_model_copy / "config.json").write_text(json.dumps(config | {"model_type": "homemade"}))
    model = ctx.recipe.model.model_copy(update={"base": str(tiny_model_copy)})
    object.__setattr__(ctx, "recipe", ctx.recipe.model_copy(update={"model": model}))
    predict(ctx, LAPTOP)
    ended(ctx, 10**9)
    settle(ctx)
    assert StageView("only", {}, ctx.folder).plan is None
