"""Partial tuning trains what is named, and nothing else."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support.plain_model import IDS, gradients, load, logits
from triptych.errors import UserError
from triptych.methods.freeze import attach, whole
from triptych.methods.parameters import base_weights
from triptych.models.base import load_causal_lm
from triptych.models.sizes import model_sizes
from triptych.recipe.method import Freeze
from triptych.recipe.model import Model

CASES = [
    (Freeze(layers=1), {"model.layers.1."}, 9),
    (Freeze(train=("q_proj", "down_proj.weight")), {"q_proj.weight", "down_proj.weight"}, 4),
    (Freeze(train=(r"model\.layers\.0\..*norm\.weight", "model.norm")), {"norm.weight"}, 3),
    (Freeze(embeddings=True), {"model.embed_tokens.weight"}, 1),
    (Freeze(tokens=(17, 300)), {"model.embed_tokens.weight.rows"}, 1),
]


@pytest.mark.parametrize(("method", "parts", "count"), CASES)
def test_what_trains_is_what_is_named(tiny_model_dir: Path, method: Freeze, parts: set[str], count: int) -> None:
    model = load(tiny_model_dir, torch.bfloat16)
    named = attach(model, method, "role").parameters()
    assert len(named) == count
    assert all(any(part in name for part in parts) for name in named)
    assert all(parameter.dtype == torch.float32 for parameter in named.values())
    others = [p for name, p in model.named_parameters() if not any(p is own for own in named.values())]
    assert others
    assert all(p.dtype == torch.bfloat16 for p in others)
    counted: Counter[tuple[int, ...]] = Counter()
    for tensors in base_weights.freeze(method, model_sizes(Model(base=str(tiny_model_dir)))):
        counted[tensors.shape] += tensors.count
    assert counted == Counter(tuple(p.shape) for p in named.values())


@pytest.mark.parametrize("folder", ["tiny_model_dir", "biased_model_dir"])
def test_names_and_shapes_from_the_sizes_are_the_models(request: pytest.FixtureRequest, folder: str) -> None:
    path = request.getfixturevalue(folder)
    shapes = {name: tuple(p.shape) for name, p in load(path).named_parameters()}
    assert base_weights.parameter_shapes(model_sizes(Model(base=str(path)))) == shapes


@pytest.mark.parametrize(("folder", "tables"), [("tiny_model_dir", 1), ("biased_model_dir", 2)])
def test_rows_of_some_tokens_are_those_of_the_whole_table(
    request: pytest.FixtureRequest, folder: str, tables: int
) -> None:
    """Tied embeddings have one set of rows, others two; outputs and gradients are those of the whole table."""
    path = request.getfixturevalue(folder)
    model, expected = load(path), load(path)
    before = logits(model)
    attachment = attach(model, Freeze(tokens=(300, 17, 17)), "role")
    rows = attachment.parameters()
    assert len(rows) == tables
    attachment.activate(True)
    assert (logits(model) - before).abs().max() < 1e-12
    with torch.no_grad():
        for number, (name, row) in enumerate(rows.items()):
            row.add_(0.1 * (number + 1))
            expected.get_parameter(name.removesuffix(".rows"))[[17, 300]] = row
    assert (logits(model) - logits(expected)).abs().max() < 1e-12
    assert (logits(model) - before).abs().max() > 0.1
    expected.requires_grad_(True)
    expected(IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None]).mean().backward()
    for name, gradient in gradients(model, attachment).items():
        of_table = expected.get_parameter(name.removesuffix(".rows")).grad
        assert (gradient - of_table[[17, 300]]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Freeze(layers=3), r"method.layers: 3, and the model has 2; allowed: 0 to 2"),
        (Freeze(train=("qproj",)), r"method.train: 'qproj' matches no parameter; allowed: .*q_proj.weight"),
        (Freeze(train=("lm_head",)), r"'lm_head' matches no parameter; this model's output head shares"),
        (Freeze(train=("embed_tokens",), tokens=(1,)), r"method.tokens: .* allowed: one of the two"),
    ],
)
def test_what_is_not_there_is_refused(tiny_model_dir: Path, method: Freeze, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach(load(tiny_model_dir), method, "role")
    with pytest.raises(UserError, match=message):
        base_weights.freeze(method, model_sizes(Model(base=str(tiny_model_dir))))


def test_a_token_beyond_the_vocabulary_and_a_quantized_weight_are_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"method.tokens: 100000 is no token of this model; allowed: 0 to \d+"):
        attach(load(tiny_model_dir), Freeze(tokens=(100_000,)), "role")
    quantized = load_causal_lm(tiny_model_dir, torch.bfloat16, quantization="int8")
    with pytest.raises(UserError, match=r"freeze trains model.layers.1.*, which is quantized"):
        attach(quantized, Freeze(layers=1), "role")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "trains nothing; allowed: at least one of layers, train, embeddings, tokens"),
        ({"embeddings": True, "tokens": [1]}, "allowed: one of embeddings and tokens"),
        ({"train": ["q_proj("]}, "is no regular expression"),
        ({"tokens": [-1]}, "greater than or equal to 0"),
    ],
)
def test_impossible_fields(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Freeze.model_validate(fields)


@pytest.mark.parametrize("folder", ["tiny_model_dir", "biased_model_dir"])
@pytest.mark.parametrize("method", [Freeze(layers=1), Freeze(tokens=(17, 300), train=("model.norm",))])
def test_comes_out_as_a_whole_model(request: pytest.FixtureRequest, folder: str, method: Freeze) -> None:
    path = request.getfixturevalue(folder)
    model, plain = load(path, torch.float32), load(path, torch.float32)
    attachment = attach(model, method, "role")
    attachment.activate(True)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.mul_(1.1)
    base = load_file(path / "model.safetensors")
    weights = whole(method, path, {name: p.detach() for name, p in attachment.parameters().items()})
    plain.load_state_dict(weights, strict=False)
    assert (logits(plain) - logits(model)).abs().max() < 1e-5
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, weights[name])}
    assert changed == {name.removesuffix(".rows") for name in attachment.parameters()}


def test_half_precision_base_under_autocast(biased_model_dir: Path) -> None:
    model = load(biased_model_dir, torch.bfloat16)
    attachment = attach(model, Freeze(tokens=(17, 300), layers=1, train=("layers.0.self_attn.q_proj.bias",)), "role")
    attachment.activate(True)
    for parameter in attachment.parameters().values():
        parameter.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, attachment)
    assert all(g.dtype == torch.float32 and g.isfinite().all() and g.abs().max() > 0 for g in found.values())
