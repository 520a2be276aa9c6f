"""AdaLoRA's budget is allocated as peft allocates it, its penalty enters once a step, and what comes out is a LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor

from tests.support.gradient_cases import assert_equal, gradients, in_float64, language
from triptych.forward.roles import RoleModel
from triptych.methods.adalora import AdaLoraAttachment, _Orthogonal, export, ranks
from triptych.methods.table import METHODS
from triptych.models.base import load_causal_lm
from triptych.models.peft_files import PREFIX
from triptych.recipe import Optimizer
from triptych.recipe.matrix import AdaLora
from triptych.train.learner import Learner
from triptych.train.tasks.language import LanguageModeling

STEPS = 20
METHOD = AdaLora(init_r=4, target_r=2, targets=("q_proj", "down_proj"), tinit=0.1, tfinal=0.3, orth_reg_weight=0.1)
SITES = 4


def learner_of(folder: Path, dtype: torch.dtype = torch.float32, method: AdaLora = METHOD) -> Learner:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, dtype))
    model.add("policy", method, trainable=True)
    model = in_float64(model) if dtype == torch.float64 else model
    return Learner(model, {"policy": Optimizer(lr=5e-3)}, {"policy": STEPS})


def of_state(learner: Learner) -> dict[str, int]:
    """Ranks by module, as a hybrid's state names them too."""
    state = learner.weights("policy")
    assert ranks(state) == ranks({f"adalora.{name}": tensor for name, tensor in state.items()})
    return ranks(state)


def attachment(learner: Learner) -> AdaLoraAttachment:
    (found,) = learner.model.attached["policy"].values()
    assert isinstance(found, AdaLoraAttachment)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_the_budget_is_allocated_as_peft_does(tiny_model_dir: Path, every: int) -> None:
    """The same weights and gradients in both, step by step; pruned values may come back between allocations."""
    method = METHOD.model_copy(update={"delta_t": every})
    ours = attachment(learner_of(tiny_model_dir, method=method))
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=6, deltaT=every, total_step=STEPS, target_modules=["q_proj", "down_proj"]
    )
    peft: Any = get_peft_model(load_causal_lm(tiny_model_dir, torch.float32), config)
    allocator: Any = RankAllocator(peft, config, "default")
    theirs = {n.replace(".default", ""): p for n, p in peft.named_parameters() if "lora_" in n}
    assert theirs.keys() == ours.parameters().keys()
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for parameter in theirs.values():
            parameter.data = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        values = {name: p.detach().clone() for name, p in theirs.items()}
        changed = ours.adapt(step, STEPS, values, {n: p.grad for n, p in theirs.items() if p.grad is not None})
        if step + 1 > STEPS - 6:
            break
        allocator.update_and_allocate(peft, step + 1, force_mask=step + 1 == STEPS - 6)
        for name in (name for name in theirs if name.endswith("lora_E")):
            assert torch.equal(changed.get(name, values[name]), theirs[name].detach()), (step, name)
    assert ours.rank() == 2 * SITES


def test_the_penalty_has_the_gradient_of_its_norms() -> None:
    m = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    (_Orthogonal.apply(m, 0.25) * 2).sum().backward()
    expected = torch.autograd.grad((m * 2).sum() + 0.25 * (m @ m.T - torch.eye(3)).norm(), m)[0]
    assert m.grad is not None
    torch.testing.assert_close(m.grad, expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_penalty_enters_once_however_a_batch_is_cut(tiny_model_dir: Path, parts: int) -> None:
    def found(count: int) -> dict[str, Tensor]:
        rows = [list(range(8))[start::count] for start in range(count)]
        return gradients(
            learner_of(tiny_model_dir, torch.float64),
            LanguageModeling("policy"),
            [language(r, torch.float64) for r in rows],
        )

    assert_equal(found(parts), found(1), 1e-10)
    plain = METHOD.model_copy(update={"orth_reg_weight": 0.0})
    without = gradients(
        learner_of(tiny_model_dir, torch.float64, plain),
        LanguageModeling("policy"),
        [language(list(range(8)), torch.float64)],
    )
    assert any(not torch.allclose(without[name], tensor) for name, tensor in found(1).items())


def test_what_comes_out_is_a_lora_of_the_budget(tiny_model_dir: Path) -> None:
    learner = learner_of(tiny_model_dir)
    losses = [learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)]) for _ in range(STEPS)]
    assert losses[-1].metrics["loss"] < losses[0].metrics["loss"]
    assert losses[0].metrics["rank_mean"] == 4
    assert losses[-1].metrics["rank_mean"] == 2
    found = export(METHOD, learner.weights("policy"))
    left = {name: tensor.shape[0] for name, tensor in found.weights.items() if "lora_A" in name}
    assert sum(left.values()) == 2 * SITES
    assert {f"{PREFIX}{n}.lora_A.weight": rank for n, rank in of_state(learner).items() if rank} == left
    assert len(of_state(learner)) == SITES
    assert found.method == METHODS["lora"].config.model_validate(found.method.model_dump())
    assert all(isinstance(rank, int) and rank > 0 for rank in found.method.rank_pattern.values())


def test_a_layer_without_rank_is_left_out(tiny_model_dir: Path) -> None:
    learner = learner_of(tiny_model_dir)
    state = {name: tensor.clone() for name, tensor in learner.weights("policy").items()}
    first = next(name for name in state if name.endswith(".kept"))
    state[first].zero_()
    found = export(METHOD, state)
    gone = first.removesuffix(".kept")
    assert not any(name.startswith(gone) for name in found.weights)
    assert gone.removeprefix("base_model.model.") not in found.method.targets
    assert len(found.method.targets) == SITES - 1


@pytest.mark.slow
def test_training_that_goes_on_keeps_the_ranks_that_the_budget_left(tiny_model_dir: Path) -> None:
    batch = [language(list(range(8)), torch.float32)]
    first = learner_of(tiny_model_dir)
    for _ in range(STEPS):
        first.step(LanguageModeling("policy"), batch)
    first.settle()
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("policy", METHOD, trainable=True, weights=first.weights("policy"))
    more = Learner(model, {"policy": Optimizer(lr=0.01)}, {"policy": STEPS})
    kept = of_state(first)
    before = first.evaluate(LanguageModeling("policy"), batch)["loss"]
    for step in range(STEPS):
        report = more.step(LanguageModeling("policy"), batch)
        assert report.metrics["rank_mean"] == 2
        assert step or report.metrics["loss"] == pytest.approx(before, abs=1e-6)
        assert of_state(more) == kept
    weights = more.weights("policy")
    for name in (name for name in weights if name.endswith(".kept")):
        assert not weights[name.replace(".kept", ".lora_E")][weights[name] == 0].any(), "nothing grew back"
    assert report.metrics["loss"] < before
