"""Data sets that stages make: committed, registered, and read by the stages that name them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support import data_kind
from tests.support.one_process import Silent
from triptych import storage
from triptych.cli import main
from triptych.data.table import read_table
from triptych.errors import RunError, UserError
from triptych.observe.progress import Progress
from triptych.plan import Machine, Node, estimate, place
from triptych.recipe import Recipe, RecipeError, load_recipe
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_rows, sources, summary
from triptych.stages.context import StageContext
from triptych.stages.run import run_recipe, run_stage, stage_context
from triptych.stages.supervised.training import prepare
from triptych.tune.sweep import check_sweep

LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))
BATCH = {"max_length": 128, "micro_tokens": 256}


@pytest.fixture(autouse=True)
def _kind() -> Iterator[None]:
    with data_kind.known():
        yield


@pytest.fixture
def recipe_file(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Twelve chats -> those of at most 8 characters -> those of at most 5 -> SFT."""
    rows = [{"prompt": f"Film {i}?", "response": "x" * (i + 1)} for i in range(12)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_model_dir), "dtype": "float32"},
        "storage": {"runs": str(tmp_path / "runs")},
        "stages": {
            "sft": {"kind": "sft", "data": {"train": {"stage": "shorter"}}, "train": {"steps": 2, "batch": BATCH}},
            "shorter": {"kind": "short_answers", "data": {"train": {"stage": "short"}}, "longest": 5},
            "short": {
                "kind": "short_answers",
                "data": {"train": {"path": str(tmp_path / "chats.jsonl")}},
                "longest": 8,
            },
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


def context(recipe: Recipe, name: str) -> StageContext[Any]:
    return stage_context(recipe, name, Progress(None))


def made(recipe: Recipe, name: str) -> AdapterVersion:
    """The data set of a stage, after its run on this driver."""
    ctx = context(recipe, name)
    run_stage(ctx)
    done = summary(ctx.run, name)
    assert done is not None
    return ctx.registry().get(done["registered"])


def test_a_data_set_is_committed_and_registered(recipe: Recipe) -> None:
    version = made(recipe, "short")
    assert (version.ref, version.kind, version.metrics) == ("tiny-short@1", "dataset", {"kept": 8 / 12})
    assert version.lineage["stage"]["longest"] == 8
    rows = pq.read_table(Path(version.url) / "rows.parquet").to_pylist()
    assert [row["messages"][-1]["content"] for row in rows] == ["x" * (i + 1) for i in range(8)]
    facts = json.loads((Path(version.url) / "triptych.json").read_text())
    assert (facts["artifact_kind"], facts["rows"]) == ("dataset", 8)
    assert made(recipe, "short") == version, "the second time from what is there"


def test_a_stage_reads_the_data_set_of_another(recipe: Recipe) -> None:
    short, shorter = made(recipe, "short"), made(recipe, "shorter")
    assert shorter.lineage["parents"] == {short.ref: short.sha256}
    ctx = context(recipe, "sft")
    assert [version.ref for version in ctx.registry().ancestors(shorter.ref)] == [short.ref]

    prepared = prepare(ctx)
    assert prepared.inputs["parents"] == {shorter.ref: shorter.sha256}
    assert prepared.data["train"]["rows"] == 5
    source: Any = recipe.stages["short"]
    from_file = recipe.stages["sft"].model_copy(update={"data": source.data})
    whole = context(recipe.model_copy(update={"name": "whole", "stages": {"sft": from_file}}), "sft")
    assert prepare(whole).inputs["parents"] == {}
    tables = [read_table(storage.join(one.folder, "data", "train")) for one in (ctx, whole)]
    assert tables[0]["input_ids"] == tables[1]["input_ids"][:5], "the same tokens as of the file's rows"


def test_limit_and_columns_hold_for_a_data_set(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.shorter.data.train.limit=3"])
    made(recipe, "short")
    assert made(recipe, "shorter").metrics == {"kept": 1.0}
    assert sources(context(recipe, "shorter"))["train"].limit == 3


def test_a_mixture_reads_files_and_data_sets(recipe_file: Path) -> None:
    files = yaml.safe_load(recipe_file.read_text())["stages"]["short"]["data"]["train"]["path"]
    mix = f"[{{stage: shorter, weight: 2}}, {{path: {files}, limit: 3}}]"
    recipe = load_recipe(recipe_file, ["stages.sft.data.train.stage=null", f"stages.sft.data.train.mix={mix}"])
    short, shorter = made(recipe, "short"), made(recipe, "shorter")
    ctx = context(recipe, "sft")
    prepared = prepare(ctx)
    assert prepared.inputs["parents"] == {shorter.ref: shorter.sha256}
    assert prepared.data["train"]["rows"] == 2 * 5 + 3
    assert short.ref not in prepared.inputs["parents"]


def test_a_damaged_data_set_is_refused(recipe: Recipe) -> None:
    version = made(recipe, "short")
    with (Path(version.url) / "rows.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match=r"rows\.parquet"):
        made(recipe, "shorter")


def test_a_data_set_without_rows_is_refused(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.short.longest=0"])
    with pytest.raises(UserError, match=r"stages\.short: no row is left for its data set"):
        made(recipe, "short")
    ctx = context(recipe, "short")
    assert storage.read_manifest(ctx.artifact) is None
    with pytest.raises(UserError, match="no row is left"):
        commit_rows(ctx, [], {})


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("none", r"stages\.sft\.data\.train\.stage: no stage `none`; allowed: short, shorter"),
        ("tiny-short@1", r"stages\.sft\.data\.train\.stage: no stage `tiny-short@1`.*allowed: short, shorter"),
        ("sft", r"stages\.sft\.data\.train\.stage: `sft` is a stage of kind sft, whose output is a policy"),
    ],
)
def test_only_a_stage_that_makes_a_data_set_is_a_source(recipe_file: Path, named: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [f"stages.sft.data.train.stage={named}"])
    mixed = ["stages.sft.data.train.stage=null", f"stages.sft.data.train.mix=[{{path: a.jsonl}}, {{stage: {named}}}]"]
    with pytest.raises(RecipeError, match=message.replace("train", r"train\.mix\.1")):
        load_recipe(recipe_file, mixed)


def test_a_stage_without_a_learner_needs_no_place(recipe: Recipe) -> None:
    placement = place(recipe, LAPTOP)
    assert placement.waves == [["short"], ["shorter"], ["sft"]]
    assert placement.requests["short"] == []
    assert list(estimate(recipe, machine=LAPTOP).stages) == ["sft"]
    alone = estimate(recipe, machine=LAPTOP, stage="short")
    assert (alone.stages, alone.peak_bytes, alone.tokens_per_second) == ({}, 0, 0.0)


def test_a_sweep_of_a_stage_that_reads_a_data_set_is_refused(recipe_file: Path) -> None:
    sweep = {
        "stage": "sft",
        "space": {"stages.sft.method.r": {"choice": [4, 8]}},
        "objective": {"metric": "loss", "mode": "min"},
        "budget": {"trials": 2},
    }
    recipe_file.write_text(recipe_file.read_text() + yaml.safe_dump({"sweep": sweep}))
    with pytest.raises(UserError, match=r"sweep\.stage: sft .* has data\.train\.stage `shorter`"):
        check_sweep(load_recipe(recipe_file))


def test_plan_shows_a_stage_without_a_learner(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["triptych", "plan", str(recipe_file), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = plan()
    assert code == 0
    assert "the driver" in out
    assert [line for line in out.splitlines() if "assumed" in line], "rows of a data set are not known before"
    code, out, _ = plan("--stage", "short", "--json")
    assert (code, json.loads(out)["duration"]["stages"]) == (0, {})
    code, _, err = plan("--stage", "short", "--grid")
    assert code == 2
    assert "--stage short has no learner" in err
    assert "allowed: sft" in err


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_recipe_runs_from_a_file_by_data_sets_to_a_policy(recipe: Recipe) -> None:
    found = run_recipe(recipe, Silent())
    assert list(found) == ["short", "shorter", "sft"]
    registry = context(recipe, "sft").registry()
    version = registry.get(found["sft"]["registered"])
    assert version.kind == "policy"
    assert version.lineage["parents"] == {found["shorter"]["registered"]: found["shorter"]["sha256"]}
    assert [one.ref for one in registry.ancestors(version.ref)] == ["tiny-shorter@1", "tiny-short@1"]
    assert run_recipe(recipe, Silent()) == found, "nothing is done twice"


@pytest.mark.usefixtures("one_process")
def test_a_stage_waits_for_the_data_set_that_it_reads(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="--stage sft waits for shorter"):
        run_recipe(recipe, Silent(), only="sft")
    assert list(run_recipe(recipe, Silent(), only="short")) == ["short"]
