"""UniPELT's gates scale what its parts add, each token's by its own, and no token sees a later one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.gradient_cases import assert_equal, in_float64
from tests.support.plain_model import disturb as disturb_attachment
from tests.support.plain_model import load, logits
from tests.support.soft_cases import (
    LAYOUTS,
    ROWS,
    assert_adds_what_the_table_says,
    assert_roles_differ,
    disturb,
    roles,
    states,
    states_and_gradients,
)
from triptych.forward.attention import RowPrefix, padded_attention
from triptych.forward.export import adapter_of
from triptych.forward.gated_prefix import with_gate
from triptych.methods import METHODS
from triptych.methods.layers import Gate
from triptych.models.adapter import load_adapter, save_adapter
from triptych.recipe.bottleneck import GatedPfeiffer, Pfeiffer
from triptych.recipe.matrix import GatedLora
from triptych.recipe.method import Unipelt
from triptych.recipe.virtual import GatedPrefix, PTuningV2

METHODS_HERE: dict[str, Any] = {
    "prefix": GatedPrefix(num_virtual_tokens=4, prefix_projection=False),
    "encoder": GatedPrefix(num_virtual_tokens=4, encoder_hidden_size=16),
    "lora": GatedLora(r=4),
    "adapter": GatedPfeiffer(),
    "all": Unipelt(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS_HERE)
def test_every_layout_gives_the_same_states_and_gradients(tiny_model_dir: Path, kind: str) -> None:
    first, *others = (states_and_gradients(tiny_model_dir, METHODS_HERE[kind], layout) for layout in LAYOUTS.values())
    for other in others:
        assert_equal(other, first, 1e-10)


def test_no_token_sees_a_later_one(tiny_model_dir: Path) -> None:
    model = roles(tiny_model_dir)
    model.add("policy", Unipelt(), trainable=True)
    disturb(model, "policy")
    whole = states(model, "policy", [ROWS[1]])
    for length in range(1, len(ROWS[1])):
        assert (states(model, "policy", [ROWS[1][:length]]) - whole[:length]).abs().max() < 1e-4


def test_a_gate_scales_each_tokens_keys_and_values_of_the_prefix() -> None:
    """Against one softmax for each token, over keys that are scaled for it."""
    heads, tokens, length, size = 2, 5, 3, 4
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, size, dtype=torch.float64) for _ in range(3))
    before = [torch.randn(1, heads, length, size, dtype=torch.float64) for _ in range(2)]
    gate = torch.rand(1, tokens, 1, dtype=torch.float64)
    found, _ = with_gate(padded_attention, "row_prefix", "give")(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        row_prefix=RowPrefix(lambda *_: (before[0], before[1]), length, torch.arange(length, length + tokens)[None]),
        prefix_gate=gate,
    )
    for token in range(tokens):
        scale = gate[0, token]
        keys = torch.cat([scale * before[0][0], key[0, :, : token + 1]], dim=1)
        values = torch.cat([scale * before[1][0], value[0, :, : token + 1]], dim=1)
        weights = ((keys @ query[0, :, token, :, None])[..., 0] * size**-0.5).softmax(dim=-1)
        torch.testing.assert_close(found[0, token], (weights[..., None] * values).sum(dim=1))


@pytest.mark.parametrize(("gated", "plain"), [("prefix", PTuningV2(num_virtual_tokens=4)), ("adapter", Pfeiffer())])
def test_an_open_gate_is_none(tiny_model_dir: Path, gated: str, plain: Any) -> None:
    model = in_float64(roles(tiny_model_dir))
    for role, method in (("gated", METHODS_HERE[gated]), ("plain", plain)):
        model.add(role, method, trainable=True)
    own, other = model.parameters_of("gated"), model.parameters_of("plain")
    assert own.keys() - other.keys() == {name for name in own if "gate" in name}
    disturb(model, "plain")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(other[name] if name in other else torch.full_like(parameter, 40.0 * name.endswith("bias")))
    assert (states(model, "gated", ROWS) - states(model, "plain", ROWS)).abs().max() < 1e-10
    with torch.no_grad():
        for name, parameter in own.items():
            if name.endswith("linear.bias"):
                parameter.fill_(-40.0)
    shut = states(model, "gated", ROWS)
    if gated == "adapter":
        assert (shut - states(model, "base", ROWS)).abs().max() < 1e-10
    assert (shut - states(model, "plain", ROWS)).abs().max() > 0.01


def test_a_gated_lora_computes_the_papers_formula(tiny_model_dir: Path) -> None:
    model, expected = load(tiny_model_dir), load(tiny_model_dir)
    method = GatedLora(r=4, targets=("v_proj",))
    attachment = METHODS["gated_lora"].attach(model, method, "role")
    disturb_attachment(attachment)
    attachment.activate(True)
    own = attachment.parameters()
    for number, block in enumerate(expected.model.layers):
        a, b, weight, bias = (
            own[f"model.layers.{number}.self_attn.v_proj.{name}"]
            for name in ("lora_A", "lora_B", "gate.linear.weight", "gate.linear.bias")
        )

        def change(_: Any, given: Any, output: Any, parts: Any = (a, b, weight, bias)) -> Any:
            a, b, weight, bias = parts
            return output + torch.sigmoid(given[0] @ weight.T + bias) * (given[0] @ a.T @ b.T) * (method.alpha / 4)

        block.self_attn.v_proj.register_forward_hook(change)
    assert (logits(model) - logits(expected)).abs().max() < 1e-12
    assert (logits(model) - logits(load(tiny_model_dir))).abs().max() > 0.1


def test_a_new_gate_is_half_open() -> None:
    assert (Gate(64)(torch.randn(100, 64)) - 0.5).abs().max() < 0.25


def test_roles_have_gates_of_their_own(tiny_model_dir: Path) -> None:
    ungated = {"ungated": PTuningV2(num_virtual_tokens=4)}
    assert_roles_differ(tiny_model_dir, METHODS_HERE | ungated, "all")


@pytest.mark.parametrize("kind", METHODS_HERE)
def test_adds_what_the_table_says(tiny_model_dir: Path, kind: str) -> None:
    assert_adds_what_the_table_says(tiny_model_dir, METHODS_HERE[kind])


def test_one_folder_from_which_it_answers_and_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The encoder is folded; nobody else's files are pretended."""
    model, method = roles(tiny_model_dir), Unipelt(prefix=GatedPrefix(num_virtual_tokens=4, lr=1e-3))
    model.add("policy", method, trainable=True)
    disturb(model, "policy")
    found = states(model, "policy", ROWS)
    save_adapter(tmp_path, adapter_of(method, model.adapter("policy"), "policy"), {})
    assert not list(tmp_path.rglob("adapter_config.json"))
    kept, again = load_adapter(tmp_path, "policy"), roles(tiny_model_dir)
    assert not any("embedding" in name for name in kept.weights)
    again.add("policy", kept.method, trainable=False, weights=kept.weights)
    assert (states(again, "policy", ROWS) - found).abs().max() <= 1e-5 * found.abs().max()
    again.add("trained", method, trainable=True, weights=load_file(tmp_path / "state.safetensors"))
    assert torch.equal(states(again, "trained", ROWS), found)
    assert set(again.rates_of("trained").values()) == {1e-3}
