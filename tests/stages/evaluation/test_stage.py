"""From committed numbers to a registered evaluation, past its gates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.stages.evaluation.conftest import measured_here, numbers
from triptych.data.table import Table
from triptych.errors import RunError
from triptych.observe.report.page import render
from triptych.observe.runs import read_run
from triptych.recipe import FigureGate, dump_recipe
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation.comparison import check_gates
from triptych.stages.evaluation.stage import run
from triptych.stages.evaluation.statistics import mean, ratio
from triptych.stages.evaluation.table import MEASURES

CHATS = [
    {"prompt": f"Film {i}?", "response": f"It is {word}."} for i, word in enumerate(("warm", "dull", "slow", "flat"))
]


@pytest.fixture
def measured(evaluate: Callable[..., Any], write_rows: Callable[..., Any]) -> StageContext[Any]:
    """The base measured on four chats, with a gate that it cannot pass."""
    sets = {"chats": {"data": write_rows("chats", CHATS), "measure": {"name": "loss"}}}
    gate = [{"set": "chats", "model": "base", "at_most": 0.5}, {"set": "chats", "model": "base", "at_least": 0.5}]
    ctx: StageContext[Any] = evaluate(["base"], sets, gate=gate)
    rows = MEASURES["loss"].encode(ctx, "chats", [])
    begin(ctx, {"chats": Table(rows.columns, rows.digest)}, {})
    measured_here(ctx)
    return ctx


def test_a_gate_that_is_not_passed_keeps_the_figures_and_registers_nothing(measured: StageContext[Any]) -> None:
    folder = Path(measured.folder)
    with pytest.raises(RunError) as stopped:
        run(measured)
    found = json.loads((folder / "evaluations/comparison.json").read_text())
    loss = found["sets"]["chats"]["figures"]["loss"]["models"]["base"]
    shown = f"{loss['value']:.4g} ({loss['low']:.4g} to {loss['high']:.4g})"
    assert str(stopped.value) == (
        f"stage only: gate.0: loss of base on chats is {shown}; asked: at most 0.5: no further stage starts; "
        f"all figures are in {folder}/evaluations/comparison.json"
    )
    assert measured.registry().adapters() == []
    assert not (folder / "summary.json").exists()
    (Path(measured.run) / "recipe.yaml").write_text(dump_recipe(measured.recipe))
    page = render(read_run(measured.run))
    assert "the difference from base on the same rows" in page
    assert f"<td>{loss['value']:.4g} (" in page


def test_a_changed_gate_judges_what_is_there(measured: StageContext[Any]) -> None:
    with pytest.raises(RunError):
        run(measured)
    gates = (FigureGate(set="chats", model="base", metric="perplexity", at_least=1.0),)
    lenient = replace(measured, stage=measured.stage.model_copy(update={"gate": gates}))
    version = run(lenient)
    assert (version.ref, version.kind) == ("tiny-only@1", "evaluation")
    assert run(lenient) == version, "the second time from what is there"
    summary = json.loads((Path(measured.folder) / "summary.json").read_text())
    assert summary["comparison"] == json.loads((Path(version.url) / "figures.json").read_text())
    assert summary["data"] == {"chats": {"rows": 4, "truncated": 0, "split": 0, "dropped": 0, "unlearnable": 0}}
    rows = pq.read_table(Path(version.url) / "chats.parquet").to_pylist()
    assert [row["nats"] for row in rows] == numbers(measured, "chats", "base")["nats"]
    assert version.metrics["chats.base.loss"] == pytest.approx(
        sum(r["nats"] for r in rows) / sum(r["tokens"] for r in rows)
    )


def test_a_model_must_surpass_another_by_the_whole_interval(
    evaluate: Callable[..., Any], write_rows: Callable[..., Any]
) -> None:
    sets = {"chats": {"data": write_rows("chats", CHATS), "measure": {"name": "loss"}}}
    sets["q"] = {"data": write_rows("q", CHATS), "measure": {"name": "multiple_choice"}}
    loss = {"base": ratio([9, 8, 10, 9], [3, 3, 3, 3]), "x@1": ratio([6, 5.5, 6.8, 6.2], [3, 3, 3, 3])}
    right = {"base": mean([0, 1, 0, 1] * 5), "x@1": mean([0, 1, 1, 1] * 5)}
    found = {
        "chats": {ref: {"loss": one} for ref, one in loss.items()},
        "q": {ref: {"accuracy": one} for ref, one in right.items()},
    }

    def judged(**gate: Any) -> None:
        check_gates(evaluate(["base", "x@1"], sets, gate=[{"model": "x@1", "better_than": "base"} | gate]), found)

    judged(set="chats")  # less loss is better
    judged(set="q")
    judged(set="chats", by=0.8)
    with pytest.raises(RunError, match=r"better than base's by 0\.95\d* \(.*\); asked: surely better by more than 1"):
        judged(set="chats", by=1.0)
    with pytest.raises(RunError, match=r"loss of base on chats is better than x@1's by -0\.95"):
        judged(set="chats", model="base", better_than="x@1")
    with pytest.raises(RunError, match=r"accuracy of x@1 on q is better than base's by 0\.25 \(.*; asked: surely bett"):
        judged(set="q", by=0.2)
