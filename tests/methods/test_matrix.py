"""Methods that change linear layers: what they add, what they start as, and that roles with several stay apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.gradient_cases import language
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import BASE, RoleModel
from triptych.methods.merge import divergence, log_probabilities
from triptych.methods.merged import merged_model
from triptych.methods.parameters.total import trained
from triptych.models.base import load_causal_lm
from triptych.models.sizes import model_sizes
from triptych.recipe import Method, Model, Optimizer
from triptych.recipe import matrix as m
from triptych.recipe.method import BitFit
from triptych.train.learner import Learner
from triptych.train.tasks.language import LanguageModeling

METHODS: list[Method] = [
    m.Lora(r=4),
    m.Lora(r=4, init="olora", layers=(1,)),
    m.Lora(r=4, freeze_a=True, rank_pattern={"layers.0.*q_proj": 2}),
    m.Dora(r=4),
    m.Pissa(r=4, rslora=True),
    m.Pissa(r=4, niter=4),
    m.AdaLora(),
    m.Ia3(),
    m.Vera(r=16),
    m.Loha(),
    m.Lokr(r=4, decompose_both=True),
    m.Oft(),
    m.Boft(),
    m.Hra(),
    m.Miss(r=8),
    m.FourierFt(),
    m.RandLora(),
    m.VbLora(vector_length=64),
    m.Shira(r=4),
    m.C3a(),
    m.LnTuning(),
]


def model_with(folder: Path, method: Method, role: str = "policy") -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, torch.float32))
    model.add(role, method, trainable=True)
    return model


def logits(model: RoleModel, role: str) -> Tensor:
    ids = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), model.use(role):
        return model.logits(model.hidden(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_method_adds_what_the_plan_counts_and_starts_as_the_base(tiny_model_dir: Path, method: Any) -> None:
    model = model_with(tiny_model_dir, method)
    found = sorted(tuple(p.shape) for p in model.parameters_of("policy").values())
    counted = trained(method, model_sizes(Model(base=str(tiny_model_dir))))
    assert found == sorted(tensors.shape for tensors in counted for _ in range(tensors.count))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters_of("policy").values())
    if method.name != "vblora":  # its vectors are mixed at random
        assert (logits(model, "policy") - logits(model, BASE)).abs().max() < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, (m.Lora(r=4), BitFit(missing="add"))], ids=str)
def test_merged_into_the_weights_it_computes_the_same(tiny_model_dir: Path, method: Method) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = model_with(tiny_model_dir, method)
    with torch.no_grad():
        for parameter in model.parameters_of("policy").values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapter = adapter_of(method, model.adapter("policy"), "policy")
    whole = merged_model(tiny_model_dir, adapter.method, adapter.weights)
    changes, weights = whole.config, whole.weights
    config = AutoConfig.from_pretrained(tiny_model_dir)
    for key, value in changes.items():
        setattr(config, key, value)
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    merged = RoleModel(plain.eval())
    expected = logits(model, "policy")
    assert (logits(merged, BASE) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (expected - logits(model, BASE)).abs().max() > 1e-2


@pytest.mark.slow
def test_roles_of_several_methods_share_a_base(tiny_model_dir: Path) -> None:
    """Each answers as if it were alone, before and after one of them is trained."""
    kinds: list[Method] = [m.Lora(r=4), m.Ia3(), m.Pissa(r=4), m.AdaLora(), m.Vera(r=8), m.Vera(r=4)]
    kinds += [m.Ia3(feedforward=()), m.RandLora(r=8), m.RandLora(r=16), m.Dora(r=2), m.LnTuning(), m.LnTuning()]
    methods = dict(zip("abcdefghijkl", kinds, strict=True)) | {"m": m.Lora(r=2)}
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    alone = {}
    for role, method in methods.items():
        one = model_with(tiny_model_dir, method, role)
        with torch.no_grad():
            for parameter in one.parameters_of(role).values():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.add(role, method, trainable=role != "b", weights=one.adapter(role))
        alone[role] = logits(one, role)
    alone[BASE] = logits(RoleModel(load_causal_lm(tiny_model_dir, torch.float32)), BASE)
    for role, expected in alone.items():
        torch.testing.assert_close(logits(model, role), expected, atol=1e-4, rtol=1e-4)
    learner = Learner(model, {"c": Optimizer(lr=1e-3)}, {"c": 1})
    learner.step(LanguageModeling("c"), [language(list(range(8)), torch.float32)])
    for role, expected in alone.items():
        moved = (logits(model, role) - expected).abs().max()
        assert moved > 1e-3 if role == "c" else moved < 1e-3, role
    assert not any(p.requires_grad for p in model.parameters_of("b").values())


def test_each_part_of_a_hybrid_has_its_own_learning_rate(tiny_model_dir: Path) -> None:
    model = model_with(tiny_model_dir, (m.Lora(r=4), BitFit(missing="add", lr=1e-2)))
    learner = Learner(model, {"policy": Optimizer(name="sgd", momentum=0, lr=1e-4)}, {"policy": 1})
    before = {name: p.detach().clone() for name, p in model.parameters_of("policy").items()}
    learner.accumulate(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
    found = learner.gradients("policy")
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    learner.strategy.update("policy", 1e-4)
    for name, parameter in model.parameters_of("policy").items():
        rate = 1e-2 if name.startswith("bitfit.") else 1e-4
        expected = before[name] - rate * found[name] * min(1.0, 1 / (float(norm) + 1e-6))
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (m.Lora(targets=("q_prj",)), r"method.targets: `q_prj` is no linear layer .* did you mean `q_proj`\?"),
        (m.Dora(layers=(2,)), "method.layers: 2; allowed: 0 to 1"),
        (m.Lora(rank_pattern={"k_prj": 2}), "method.rank_pattern: 'k_prj' is none of the targets"),
        (m.LnTuning(targets=("q_norm",)), "method.targets: `q_norm` is no norm of this model; allowed: a list of"),
        (m.VbLora(), "method.name: vblora does not fit this model: .*divisible"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tiny_model_dir: Path, method: Method, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_with(tiny_model_dir, method)


def test_a_base_in_8_bits(tiny_model_dir: Path) -> None:
    """Trained on rounded weights, merged with rounded weights."""
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32, quantization="int8"))
    model.add("policy", m.Pissa(r=4), trainable=True)
    learner = Learner(model, {"policy": Optimizer(lr=1e-3)}, {"policy": 5})
    batch = [language(list(range(8)), torch.float32)]
    losses = [learner.step(LanguageModeling("policy"), batch).metrics["loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    adapter = adapter_of(m.Pissa(r=4), learner.weights("policy"), "policy")
    found = merged_model(tiny_model_dir, adapter.method, adapter.weights, "int8")
    trained = log_probabilities(found.model, tiny_model_dir)
    plain = load_causal_lm(tiny_model_dir, torch.float32)
    original = divergence(trained, log_probabilities(plain, tiny_model_dir))
    plain.load_state_dict(found.weights, strict=False)
    merged = divergence(trained, log_probabilities(plain, tiny_model_dir))
    assert merged < 1e-6 < 1e-3 < original
