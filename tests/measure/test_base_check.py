"""A base, or a method on it, that workers would refuse is refused from config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.support.families import _COMMON, FAMILIES, tiny
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.measure import base_check
from triptych.recipe import Recipe, load_recipe

PREFIX = "stages.reward.method={name: prefix_tuning}"


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_check, "_KNOWN", {})


def recipe(three_stages: Path, family: str, *sets: str, **fields: Any) -> Recipe:
    """SFT and what follows on a tiny base of a family, of which there is the config.json alone."""
    folder = three_stages.parent / family
    folder.mkdir(exist_ok=True)
    config = AutoConfig.for_model(family, **_COMMON | FAMILIES[family].config)
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json_string(use_diff=False)) | fields))
    return load_recipe(three_stages, [f"model.base={folder}", *sets])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sets", "fields", "told"),
    [
        ("llama", [], {"is_causal": False}, "lets tokens see later ones"),
        ("qwen3_moe", ["model.quantization=int8"], {}, r"int8 rounds linear layers, and .* matrix for each expert"),
        ("lfm2", [PREFIX], {}, "prefix_tuning stands inside attention, and in a Lfm2ForCausalLM it has layers of the"),
        ("phimoe", [PREFIX], {}, "masked to the last 6 tokens"),
        ("nemotron", [PREFIX], {}, "does not hand to attention what its decoder is given"),
        ("deepseek_v3", [PREFIX], {}, "keys and values of one shape, and those of a DeepseekV3ForCausalLM differ"),
    ],
)
def test_what_workers_would_refuse_is_refused(
    three_stages: Path, family: str, sets: list[str], fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        base_check.check_base(recipe(three_stages, family, *sets, **fields), ["sft", "reward"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in ("doge", "lfm2") else pytest.mark.exhaustive) for name in FAMILIES],
)
def test_what_workers_would_train_is_allowed(three_stages: Path, family: str) -> None:
    base_check.check_base(recipe(three_stages, family), ["sft", "reward", "ppo"])


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "doge" else pytest.mark.exhaustive) for name in FAMILIES]
)
def test_prefixes_are_refused_where_a_worker_refuses_them(three_stages: Path, family: str) -> None:
    """Also where a family's code fails on tensors without numbers: the table of families knows it."""
    wanted = recipe(three_stages, family, PREFIX, "model.dtype=float32")
    worker = RoleModel(tiny(family, torch.float32))
    try:
        base_check.check_base(wanted, ["reward"])
    except UserError:
        method = wanted.trained["reward"].own_method
        assert method is not None
        with pytest.raises(UserError):
            worker.add("reward", method, trainable=True)
    else:
        assert worker.padded_because is None


def test_the_llama_family_with_lora_needs_no_look(three_stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_check, "_attach", pytest.fail)
    base_check.check_base(recipe(three_stages, "llama"), ["sft", "reward", "ppo"])
    base_check.check_base(recipe(three_stages, "qwen3", "stages.reward.method={name: dora}"), ["sft"])


def test_points_of_a_sweep_that_are_alike_are_looked_at_once(
    three_stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(base_check, "_attach", lambda model, role: looks.append(role))
    for rate in (1e-4, 2e-4):
        base_check.check_base(recipe(three_stages, "gemma2", f"stages.sft.train.optimizer.lr={rate}"), ["sft"])
    assert len(looks) == 1
