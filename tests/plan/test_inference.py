"""Stages that only measure are planned: passes without gradients, one base under all adapters, engines for answers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.errors import UserError
from triptych.models.sizes import model_sizes
from triptych.plan import Machine, Node, duration, estimate, place
from triptych.recipe import Recipe, load_recipe

LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))
CHATS = {"data": {"path": "chats.jsonl"}, "measure": {"name": "loss"}}


def load(folder: Path, *, taste: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    """Two SFT stages, and `compare`: both beside the base on chats, where `stage` does not say otherwise.

    `taste`: fields of a reward stage; None: there is none.
    """
    sft = {"kind": "sft", "data": {"train": {"path": "chats.jsonl"}}, "train": {"steps": 1}}
    compare = {"kind": "evaluation", "models": ["base", "one", "two"], "sets": {"chats": CHATS}} | stage
    model = {"base": "smollm2-135m-instruct"}
    path = folder / "recipe.yaml"
    stages = {"one": sft, "two": sft, "compare": compare} | (
        {"taste": sft | {"kind": "reward"} | taste} if taste else {}
    )
    path.write_text(yaml.safe_dump({"name": "t", "model": model, "stages": stages}))
    return load_recipe(path)


def test_the_base_is_counted_once_and_nothing_of_training(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    found = estimate(recipe, machine=LAPTOP)
    measured, trained = found.stages["compare"], found.stages["one"]
    assert set(measured.roles) == {"base", "one", "two"}
    weights = measured.roles["base"].parts["weights"].expected
    assert weights == 2 * model_sizes(recipe.model).total
    assert [set(measured.roles[name].parts) for name in ("one", "two")] == [{"adapter"}, {"adapter"}]
    adapter = measured.roles["one"].parts["adapter"].expected
    assert adapter == trained.roles["policy"].parts["adapter"].expected
    assert measured.peak_bytes < trained.peak_bytes, "one block's tensors at a time, and no gradients"
    alone = estimate(load(tmp_path, models=["base", "one"]), machine=LAPTOP).stages["compare"]
    assert measured.peak_bytes == alone.peak_bytes + adapter


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    small = load(tmp_path).model_copy(update={"memory": "300MB"})
    with pytest.raises(UserError, match=r"stages\.compare does not fit machine laptop .*: node 0 needs at least"):
        estimate(small, machine=LAPTOP, stage="compare")
    longer = load(tmp_path, compute={"batch": {"max_length": 9000}})
    with pytest.raises(UserError, match=r"compare\.compute\.batch\.max_length: 9000 tokens; allowed: up to 8192"):
        estimate(longer, machine=LAPTOP, stage="compare")
    crowded = load(tmp_path, compute={"workers": {"count": 4}})
    with pytest.raises(UserError, match=r"lower stages\.compare\.compute\.workers\.count or stages\.compare\.compute"):
        place(crowded, LAPTOP, "compare")


def test_time_grows_with_models_and_rows(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    found, placed = estimate(recipe, machine=LAPTOP), place(recipe, LAPTOP)
    rows = {"one": 100, "two": 100}
    some = duration(recipe, found, placed, rows | {"compare": 160}, None).stages["compare"]
    more = duration(recipe, found, placed, rows | {"compare": 320}, None).stages["compare"]
    assert some.steps == 3 * 10, "16 rows of 256 tokens a micro-batch"
    assert more.seconds == pytest.approx(2 * some.seconds)


def test_engines_are_planned_beside_the_workers(tmp_path: Path) -> None:
    sums = {"data": {"path": "sums.jsonl"}, "measure": {"name": "verifier"}}
    quiet, asked = load(tmp_path), load(tmp_path, sets={"chats": CHATS, "sums": sums})
    roles = {name: request.count for request in place(asked, LAPTOP).requests["compare"] for name in [request.role]}
    assert roles == {"worker": 1, "engine": 2}
    less, more = (estimate(recipe, machine=LAPTOP, stage="compare").stages["compare"] for recipe in (quiet, asked))
    assert "engine" not in less.roles
    assert more.peak_bytes > less.peak_bytes + 2 * 2**30, "a cache of 1 GiB each"
    assert more.speed.sampling > 0 == less.speed.sampling


def test_a_judge_that_is_a_whole_model_takes_the_bases_place(tmp_path: Path) -> None:
    """Its head alone comes on top: weights of the base's size are there once at a time."""
    judged = {"data": {"path": "prompts.jsonl"}, "measure": {"name": "judge", "reward": "taste"}}
    one = load(tmp_path, sets={"films": judged, "chats": CHATS}, taste={"method": {"name": "full"}})
    found = estimate(one, machine=LAPTOP, stage="compare").stages["compare"].roles
    assert {name: amount.expected for name, amount in found["reward"].parts.items()} == {"adapter": 4 * 577}
    assert found["base"].parts["weights"].expected == 2 * model_sizes(one.model).total
