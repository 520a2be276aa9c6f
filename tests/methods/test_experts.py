"""LoRA on the experts of mixtures computes, is saved and is merged as peft's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.mixtures import each_mixture, saved
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import BASE, RoleModel
from triptych.methods.merged import merged_model
from triptych.methods.parameters.total import trained
from triptych.models.adapter import load_adapter, save_adapter
from triptych.models.full import save_model
from triptych.models.peft_files import peft_name
from triptych.models.sizes import model_sizes
from triptych.models.weights import read_weights
from triptych.recipe import Method
from triptych.recipe.matrix import Dora, Lora
from triptych.recipe.model import Model
from triptych.registry.validation import check_content
from triptych.serve.capabilities import Capabilities

ROLE = "policy"
ROWS = ([5, 9, 33, 4, 17, 8, 80, 21, 6, 11], [5, 9, 33, 60, 61], [7, 3])
LORA = Lora(
    r=4,
    alpha=12,
    rslora=True,
    rank_pattern={"experts.down_proj": 2, ".*q_(b_)?proj": 3},
    alpha_pattern={"gate_up_proj": 5},
)


def loaded(base: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The model; torch has no grouped product of experts in float64."""
    kind: Any = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **kind)
    found.config.use_cache = False
    return found.eval()


def with_experts(base: Path, method: Method = LORA, dtype: torch.dtype = torch.float64, **settings: Any) -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(loaded(base, dtype), **settings)
    model.add(ROLE, method, trainable=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters_of(ROLE).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def batch() -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in ROWS])
    return ids, (ids > 0).long()


def ours(model: RoleModel, role: str = ROLE) -> list[Tensor]:
    """Logits of each row."""
    ids, mask = batch()
    with model.use(role):
        hidden = model.hidden(ids, mask)
        return [model.logits(row[kept]) for row, kept in zip(hidden, mask.bool(), strict=True)]


def alone(model: Any) -> list[Tensor]:
    """Logits of each row by itself, as a model of transformers or peft computes them."""
    return [model(input_ids=torch.tensor([row])).logits[0] for row in ROWS]


def weighted(logits: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([(row * torch.randn(row.shape, generator=generator).to(row)).sum() for row in logits]).sum()


def assert_close(found: list[Tensor], wanted: list[Tensor], allowed: float) -> None:
    for got, right in zip(found, wanted, strict=True):
        assert (got - right).abs().max() <= allowed * max(1.0, float(right.abs().max()))


@pytest.mark.slow
@each_mixture
def test_logits_and_gradients_are_those_of_peft_reading_the_saved_adapter(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path, name)
    model = with_experts(base)
    save_adapter(tmp_path / "adapter", adapter_of(LORA, model.adapter(ROLE), "policy"), {})
    peft = PeftModel.from_pretrained(
        loaded(base), tmp_path / "adapter", is_trainable=True, autocast_adapter_dtype=False
    )
    peft.double()
    logits = alone(peft)
    named = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    gradients = dict(zip(named, torch.autograd.grad(weighted(logits), list(named.values())), strict=True))
    for packing, checkpointing in ((True, "none"), (False, "full"), (True, "selective")):
        again = with_experts(base, packing=packing, checkpointing=checkpointing)
        again.eval()  # a router of phimoe's draws in training
        own = again.parameters_of(ROLE)
        with again.use(ROLE):
            found = ours(again)
            backward = torch.autograd.grad(weighted(found), list(own.values()))
        assert_close(found, logits, 1e-5)
        assert len(own) == len(gradients)
        theirs = [gradients[peft_name(key).replace(".weight", ".default.weight")] for key in own]
        most = max(float(gradient.abs().max()) for gradient in theirs)
        assert all((g - right).abs().max() <= 1e-6 * max(1.0, most) for g, right in zip(backward, theirs, strict=True))


@each_mixture
def test_merged_weights_compute_the_same_and_lie_as_the_files_of_the_base(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path, name)
    model = with_experts(base, dtype=torch.float32)
    save_adapter(tmp_path / "adapter", adapter_of(LORA, model.adapter(ROLE), "policy"), {})
    adapter = load_adapter(tmp_path / "adapter", "policy")
    assert adapter.weights.keys() == model.adapter(ROLE).keys()
    weights = merged_model(base, adapter.method, adapter.weights).weights
    files = read_weights(base)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in files.items()}
    (tmp_path / "merged").mkdir()
    save_model(tmp_path / "merged", base, weights, torch.float32, {})
    with torch.no_grad():
        expected, untouched = ours(model), ours(model, BASE)
        assert_close(alone(loaded(tmp_path / "merged", torch.float32)), expected, 1e-4)
        assert_close(alone(loaded(base, torch.float32)), untouched, 1e-4)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, untouched, strict=True)) > 1e-2


