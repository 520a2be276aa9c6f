"""Prefixes stand before every row inside attention, however rows are laid out, and as in plain peft."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, MistralConfig, MistralForCausalLM

from tests.support.gradient_cases import assert_equal
from tests.support.soft_cases import (
    LAYOUTS,
    ROWS,
    assert_adds_what_the_table_says,
    assert_as_in_peft,
    assert_roles_differ,
    batch,
    disturb,
    roles,
    states,
    states_and_gradients,
)
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.methods.parameters import virtual
from triptych.methods.prefix import TEXT
from triptych.models.adapter import load_adapter, save_adapter
from triptych.models.base import load_causal_lm, load_tokenizer
from triptych.models.quantize import quantize_linears
from triptych.models.sizes import model_sizes
from triptych.recipe.matrix import Lora
from triptych.recipe.model import Model
from triptych.recipe.virtual import PrefixTuning, PTuningV2

METHODS_HERE: dict[str, Any] = {
    "plain": PTuningV2(num_virtual_tokens=4),
    "plain random": PTuningV2(num_virtual_tokens=4, init="random"),
    "encoder": PrefixTuning(num_virtual_tokens=4, encoder_hidden_size=16),
    "encoder random": PrefixTuning(num_virtual_tokens=4, encoder_hidden_size=16, init="random"),
}
each = pytest.mark.parametrize("method", METHODS_HERE.values(), ids=METHODS_HERE)


@pytest.fixture(scope="module")
def windowed_dir(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral-shaped model in which a token sees the five before it."""
    folder = tmp_path_factory.mktemp("models") / "windowed"
    shutil.copytree(_tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tiny = AutoConfig.from_pretrained(_tiny_model)
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = {name: getattr(tiny, name) for name in (*kept, "num_key_value_heads", "initializer_range")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**shape, head_dim=32, sliding_window=6))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "encoder"])
@pytest.mark.parametrize("folder", ["tiny_model_dir", "windowed_dir"])
def test_every_layout_gives_the_same_states_and_gradients(
    request: pytest.FixtureRequest, folder: str, kind: str
) -> None:
    place = request.getfixturevalue(folder)
    first, *others = (states_and_gradients(place, METHODS_HERE[kind], layout) for layout in LAYOUTS.values())
    for other in others:
        assert_equal(other, first, 1e-10)


@each
def test_plain_peft_gives_the_same_logits(tiny_model_dir: Path, tmp_path: Path, method: Any) -> None:
    assert_as_in_peft(tiny_model_dir, method, tmp_path)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("folder", ["tiny_model_dir", "windowed_dir"])
@pytest.mark.parametrize("kind", [PTuningV2, PrefixTuning])
def test_a_new_prefix_is_the_text_that_it_starts_as(
    request: pytest.FixtureRequest, folder: str, kind: type[Any], packing: bool
) -> None:
    place = request.getfixturevalue(folder)
    text = "A dull plot, flat acting."
    for count, given in ((4, text), (40, text), (7, None)):  # cut, repeated, the built-in one
        model = roles(place, packing=packing)
        model.add("policy", kind(num_virtual_tokens=count, init_text=given), trainable=True)
        ids = load_tokenizer(place)(given or TEXT)["input_ids"]
        whole = (ids * count)[:count]
        expected = [states(model, "base", [whole + row])[count:] for row in ROWS]
        assert (states(model, "policy", ROWS) - torch.cat(expected)).abs().max() < 1e-5


def test_the_built_in_text_is_as_long_as_a_default_prefix(tiny_model_dir: Path) -> None:
    assert len(load_tokenizer(tiny_model_dir)(TEXT)["input_ids"]) >= PTuningV2().num_virtual_tokens


@each
def test_adds_what_the_table_says(tiny_model_dir: Path, method: Any) -> None:
    assert_adds_what_the_table_says(tiny_model_dir, method)


