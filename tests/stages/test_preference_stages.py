"""Stages that learn from preferences, whole but without a cluster: references, resuming, what comes out."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.one_process import Silent, stopped_at_step
from tests.support.preferences import LORA, recipe, stage
from triptych.errors import UserError
from triptych.observe.log import read_metrics
from triptych.recipe import Recipe, RecipeError
from triptych.registry import Registry, registry_url
from triptych.stages.preflight import check_plan
from triptych.stages.run import check_recipe, run_folder, run_recipe
from triptych.stages.supervised import references

pytestmark = pytest.mark.usefixtures("one_process")


def metrics_of(loaded: Recipe, name: str) -> list[dict[str, Any]]:
    return read_metrics(f"{run_folder(loaded)}/stages/{name}")


@pytest.mark.slow
def test_dpo_starts_at_log_2_from_what_sft_left_and_prefers_what_was_chosen(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """The loss and rewards of the first step, with the references that were computed in another cut."""
    loaded = recipe(
        tmp_path,
        tiny_model_dir,
        sft=stage(tmp_path, "sft", method=LORA),
        dpo=stage(tmp_path, "dpo", **{"from": "sft"}),
    )
    check_recipe(loaded)
    check_plan(loaded, loaded.stages, pytest.fail)
    found = run_recipe(loaded, Silent())["dpo"]
    first, *_, last = metrics_of(loaded, "dpo")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards_chosen"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < 0.6
    assert set(found["metrics"]) == {f"heldout_{name}" for name in loaded.trained["dpo"].reports()}
    assert found["metrics"]["heldout_accuracy"] == 1
    assert found["metrics"]["heldout_margin"] > 0
    registry = Registry(registry_url(loaded))
    version = registry.get(found["registered"])
    parent = registry.get("tiny-sft@1")
    assert version.kind == "policy"
    assert version.lineage["parents"] == {parent.ref: parent.sha256}


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{"beta": 0.3, "label_smoothing": 0.1}, {"name": "ipo"}], ids=["cdpo", "ipo"])
def test_without_from_the_reference_is_the_base(tmp_path: Path, tiny_model_dir: Path, loss: dict[str, Any]) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, dpo=stage(tmp_path, "dpo", method=LORA, loss=loss, sft_weight=0.5))
    run_recipe(loaded, Silent())
    first = metrics_of(loaded, "dpo")[0]
    preference = math.log(2) if "name" not in loss else 25
    assert first["loss"] == pytest.approx(preference + 0.5 * first["nll"], abs=1e-5)
    assert first["rewards_rejected"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_whole_model_learns_from_pairs(tmp_path: Path, tiny_model_dir: Path) -> None:
    dpo = stage(tmp_path, "dpo", method={"name": "full"})
    dpo["train"]["optimizer"]["lr"] = 1e-3
    loaded = recipe(tmp_path, tiny_model_dir, dpo=dpo)
    found = run_recipe(loaded, Silent())["dpo"]
    first, *_, last = metrics_of(loaded, "dpo")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["margin"] > 0
    assert Registry(registry_url(loaded)).get(found["registered"]).kind == "model"
    assert (Path(run_folder(loaded)) / "stages/dpo/artifact/config.json").is_file()


@pytest.mark.slow
def test_kto_starts_at_half_its_weights_and_learns_labels(tmp_path: Path, tiny_model_dir: Path) -> None:
    """1 - sigmoid(0) for every row, as policy and reference are one and the baseline is 0."""
    kto = stage(tmp_path, "kto", undesirable_weight=1.5, **{"from": "sft"})
    loaded = recipe(tmp_path, tiny_model_dir, sft=stage(tmp_path, "sft", method=LORA), kto=kto)
    check_recipe(loaded)
    check_plan(loaded, loaded.stages, pytest.fail)
    found = run_recipe(loaded, Silent())["kto"]
    first, *_, last = metrics_of(loaded, "kto")
    assert first["loss"] == pytest.approx((3 * 0.5 + 3 * 1.5 * 0.5) / 6, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < first["loss"]
    assert found["metrics"]["heldout_rewards_chosen"] > found["metrics"]["heldout_rewards_rejected"]
    assert set(found["metrics"]) == {f"heldout_{name}" for name in loaded.trained["kto"].reports()}


@pytest.mark.slow
def test_kto_needs_rows_of_two_prompts(tmp_path: Path, tiny_model_dir: Path) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, kto=stage(tmp_path, "kto", method=LORA))
    row = {"prompt": "Film?", "completion": "It is warm.", "label": True}
    (tmp_path / "kto.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'label': False})}\n")
    with pytest.raises(UserError, match=r"stages\.kto\.data\.train: all rows have the same prompt"):
        run_recipe(loaded, Silent())


@pytest.mark.slow
def test_rrhf_puts_answers_in_the_order_of_their_ranks(tmp_path: Path, tiny_model_dir: Path) -> None:
    rrhf = stage(tmp_path, "rrhf", **{"from": "sft"})
    rrhf["train"]["batch"]["micro_tokens"] = 512
    loaded = recipe(tmp_path, tiny_model_dir, sft=stage(tmp_path, "sft", method=LORA), rrhf=rrhf)
    check_recipe(loaded)
    check_plan(loaded, loaded.stages, pytest.fail)
    found = run_recipe(loaded, Silent())["rrhf"]
    first, *_, last = metrics_of(loaded, "rrhf")
    assert first["loss"] == pytest.approx(first["ranking"] + first["nll"], abs=1e-5)
    assert last["loss"] < first["loss"]
    assert found["metrics"]["heldout_logps_chosen"] > first["logps_chosen"]
    assert set(found["metrics"]) == {f"heldout_{name}" for name in loaded.trained["rrhf"].reports()}


@pytest.mark.slow
def test_a_ranking_of_more_answers_than_the_recipe_says_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, rrhf=stage(tmp_path, "rrhf", method=LORA, max_answers=3))
    with pytest.raises(
        UserError, match=r"rrhf\.jsonl: 2 of 6 rows are malformed.*\n.*line 3: answers: 4; allowed: up to 3"
    ):
        run_recipe(loaded, Silent())


@pytest.mark.slow
def test_a_resumed_stage_reads_its_references_and_ends_where_an_undisturbed_one_does(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str) -> Recipe:
        return recipe(tmp_path, tiny_model_dir, name, dpo=stage(tmp_path, "dpo", method=LORA))

    undisturbed = run_recipe(make("undisturbed"), Silent())["dpo"]["metrics"]
    loaded = make("stopped")
    with stopped_at_step(4):
        run_recipe(loaded, Silent())
    kept = sorted((Path(run_folder(loaded)) / "stages/dpo/references").iterdir())
    assert [folder.name.partition("-")[0] for folder in kept] == ["heldout", "train"]
    assert pq.read_table(kept[1] / "references.parquet").column_names == ["ref_chosen", "ref_rejected"]
    with monkeypatch.context() as patched:
        patched.setattr(references, "score_rows", None)  # is not called again
        resumed = run_recipe(loaded, Silent())["dpo"]["metrics"]
    assert resumed == pytest.approx(undisturbed, abs=1e-7)
    assert [row["step"] for row in metrics_of(loaded, "dpo")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": LORA | {"dropout": 0.1}}, r"stages\.dpo\.method\.dropout: 0\.1, and the loss compares"),
        ({"loss": {"name": "ipo", "label_smoothing": 0.1}}, r"loss.*label_smoothing: unknown key"),
        ({"loss": {"label_smoothing": 0.5}}, r"label_smoothing"),
        ({"loss": {"name": "hinge"}}, r"loss.*allowed: ipo, sigmoid"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, tiny_model_dir: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, tiny_model_dir, dpo=stage(tmp_path, "dpo", **fields))


def test_bad_pairs_are_refused_by_file_row_and_field(tmp_path: Path, tiny_model_dir: Path) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, dpo=stage(tmp_path, "dpo"))
    path = tmp_path / "dpo.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["rejected"] = rows[2]["chosen"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Exception, match=r"stages\.dpo\.data\.train: .*dpo\.jsonl.*\n.*line 3: chosen and rejected are"):
        check_plan(loaded, loaded.stages, pytest.fail)