@each_mixture
def test_the_plan_counts_what_is_trained(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path, name)
    for method in (LORA, Lora(r=4, layers=(1,), freeze_a=True), Lora(r=4, experts=False)):
        found = sorted(tuple(p.shape) for p in with_experts(base, method).parameters_of(ROLE).values())
        counted = trained(method, model_sizes(Model(base=str(base))))
        assert found == sorted(tensors.shape for tensors in counted for _ in range(tensors.count))


@pytest.mark.slow
def test_roles_with_and_without_experts_share_a_base(tmp_path: Path) -> None:
    """Each computes what it computes by itself, also while another waits for its backward pass."""
    base = saved(tmp_path, "qwen3_moe")
    methods: dict[str, Method] = {"a": LORA, "b": Lora(r=2), "c": Lora(r=4, experts=False, dropout=0.1), "d": Dora(r=2)}
    single = {role: with_experts(base, method).eval() for role, method in methods.items()}
    model = RoleModel(loaded(base), checkpointing="full")
    for role, method in methods.items():
        model.add(role, method, trainable=role != "b", weights=single[role].adapter(ROLE))
        assert model.can_stand_beside(role) is (role == "c")
    model.eval()
    for role in (*methods, *reversed(methods)):
        assert_close(ours(model, role), ours(single[role]), 1e-8)
    own = list(model.parameters_of("a").values())
    with model.use("a"):
        loss = weighted(ours(model, "a"))
        ours(model, "d")
        found = torch.autograd.grad(loss, own)
    with single["a"].use(ROLE):
        wanted = torch.autograd.grad(weighted(ours(single["a"])), list(single["a"].parameters_of(ROLE).values()))
    assert_close(list(found), list(wanted), 1e-6)
    model.remove("b")
    assert_close(ours(model, "a"), ours(single["a"]), 1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dropout": 0.1},
            r"method\.dropout: 0\.1, .*experts\.gate_up_proj and 3 more\); allowed: 0, or `experts: fal",
        ),
        ({"init": "pissa"}, r"method\.init: pissa, .*allowed: default or gaussian, or `experts: false`"),
    ],
)
def test_what_experts_cannot_have_is_refused_before_and_in_training(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    base = saved(tmp_path, "qwen3_moe")
    method = Lora(**change)
    with pytest.raises(UserError, match=message):
        trained(method, model_sizes(Model(base=str(base))))
    with pytest.raises(UserError, match=message):
        with_experts(base, method)
    for allowed in (method.model_copy(update={"experts": False}), method.model_copy(update={"targets": ("q_proj",)})):
        assert not any(".experts." in name for name in with_experts(base, allowed).parameters_of(ROLE))


def test_an_adapter_from_before_experts_were_reached_is_read_as_it_was(tmp_path: Path) -> None:
    base, method = saved(tmp_path, "qwen3_moe"), Lora(r=4, experts=False)
    model = with_experts(base, method)
    save_adapter(tmp_path / "adapter", adapter_of(method, model.adapter(ROLE), "policy"), {})
    path = tmp_path / "adapter" / "triptych.json"
    facts = json.loads(path.read_text())
    del facts["method"]["experts"]
    path.write_text(json.dumps(facts))
    found = load_adapter(tmp_path / "adapter", "policy")
    again = RoleModel(loaded(base))
    again.add(ROLE, found.method, trainable=True, weights=found.weights)
    assert_close(ours(again), ours(model), 1e-8)


@pytest.mark.slow
def test_an_adapter_of_experts_is_registered_and_served_merged_only(tmp_path: Path) -> None:
    model = with_experts(saved(tmp_path, "qwen3_moe"))
    adapter = adapter_of(LORA, model.adapter(ROLE), "policy")
    save_adapter(tmp_path / "adapter", adapter, {})
    facts = check_content(tmp_path / "adapter", "policy")
    assert (facts.rank, facts.merges) == (4, True)
    assert "vLLM's CPU engine has no LoRA: merge it into the base" in str(Capabilities().why_not("policy", facts))
    assert not adapter.is_lora
