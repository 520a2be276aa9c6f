"""`from`: training goes on from an adapter, by its method, with its head, exactly where it ended."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.one_process import Silent, one_process
from triptych import storage
from triptych.errors import UserError
from triptych.models.adapter import load_adapter
from triptych.models.base import load_causal_lm
from triptych.observe.log import read_metrics
from triptych.recipe import Full, Recipe, load_recipe
from triptych.registry import Registry, registry_url
from triptych.stages.preflight import check_plan
from triptych.stages.run import check_recipe, run_folder, run_recipe
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.versions import with_versions

WORDS = ("warm", "dull", "funny", "flat")
LABELS = ["good", "bad"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"Film {i}?", "response": f"It is {WORDS[i % 4]}."} for i in range(6)],
    "reward": [
        {"prompt": f"Film {i}?", "chosen": "It is warm.", "rejected": f"It is {WORDS[i % 3 + 1]}."} for i in range(6)
    ],
    "classification": [{"text": f"Film {i} is {WORDS[i % 4]}.", "label": LABELS[i % 2]} for i in range(6)],
    "question_answering": [
        {"question": "How?", "context": f"It is {word}.", "answers": {"text": [word], "answer_start": [6]}}
        for word in WORDS
    ],
    "token_classification": [{"tokens": ["It", "is", word], "tags": ["O", "O", "good"]} for word in WORDS],
}
FIELDS: dict[str, dict[str, Any]] = {
    "classification": {"labels": LABELS},
    "token_classification": {"labels": ["O", "good"]},
}
LORA = {"name": "lora", "r": 4, "targets": ["q_proj", "v_proj"]}
METHODS: dict[str, Any] = {
    "lora": LORA,
    "adalora": {"name": "adalora", "init_r": 4, "target_r": 2},
    "p_tuning_v2": {"name": "p_tuning_v2", "num_virtual_tokens": 3},
    "pissa": {"name": "pissa", "r": 4},
}
FURTHER: dict[str, Any] = {
    "olora": LORA | {"init": "olora"},
    "eva": LORA | {"init": "eva"},
    "fixed A": LORA | {"freeze_a": True},
    "gated_lora": {"name": "gated_lora", "r": 2},
    "dora": LORA | {"name": "dora"},
    "vera": {"name": "vera", "r": 8},
    "shira": {"name": "shira", "r": 2},
    "p_tuning": {"name": "p_tuning", "num_virtual_tokens": 3},
    "prefix_tuning": {"name": "prefix_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "bitfit": {"name": "bitfit", "missing": "add"},
    "unipelt": {"name": "unipelt"},
    "parts": [METHODS["p_tuning_v2"], METHODS["adalora"], {"name": "houlsby"}],
}


def stage(folder: Path, kind: str, method: Any = None, **fields: Any) -> dict[str, Any]:
    """Three steps, each on all rows; the held-out rows are the same."""
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    return {
        "kind": kind,
        "data": {"train": {"path": str(path)}, "heldout": {"path": str(path)}},
        "train": {
            "steps": 3,
            "optimizer": {"lr": 0.01},
            "batch": {"rows": len(ROWS[kind]), "micro_tokens": 1024, "max_length": 128},
        },
        **({} if method is None else {"method": method}),
        **FIELDS.get(kind, {}),
        **fields,
    }


def recipe(folder: Path, base: Path, **stages: Mapping[str, Any]) -> Recipe:
    path = folder / "recipe.yaml"
    model = {"base": str(base), "dtype": "float32"}
    fields = {"name": "tiny", "model": model, "storage": {"runs": str(folder / "runs")}, "stages": stages}
    path.write_text(yaml.safe_dump(fields))
    return load_recipe(path)


def losses(recipe: Recipe, first: str = "first", more: str = "more") -> tuple[float, float]:
    """The last held-out loss of one stage, and the loss of the first step of another."""
    found = run_recipe(recipe, Silent())
    rows = read_metrics(f"{run_folder(recipe)}/stages/{more}")
    return found[first]["metrics"]["heldout_loss"], next(row["loss"] for row in rows if row["step"] == 1)


CASES = [(kind, name) for kind in ("sft", "reward", "classification") for name in METHODS]
MORE = [*(("sft", name) for name in FURTHER), ("token_classification", "lora"), ("question_answering", "lora")]
ALL = [*CASES, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.usefixtures("one_process")
def test_the_first_loss_is_the_last_held_out_loss(kind: str, name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    method = (METHODS | FURTHER)[name]
    loaded = recipe(
        tmp_path, tiny_model_dir, more=stage(tmp_path, kind, **{"from": "first"}), first=stage(tmp_path, kind, method)
    )
    check_recipe(loaded)
    before, after = losses(loaded)
    assert after == pytest.approx(before, abs=1e-5)


@pytest.fixture(scope="module")
def ended(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """A recipe whose stages `sft`, `classes` (P-tuning v2), `judges` (an ensemble) and `whole` are done."""
    folder = tmp_path_factory.mktemp("ended")
    loaded = recipe(
        folder,
        _tiny_model,
        sft=stage(folder, "sft", LORA),
        classes=stage(folder, "classification", METHODS["p_tuning_v2"], needs=["sft"]),
        judges=stage(folder, "reward", METHODS["adalora"], members=2, needs=["classes"]),
        whole=stage(folder, "sft", {"name": "freeze", "layers": 1}, needs=["judges"]),
    )
    with one_process():
        run_recipe(loaded, Silent())
        yield loaded


def after(ended: Recipe, folder: Path, **fields: Any) -> Recipe:
    """Another recipe with the same registry, of one stage `more`."""
    kind = fields.pop("kind", "sft")
    found = recipe(folder, Path(ended.model.base), more=stage(folder, kind, **fields))
    storage = found.storage.model_copy(update={"registry": registry_url(ended)})
    return found.model_copy(update={"name": "later", "storage": storage})


def first_loss(loaded: Recipe) -> tuple[float, Any]:
    """The loss of the first step of `more`, and the version that it registered."""
    check_recipe(loaded)
    check_plan(loaded, loaded.stages, pytest.fail)
    found = run_recipe(loaded, Silent())["more"]
    rows = read_metrics(f"{run_folder(loaded)}/stages/more")
    return rows[0]["loss"], Registry(registry_url(loaded)).get(found["registered"])


@pytest.mark.slow
def test_versions_are_gone_on_from_and_are_parents(ended: Recipe, tmp_path: Path) -> None:
    registry = Registry(registry_url(ended))
    loss, version = first_loss(after(ended, tmp_path, **{"from": "tiny-sft@1"}))
    parent = registry.get("tiny-sft@1")
    assert loss == pytest.approx(parent.metrics["heldout_loss"], abs=1e-5)
    assert version.lineage["parents"] == {parent.ref: parent.sha256}
    assert version.lineage["stage"]["from"] == "tiny-sft@1"
    assert version.lineage["stage"]["method"]["r"] == 4, "the method of what it goes on from"
    assert [one.ref for one in registry.ancestors(version.ref)] == ["tiny-sft@1"]


def test_an_adapter_from_elsewhere_is_gone_on_from(ended: Recipe, tmp_path: Path) -> None:
    """peft's two files of what is registered already, and nothing else."""
    registry = Registry(registry_url(ended))
    known = registry.get("tiny-sft@1")
    ours = shutil.ignore_patterns("triptych.json", "metrics.json", storage.MANIFEST)
    shutil.copytree(known.url, tmp_path / "plain", ignore=ours)
    registry.register(
        "plain", tmp_path / "plain", kind="policy", base=known.base, base_fingerprint=known.base_fingerprint,
        lineage={}, metrics={},
    )  # fmt: skip
    loss, version = first_loss(after(ended, tmp_path, **{"from": "plain@1"}, method=LORA | {"dropout": 0.0}))
    assert loss == pytest.approx(known.metrics["heldout_loss"], abs=1e-5)
    assert registry.ancestors(version.ref)[0].ref == "plain@1"


