"""Numerics first: the gradient does not depend on how a batch is cut or padded, or on how many ranks share it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import RunError
from triptych.methods import method_config
from triptych.models.base import load_causal_lm
from triptych.models.heads import ScalarHead
from triptych.recipe import Lora, Optimizer
from triptych.train.batch import Batch, language_batch, pair_batch, sample_batch
from triptych.train.learner import MAX_BAD_STEPS, Learner, Objective
from triptych.train.roles import BASE, RoleModel
from triptych.train.tasks import LanguageModeling, PairwiseReward, PolicyUpdate, ValueUpdate, response_logprobs

PAD = 0
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}  # the tiny model has large random weights


def make_model(folder: Path, dtype: torch.dtype) -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, dtype))
    config = method_config(Lora(r=4, alpha=8))
    model.add("policy", config, trainable=True)
    model.add("critic", config, trainable=True, head=ScalarHead(model.hidden_size))
    with torch.no_grad():
        for role in ("policy", "critic"):
            for name, parameter in model.parameters_of(role).items():
                if "lora_B" in name:  # zero at the start, which would hide lora_A's gradient
                    parameter.normal_(std=0.1)
    return model.double() if dtype == torch.float64 else model


def make_learner(model: RoleModel) -> Learner:
    optimizer = Optimizer(lr=1e-2)
    return Learner(model, {"policy": optimizer, "critic": optimizer}, {"policy": 10, "critic": 10})


def rows(count: int = 8) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        prompt = torch.randint(5, 300, (3 + index % 4,), generator=generator).tolist()
        answer = torch.randint(5, 300, (2 + (index * 5) % 7,), generator=generator).tolist()
        made.append((prompt, answer))
    return made


def columns(count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    names = ("old_logprobs", "advantages", "old_values", "returns")
    made = {name: torch.randn(count, 9, generator=generator).to(dtype) for name in names}
    return made | {"weights": torch.rand(count, 9, generator=generator).to(dtype) + 0.5}


def language(indexes: list[int], dtype: torch.dtype) -> Batch:
    chosen = [rows()[index] for index in indexes]
    return language_batch([(p + a, [-100] * len(p) + a) for p, a in chosen], PAD)


def pairs(indexes: list[int], dtype: torch.dtype) -> Batch:
    made = rows(16)
    return pair_batch(
        [([*made[2 * i][0], *made[2 * i][1]], [*made[2 * i + 1][0], *made[2 * i + 1][1]]) for i in indexes], PAD
    )


def samples(indexes: list[int], dtype: torch.dtype) -> Batch:
    chosen = [rows()[index] for index in indexes]
    batch = sample_batch([p for p, _ in chosen], [a for _, a in chosen], PAD)
    return batch | {name: column[indexes] for name, column in columns(8, dtype).items()}


CASES: dict[str, tuple[Objective, Callable[[list[int], torch.dtype], Batch]]] = {
    "language": (LanguageModeling("policy"), language),
    "pairs": (PairwiseReward("critic"), pairs),
    "policy": (PolicyUpdate("policy", 0.2, 0.7), samples),
    "value": (ValueUpdate("critic", 0.2), samples),
}


def gradients(learner: Learner, objective: Objective, batches: list[Batch | None]) -> dict[str, Tensor]:
    learner.accumulate(objective, batches)
    learner.group.sum_gradients(learner.model.parameters_of(objective.role).values())
    found = {name: grad.clone() for name, grad in learner.gradients(objective.role).items()}
    learner.model.zero_grad()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    largest = max(tensor.abs().max() for tensor in expected.values())
    assert largest > 0
    for name, tensor in expected.items():
        # A gradient that is zero but for rounding, such as that of a bias that pairs cancel, is held to the others'.
        scale = tensor.abs().max() if tensor.abs().max() > 1e-5 * largest else largest
        assert (found[name] - tensor).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_gradient_does_not_depend_on_micro_batches(
    tiny_model_dir: Path, dtype: torch.dtype, case: str, parts: int
) -> None:
    objective, make = CASES[case]
    learner = make_learner(make_model(tiny_model_dir, dtype))
    whole = gradients(learner, objective, [make(list(range(8)), dtype)])
    size = 8 // parts
    cut = [make(list(range(start, start + size)), dtype) for start in range(0, 8, size)]
    assert_equal(gradients(learner, objective, [*cut, None]), whole, TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["language", "pairs"])
def test_gradient_does_not_depend_on_the_padding_side(tiny_model_dir: Path, case: str) -> None:
    objective, make = CASES[case]
    learner = make_learner(make_model(tiny_model_dir, torch.float64))
    right = make(list(range(8)), torch.float64)
    order = torch.argsort(right["mask"], dim=1, stable=True)  # padding first, the rest in its order
    left = {name: column.gather(1, order) for name, column in right.items()}
    assert not torch.equal(left["mask"], right["mask"])
    assert_equal(gradients(learner, objective, [left]), gradients(learner, objective, [right]), 1e-10)


@pytest.mark.slow
def test_gradient_does_not_depend_on_ranks(tiny_model_dir: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("rank_gradients.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, tiny_model_dir, tmp_path], check=True, timeout=120)
    learner = make_learner(make_model(tiny_model_dir, torch.float64))
    for case, (objective, make) in CASES.items():
        whole = gradients(learner, objective, [make(list(range(8)), torch.float64)])
        assert_equal(load_file(tmp_path / f"{case}.safetensors"), whole, 1e-10)


def test_roles_do_not_touch_each_other(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    critic = {name: tensor.clone() for name, tensor in learner.model.parameters_of("critic").items()}
    flags = {name: p.requires_grad for name, p in learner.model.named_parameters()}
    learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
    for name, tensor in learner.model.parameters_of("critic").items():
        assert torch.equal(tensor, critic[name])
    assert flags == {name: p.requires_grad for name, p in learner.model.named_parameters()}


def test_a_copied_role_answers_bit_for_bit_and_unlike_the_base(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    model = learner.model
    model.add("reference", method_config(Lora(r=4, alpha=8)), trainable=False, weights=model.adapter("policy"))
    batch = samples(list(range(8)), torch.float32)

    def logprobs(role: str) -> Tensor:
        return learner.forward(role, lambda m, b: response_logprobs(m, b, 1.0), batch)

    reference = logprobs("reference")
    assert torch.equal(logprobs("policy"), reference)
    assert (logprobs(BASE) - reference).abs().max() > 1e-3
    learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
    assert torch.equal(logprobs("reference"), reference)
    assert not torch.equal(logprobs("policy"), reference)


def test_dropout_acts_in_training_alone_and_only_if_asked(tiny_model_dir: Path) -> None:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float64))
    model.add("policy", method_config(Lora(r=4, alpha=8, dropout=0.5)), trainable=True)
    with torch.no_grad():
        for parameter in model.parameters_of("policy").values():
            parameter.normal_(std=0.1)
    batch = language(list(range(8)), torch.float64)
    objective = LanguageModeling("policy")

    def loss(learner: Learner) -> float:
        return learner.accumulate(objective, [batch])["loss"]

    with_dropout, without = (
        Learner(model, {"policy": Optimizer()}, {"policy": 1}, dropout=dropout) for dropout in (True, False)
    )
    assert loss(with_dropout) != loss(with_dropout)
    assert loss(without) == loss(without)
    loss(with_dropout)
    assert with_dropout.evaluate(objective, [batch])["loss"] == pytest.approx(loss(without), abs=1e-12)


def test_state_goes_on_exactly(tiny_model_dir: Path) -> None:
    def step(learner: Learner, k: int) -> float:
        return learner.step(LanguageModeling("policy"), [language([k, k + 1], torch.float32)]).metrics["loss"]

    straight = make_learner(make_model(tiny_model_dir, torch.float32))
    losses = [step(straight, k) for k in range(6)]
    first = make_learner(make_model(tiny_model_dir, torch.float32))
    assert [step(first, k) for k in range(3)] == losses[:3]
    tensors, counters = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = make_learner(make_model(tiny_model_dir, torch.float32))
    second.load_state(tensors, counters)
    assert [step(second, k) for k in range(3, 6)] == losses[3:]


def test_steps_without_a_finite_gradient_are_skipped_then_end_the_run(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    batch = samples(list(range(8)), torch.float32)
    batch["advantages"] = batch["advantages"].clone()
    batch["advantages"][0, 0] = float("inf")
    before = {name: tensor.clone() for name, tensor in learner.model.parameters_of("policy").items()}
    report = learner.step(PolicyUpdate("policy", 0.2, 1.0), [batch])
    assert report.metrics["skipped"] == 1.0
    assert all(torch.equal(p, before[name]) for name, p in learner.model.parameters_of("policy").items())
    for _ in range(MAX_BAD_STEPS - 2):
        learner.step(PolicyUpdate("policy", 0.2, 1.0), [batch])
    with pytest.raises(RunError, match=r"policy: 5 steps in a row .* first in .*lora"):
        learner.step(PolicyUpdate("policy", 0.2, 1.0), [batch])