def test_default_share_of_a_real_model() -> None:
    """Liu et al. 2022: 0.1% to 3%."""
    sizes = model_sizes(Model(base="smollm2-135m-instruct"))
    assert 0.001 < sum(t.numel for t in virtual.prefix(PTuningV2(), sizes)) / sizes.total < 0.03


def test_roles_have_prefixes_of_their_own(tiny_model_dir: Path) -> None:
    assert_roles_differ(
        tiny_model_dir, {role.replace(" ", "-"): method for role, method in METHODS_HERE.items()}, "plain"
    )


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_and_on_an_int8_base(tiny_model_dir: Path, method: Any, dtype: torch.dtype) -> None:
    """Trained in float32; the states of rows laid end to end are those of padded ones, up to rounding."""
    found = []
    for packing in (True, False):
        torch.manual_seed(0)
        model = roles(tiny_model_dir, dtype, packing=packing)
        quantize_linears(model.lm.model)
        model.add("policy", method, trainable=True)
        disturb(model, "policy", 0.02)
        assert all(p.dtype == torch.float32 for p in model.parameters_of("policy").values())
        with model.autocast():
            hidden = states(model, "policy", ROWS)
            hidden.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters_of("policy").values())
        found.append(hidden.float())
    assert (found[0] - found[1]).abs().max() < (0.1 if dtype == torch.bfloat16 else 0.02) * found[0].abs().max()


def test_the_start_does_not_depend_on_other_roles(tiny_model_dir: Path) -> None:
    model = roles(tiny_model_dir)
    model.add("first", Lora(r=2), trainable=True)
    disturb(model, "first", 1.0)
    with model.use("first"):
        model.add("second", PTuningV2(num_virtual_tokens=4), trainable=True)
    alone = roles(tiny_model_dir)
    alone.add("second", PTuningV2(num_virtual_tokens=4), trainable=True)
    assert_equal(model.adapter("second"), alone.adapter("second"), 0.0)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (PTuningV2, {"num_virtual_tokens": 0}, "greater than or equal to 1"),
        (PrefixTuning, {"num_virtual_tokens": 1025}, "less than or equal to 1024"),
        (PTuningV2, {"init": "random", "init_text": "a"}, "init_text: the text of init: text"),
        (PrefixTuning, {"encoder_hidden_size": 0}, "greater than or equal to 1"),
    ],
)
def test_refuses_what_cannot_be(kind: type[Any], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**wrong)


def test_needs_attention_that_can_be_replaced(tiny_model_dir: Path) -> None:
    base = load_causal_lm(tiny_model_dir, torch.float32)
    base.__dict__["_supports_attention_backend"] = False
    with pytest.raises(UserError, match="p_tuning_v2 stands inside attention"):
        RoleModel(base).add("policy", PTuningV2(), trainable=True)


def test_a_hybrid_is_its_parts_together(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = (PrefixTuning(num_virtual_tokens=4, encoder_hidden_size=16), Lora(r=2))
    model = roles(tiny_model_dir)
    model.add("policy", parts, trainable=True)
    disturb(model, "policy")
    found = states(model, "policy", ROWS)
    save_adapter(tmp_path, adapter_of(parts, model.adapter("policy"), "policy"), {})

    merged = PeftModel.from_pretrained(load_causal_lm(tiny_model_dir, torch.float32), tmp_path / "lora")
    plain = PeftModel.from_pretrained(merged.merge_and_unload(), tmp_path / "prefix_tuning").eval()
    ids, mask = batch(ROWS)
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert (model.logits(found) - expected).abs().max() <= 1e-5 * expected.abs().max()

    kept, again = load_adapter(tmp_path, "policy"), roles(tiny_model_dir)
    again.add("policy", kept.method, trainable=False, weights=kept.weights)
    assert (states(again, "policy", ROWS) - found).abs().max() <= 1e-5 * found.abs().max()
    again.add("trained", parts, trainable=True, weights=load_file(tmp_path / "state.safetensors"))
    assert torch.equal(states(again, "trained", ROWS), found)
