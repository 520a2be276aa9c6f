"""Exports: the base named in peft's files, a model card, and both pushed to a hub as one commit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.support.hub import Hub
from triptych.cli import app
from triptych.errors import RunError, UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.models.adapter import save_adapter
from triptych.models.base import fingerprint, load_causal_lm
from triptych.recipe.matrix import Lora
from triptych.registry import Registry

IDS = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def registry(tmp_path: Path, tiny_model_dir: Path) -> str:
    """A registry with `first@1`, and `more@1` made from it."""
    torch.manual_seed(0)
    method = Lora(r=4, targets=("q_proj", "v_proj"))
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("policy", method, trainable=True)
    for parameter in model.parameters_of("policy").values():
        parameter.data = torch.randn_like(parameter) * 0.1
    facts = {"base": str(tiny_model_dir), "base_fingerprint": fingerprint(tiny_model_dir), "recipe": "r"}
    save_adapter(tmp_path / "adapter", adapter_of(method, model.adapter("policy"), "policy"), facts)
    url = f"sqlite:///{tmp_path}/registry.db"
    known = Registry(url, str(tmp_path / "artifacts"))
    lineage: dict[str, Any] = {
        "data": {"train": "d1d2", "heldout": "e3"},
        "stage_kind": "sft",
        "seed": 7,
        "code": "0.1",
    }
    for name, parents in (("first", {}), ("more", {"first@1": "s"})):
        known.register(
            name,
            tmp_path / "adapter",
            kind="policy",
            base=facts["base"],
            base_fingerprint=facts["base_fingerprint"],
            lineage=lineage | {"parents": parents, "run": "/home/me/secret-runs"},
            metrics={"heldout_loss": 1.25},
        )
    return url


def invoke(*words: object) -> Any:
    result = CliRunner().invoke(app, ["adapters", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_an_export_names_its_base_and_loads_without_being_told(
    registry: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    out = tmp_path / "out"
    invoke("export", "more", out, "--base", tiny_model_dir, "--registry", registry)
    named = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tiny_model_dir)
    alone = AutoPeftModelForCausalLM.from_pretrained(str(out)).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    expected = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(input_ids=IDS).logits, expected(input_ids=IDS).logits)


def test_a_base_of_the_hub_names_itself_with_its_commit(registry: str, tmp_path: Path) -> None:
    known = Registry(registry, str(tmp_path / "artifacts"))
    facts = tmp_path / "adapter" / "triptych.json"
    said = json.loads(facts.read_text()) | {"hub_base": {"id": "owner/base", "revision": "c0ffee"}}
    facts.write_text(json.dumps(said))
    version = known.get("first@1")
    fingerprint = version.base_fingerprint
    known.register(
        "hub",
        tmp_path / "adapter",
        kind="policy",
        base="owner/base",
        base_fingerprint=fingerprint,
        lineage={},
        metrics={},
    )
    invoke("export", "hub", tmp_path / "out", "--registry", registry)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "c0ffee")
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["base_model_relation"], front["library_name"]) == (
        "owner/base",
        "adapter",
        "peft",
    )


def test_a_name_of_this_machine_alone_is_not_written(registry: str, tmp_path: Path) -> None:
    result = invoke("export", "first", tmp_path / "out", "--registry", registry)
    assert "do not name the base" in result.output
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    with pytest.raises(UserError, match="exists already"):
        invoke("export", "first", tmp_path / "out", "--registry", registry)


def test_another_base_or_no_name_is_refused(registry: str, tmp_path: Path, tiny_model_copy: Path) -> None:
    model = load_causal_lm(tiny_model_copy, torch.float32)
    torch.nn.init.normal_(model.model.norm.weight)
    model.save_pretrained(tiny_model_copy)
    with pytest.raises(UserError, match=r"--base: .* is another model than .*, on which first@1 was trained"):
        invoke("export", "first", tmp_path / "out", "--base", tiny_model_copy, "--registry", registry)
    with pytest.raises(UserError, match="--base: nowhere: no folder; allowed: a folder, or an id"):
        invoke("export", "first", tmp_path / "out", "--base", "nowhere", "--registry", registry)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_it_is_and_where_it_comes_from(registry: str, tmp_path: Path) -> None:
    invoke("export", "more", tmp_path / "out", "--base", "owner/base", "--registry", registry)
    card = (tmp_path / "out" / "README.md").read_text()
    known = Registry(registry)
    for said in (
        "# more@1",
        "trained by lora on owner/base",
        f"| first@1 | {known.get('first@1').sha256} |",
        "| train | d1d2 |",
        "| heldout | e3 |",
        "| heldout_loss | 1.25 |",
        'AutoModelForCausalLM.from_pretrained("owner/base")',
    ):
        assert said in card
    assert "secret-runs" not in card, "no path of this machine"
    invoke("register", "again", tmp_path / "out", "--registry", registry)
    invoke("export", "again", tmp_path / "twice", "--registry", registry)
    assert (tmp_path / "twice" / "README.md").read_text() == card, "a card that is there stays"
    assert "# again@1" in (tmp_path / "twice" / "TRIPTYCH.md").read_text()
    config = json.loads((tmp_path / "twice" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"


def test_a_merged_model_has_a_card(registry: str, tmp_path: Path) -> None:
    invoke("merge", "more", tmp_path / "merged", "--registry", registry)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "A whole model, trained by lora on" in card
    assert "of the change kept, KL" in card
    assert "| first@1 |" in card
    assert "| more@1 |" in card


def test_a_version_is_pushed_as_one_commit(registry: str, tmp_path: Path, hub: Hub) -> None:
    words = ("push", "more", "hf://owner/films", "--base", "owner/base", "--registry", registry)
    result = invoke(*words)
    assert f"more@1 -> {hub.url}/owner/films/commit/" in result.output
    files = hub.uploads.files["owner/films"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "triptych.json"} == set(files)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    ours = load((tmp_path / "adapter" / "adapter_model.safetensors").read_bytes())
    theirs = load(files["adapter_model.safetensors"])
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert hub.uploads.private == {"owner/films": True}, "nobody else sees it, if --public does not say so"
    assert hub.uploads.messages == ["more@1"]
    assert hub.tokens - {""} == {"Bearer hf_secret"}
    assert "hf_secret" not in result.output
    invoke(*words, "--public")
    assert hub.uploads.messages == ["more@1", "more@1"]


def test_what_cannot_be_pushed_is_told(registry: str, hub: Hub) -> None:
    with pytest.raises(UserError, match="films: allowed: a model repository of the Hugging Face hub, hf://owner/name"):
        invoke("push", "more", "films", "--registry", registry)
    hub.uploads.full = True
    with pytest.raises(RunError, match=r"hf://owner/films: the upload failed: .*403"):
        invoke("push", "more", "hf://owner/films", "--registry", registry)