@pytest.mark.slow
def test_members_of_an_ensemble_go_on_each_from_its_own(ended: Recipe, tmp_path: Path) -> None:
    """Adapters, ranks and heads: steps that change nothing leave the score as it was."""
    still = stage(tmp_path, "reward")["train"] | {"optimizer": {"lr": 1e-30}}
    _, version = first_loss(after(ended, tmp_path, kind="reward", members=2, train=still, **{"from": "tiny-judges@1"}))
    before, now = Registry(registry_url(ended)).get("tiny-judges@1"), version
    assert now.metrics["heldout_loss"] == pytest.approx(before.metrics["heldout_loss"], abs=1e-5)
    old, new = (load_adapter(Path(one.url), "reward_model", to_go_on=True) for one in (before, now))
    for one, other in zip((old, *old.others), (new, *new.others), strict=True):
        assert one.state is not None
        assert other.state is not None
        kept = [name for name in one.state if name.endswith(".kept")]
        assert sum(int(one.state[name].sum()) for name in kept) == 2 * len(kept), "the budget is spent"
        assert all(torch.equal(one.state[name], other.state[name]) for name in kept)
    assert not torch.equal(new.weights[next(iter(new.weights))], new.others[0].weights[next(iter(new.weights))])


def test_a_prefix_is_the_start_of_another_task_with_a_head_of_its_own(ended: Recipe, tmp_path: Path) -> None:
    other = {"kind": "token_classification", "from": "tiny-classes@1"}
    with pytest.raises(UserError, match=r"stages\.more\.from: .* head of a classification stage; allowed: `head: new`"):
        check_recipe(after(ended, tmp_path, **other))
    still = stage(tmp_path, "token_classification")["train"] | {"optimizer": {"lr": 1e-30}}
    _, version = first_loss(after(ended, tmp_path, **other, head="new", train=still))
    old = load_adapter(Path(Registry(registry_url(ended)).get("tiny-classes@1").url), "classifier")
    new = load_adapter(Path(version.url), "classifier")
    assert new.weights.keys() == old.weights.keys()
    assert all(torch.equal(new.weights[name], tensor) for name, tensor in old.weights.items())
    assert new.labels == ("O", "good")
    assert new.head is not None
    assert old.head is not None
    assert not torch.equal(new.head["weight"], old.head["weight"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"from": "tiny-sft@1", "method": LORA | {"r": 8}},
        r"more\.method: r 8, and `tiny-sft@1` was trained with 4; allowed",
    ),
    ({"from": "tiny-sft@1", "method": {"name": "pissa"}}, r"more\.method: pissa, and .* was trained with lora"),
    ({"from": "tiny-judges@1"}, r"more\.from: `tiny-judges@1` is an ensemble of 2, and here is 1; allowed: as many"),
    ({"from": "tiny-whole@1"}, r"more\.from: .* is of kind model; allowed: .*name its folder in model\.base"),
    ({"from": "tiny-none@1"}, r"tiny-none"),
    (
        {"from": "tiny-classes@1", "kind": "classification", "labels": ["bad", "good"]},
        r"more\.labels: `tiny-classes@1` names good, bad; allowed: the same, in this order, or `head: new`",
    ),
    ({"from": "tiny-classes@1", "kind": "reward"}, r"more\.from: .* head of a classification stage; allowed"),
    (
        {"from": "tiny-sft@1", "model": {"quantization": "int8"}},
        r"model\.quantization: int8, and tiny-sft@1 was .* null",
    ),
]


