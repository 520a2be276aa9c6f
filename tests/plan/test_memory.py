"""The closed form against what the learner really keeps."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.live_tensors import Alive, config
from triptych.forward.attention import _spans
from triptych.forward.roles import RoleModel
from triptych.methods.parameters.total import added, trained
from triptych.models.sizes import Sizes, Tensors, sizes_of
from triptych.plan.activations import RolePass
from triptych.plan.worker import optimizer_bytes
from triptych.recipe import Full, Lora, Memory, Method, Optimizer
from triptych.recipe.matrix import Dora
from triptych.train.optimizer import build_optimizer
from triptych.train.tasks.language import LanguageModeling

ROWS, LENGTH = 4, 64
FULL = Full(name="full")


def shapes(settings: LlamaConfig) -> Sizes:
    return sizes_of(json.loads(settings.to_json_string(use_diff=False)), "tiny")


def measured(settings: LlamaConfig, method: Method, dtype: str, memory: Memory, *, packing: bool = True) -> Alive:
    """The forward and backward pass of a role whose gradients are there already."""
    precision = getattr(torch, dtype)
    base = LlamaForCausalLM(settings).to(precision)
    model = RoleModel(
        base, precision, packing=packing, checkpointing=memory.checkpointing, loss_chunk=memory.loss_chunk
    )
    model.add("policy", method, trainable=True)
    ids = torch.randint(0, settings.vocab_size, (ROWS, LENGTH))
    ids[:, 0] = torch.arange(ROWS)  # no two rows begin alike: what they share would be kept once
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = ids.masked_fill(torch.arange(LENGTH) < LENGTH // 2, -100)
    trained = list(model.parameters_of("policy").values())
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in trained if p.grad is not None)]
    _spans.cache_clear()  # masks that attention keeps for the next pass are new in this one
    with Alive(known) as alive, model.use("policy"):
        with model.autocast():
            sums, _ = LanguageModeling("policy").loss(model, {"ids": ids, "mask": mask, "labels": labels})
        alive.kept = alive.now
        sums["loss"].backward()
    return alive


def casts(settings: LlamaConfig, method: Method, dtype: str) -> int:
    """Bytes of copies of one block's weights that its backward pass needs."""
    sizes = shapes(settings)
    if isinstance(method, Lora):
        one = method.r * sum(o for _, o in sizes.targets(method.targets).values())
        return 4 * one if dtype == "float32" else 2 * added(method, sizes) // sizes.layers
    return 0 if dtype == "float32" else 2 * sum(i * o for i, o, _ in sizes.linears.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("method", [Lora(r=8), Lora(r=8, targets=("down_proj",)), FULL], ids=["all", "down", "full"])
def test_what_a_block_keeps(dtype: str, checkpointing: Any, method: Method) -> None:
    memory = Memory(checkpointing=checkpointing)
    two, three = (measured(config(layers), method, dtype, memory) for layers in (2, 3))
    work = RolePass(shapes(config(1)), method, dtype, True, memory, LENGTH, isinstance(method, Full))
    copies = casts(config(1), method, dtype) if checkpointing == "none" else 0
    # On a CPU, attention in 16 bits keeps neither its output nor the log-sum-exp of its 6 heads.
    without = 2 * 96 + 4 * 6 if dtype == "bfloat16" and checkpointing == "none" else 0
    tokens = ROWS * LENGTH - 3
    assert three.kept - two.kept == pytest.approx((work.checkpoint() - without) * tokens + copies, rel=0.03)


def test_dora_keeps_what_its_lengths_scale() -> None:
    two, three = (measured(config(layers), Dora(r=8), "float32", Memory()) for layers in (2, 3))
    work = RolePass(shapes(config(1)), Dora(r=8), "float32", True, Memory(), LENGTH)
    assert three.kept - two.kept == pytest.approx(work.checkpoint() * (ROWS * LENGTH - 3), rel=0.08)


def test_padded_rows_keep_a_mask_and_keys_and_values_for_every_head() -> None:
    one, two = (measured(config(layers), Lora(r=8), "float32", Memory(), packing=False) for layers in (1, 2))
    work = RolePass(shapes(config(1)), Lora(r=8), "float32", False, Memory(), LENGTH)
    expected = work.checkpoint() * ROWS * LENGTH + casts(config(1), Lora(r=8), "float32")
    assert two.kept - one.kept == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_peak_of_a_pass(checkpointing: Any) -> None:
    memory = Memory(checkpointing=checkpointing)
    settings = config(4)
    found = measured(settings, Lora(r=8), "float32", memory).peak
    work = RolePass(shapes(settings), Lora(r=8), "float32", True, memory, LENGTH)
    assert found == pytest.approx(work.activations() * (ROWS * LENGTH - 3), rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [Lora(r=2), FULL], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("chunk", [32, None])
def test_logits(dtype: str, method: Method, chunk: int | None) -> None:
    """With twice the vocabulary there is twice as much of what depends on it."""
    memory = Memory(loss_chunk=chunk)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    settings = [config(1, vocab_size=vocabulary, **small) for vocabulary in (8192, 16384)]
    one, two = (measured(each, method, dtype, memory).peak for each in settings)
    learned = ROWS * LENGTH // 2 - 3
    few, many = (
        RolePass(shapes(s), method, dtype, True, memory, LENGTH, method is FULL).logits(learned) for s in settings
    )
    assert 0.65 * (many - few) < two - one < 1.15 * (many - few)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd", "lion", "muon", "adamw_schedule_free"])
@pytest.mark.parametrize("method", [Lora(r=64, targets=("q_proj", "down_proj")), FULL], ids=["lora", "full"])
def test_optimizer_state(name: Any, method: Method) -> None:
    settings = config(2, hidden_size=128, intermediate_size=256, num_attention_heads=4)
    model = RoleModel(LlamaForCausalLM(settings))
    model.add("policy", method, trainable=True)
    parameters = model.parameters_of("policy")
    optimizer = build_optimizer(parameters, Optimizer(name=name))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    wanted = trained(method, shapes(settings))
    held = sum(tensor.nbytes for tensor in tensors if tensor.dim())
    assert optimizer_bytes(Optimizer(name=name), wanted) == held
    assert sum(tensor.numel for tensor in wanted) == sum(p.numel() for p in parameters.values())


def test_sgd_without_momentum_has_no_state() -> None:
    assert optimizer_bytes(Optimizer(name="sgd", momentum=0), [Tensors((8, 8), 3)]) == 0
    assert optimizer_bytes(Optimizer(name="sgd"), [Tensors((8, 8), 3)]) == 4 * math.prod((8, 8, 3))