def test_what_training_cannot_go_on_from_is_refused_at_once(
    ended: Recipe, tmp_path: Path, tiny_model_copy: Path
) -> None:
    for fields, message in REFUSED:
        fields = dict(fields)
        model = fields.pop("model", {})
        loaded = after(ended, tmp_path, **fields)
        loaded = loaded.model_copy(update={"model": loaded.model.model_copy(update=model)})
        for check in (check_recipe, lambda one: check_plan(one, one.stages, pytest.fail)):
            with pytest.raises(UserError, match=message):
                check(loaded)
    base = load_causal_lm(tiny_model_copy, torch.float32)
    torch.nn.init.normal_(base.model.norm.weight)
    base.save_pretrained(tiny_model_copy)
    loaded = after(ended, tmp_path, **{"from": "tiny-sft@1"})
    loaded = loaded.model_copy(update={"model": loaded.model.model_copy(update={"base": str(tiny_model_copy)})})
    for check in (check_recipe, lambda one: check_plan(one, one.stages, pytest.fail)):
        with pytest.raises(UserError, match=r"tiny-sft@1 was trained on .*, another base than"):
            check(loaded)


def test_a_policy_of_the_registry_that_engines_cannot_run_is_refused_at_once(ended: Recipe, recipe_file: Path) -> None:
    registry = f"storage.registry={registry_url(ended)}"
    for ref, field, message in (
        ("tiny-whole@1", "rollout.sync", "adapter, and the policy is a whole model, trained by full"),
        ("tiny-classes@1", "policy", "is of kind classifier; allowed: policy or model"),
    ):
        words = [f"stages.ppo.policy={ref}", registry, "name=other", "stages.ppo.rollout.sync=adapter"]
        with pytest.raises(UserError, match=rf"stages\.ppo\.{field}: .*{message}"):
            check_recipe(load_recipe(recipe_file, words))
    whole = load_recipe(recipe_file, ["stages.ppo.policy=tiny-whole@1", registry, "name=other"])
    check_recipe(whole)
    assert with_versions(whole).trained["ppo"].own_method == Full()
    check_recipe(load_recipe(recipe_file, ["stages.ppo.policy=tiny-sft@1", registry, "name=other"]))
    check_recipe(load_recipe(recipe_file, ["stages.ppo.policy=tiny-sft@1"]))  # this run may yet register it


def test_a_version_of_the_name_that_the_stage_registers_is_known_if_it_is_there(ended: Recipe, tmp_path: Path) -> None:
    loaded = after(ended, tmp_path, **{"from": "tiny-classes@1"}, register_as="tiny-classes")
    assert with_versions(loaded).trained["more"].own_method == ended.trained["classes"].own_method
    with pytest.raises(UserError, match=r"more\.method: r 8, and `tiny-sft@1` was trained with 4"):
        check_recipe(after(ended, tmp_path, **{"from": "tiny-sft@1"}, register_as="tiny-sft", method=LORA | {"r": 8}))
    check_recipe(after(ended, tmp_path, **{"from": "tiny-sft@7"}, register_as="tiny-sft"))


def test_a_plan_without_the_registry_says_what_it_did_not_check(tmp_path: Path, tiny_model_dir: Path) -> None:
    said: list[str] = []
    loaded = recipe(tmp_path, tiny_model_dir, more=stage(tmp_path, "sft", **{"from": "elsewhere@1"}))
    check_plan(loaded, loaded.stages, said.append)
    assert [line.partition(" is not checked")[0] for line in said] == ["stages.more.from: elsewhere@1"]
    with pytest.raises(UserError, match="registry"):
        check_recipe(loaded)


def test_workers_get_the_place_of_an_adapter_and_read_it_themselves(ended: Recipe) -> None:
    version = Registry(registry_url(ended)).get("tiny-sft@1")
    stored = StoredAdapter.read(version, "policy", to_go_on=True)
    packed = pickle.dumps(stored)
    assert len(packed) < 4096 < sum(tensor.nbytes for tensor in stored.adapter.weights.values())
    again = pickle.loads(packed)
    assert again == stored
    assert all(torch.equal(again.adapter.weights[name], tensor) for name, tensor in stored.adapter.weights.items())
    with pytest.raises(UserError, match="tiny-sft@1: "):
        StoredAdapter.read(version, "reward_model")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.cluster
def test_a_real_run_goes_on(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe(
        tmp_path,
        tiny_model_dir,
        first=stage(tmp_path, "sft", METHODS["adalora"]),
        more=stage(tmp_path, "sft", **{"from": "first"}),
    )
    words = [
        str(Path(sys.executable).parent / "triptych"),
        "run",
        str(tmp_path / "recipe.yaml"),
        "--cpus",
        "2",
        "--json",
    ]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    rows = read_metrics(str(tmp_path / "runs" / "tiny" / "stages" / "more"))
    assert rows[0]["loss"] == pytest.approx(found["first"]["metrics"]["heldout_loss"], abs=1e-5)
    registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db")
    assert [one.ref for one in registry.ancestors("tiny-more@1")] == ["tiny-first@1"]
