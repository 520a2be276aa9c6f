"""Steps side by side are the steps alone: losses, gradients and what comes out, whatever the other trials do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.gradient_cases import assert_equal, in_float64, language, pairs, rows
from triptych.data.batches import epoch_order
from triptych.errors import RunError
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.heads import ScalarHead
from triptych.recipe import Lora, Optimizer
from triptych.train.batch import Batch
from triptych.train.learner import Learner, Objective, StepReport
from triptych.train.stepping import StepRequest, step_together
from triptych.train.tasks.language import LanguageModeling
from triptych.train.tasks.reward import PairwiseReward

METHODS: dict[str, Lora] = {
    "small": Lora(r=2, alpha=4),
    "wide": Lora(r=8, alpha=8, rslora=True),
    "queries": Lora(r=4, alpha=8, targets=("q_proj", "v_proj")),
    "last": Lora(r=4, alpha=8, targets=("down_proj",), layers=(1,)),
}
OPTIMIZERS = {
    "small": Optimizer(lr=1e-2, max_grad_norm=0.1),
    "wide": Optimizer(lr=1e-3, schedule="cosine", warmup=0.2, weight_decay=0.1),
    "queries": Optimizer(name="lion", lr=1e-4),
    "last": Optimizer(name="muon", lr=1e-2, max_grad_norm=0.01),
}
STEPS = 20


def base(folder: Path, dtype: torch.dtype, **settings: Any) -> RoleModel:
    return RoleModel(load_causal_lm(folder, dtype), **settings)


def add(model: RoleModel, role: str, *, scores: bool = False) -> None:
    """A role that starts alike on every model: neither of its two matrices is zero."""
    torch.manual_seed(sorted(METHODS).index(role))
    model.add(role, METHODS[role], trainable=True, head=ScalarHead(model.hidden_size) if scores else None)
    with torch.no_grad():
        for name, parameter in model.parameters_of(role).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def learner(model: RoleModel, role: str, steps: int = STEPS) -> Learner:
    return Learner(model, {role: OPTIMIZERS[role]}, {role: steps})


def objective(role: str, *, scores: bool = False) -> Objective:
    return PairwiseReward(role) if scores else LanguageModeling(role)


def batches(role: str, step: int) -> list[Batch | None]:
    """Each trial has its rows in an order of its own, and its own number of micro-batches."""
    seed = sorted(METHODS).index(role)
    chosen = list(epoch_order(len(rows()), seed, step))[: 3 + seed]
    cut = 2 if role in ("small", "last") else len(chosen)
    return [language(chosen[start : start + cut], torch.float32) for start in range(0, len(chosen), cut)]


def alone(folder: Path, role: str, steps: int = STEPS) -> tuple[list[StepReport], dict[str, Tensor]]:
    model = base(folder, torch.float32)
    add(model, role)
    trained = learner(model, role)
    reports = [trained.step(objective(role), batches(role, step)) for step in range(steps)]
    return reports, trained.weights(role)


def together(learners: Mapping[str, Learner], step: int, pass_tokens: int = 4096) -> dict[str, StepReport]:
    asks = [StepRequest(trained, objective(role), batches(role, step)) for role, trained in learners.items()]
    reports = dict(zip(learners, step_together(asks, pass_tokens), strict=True))
    return {role: report for role, report in reports.items() if isinstance(report, StepReport)}


def assert_alike(found: Sequence[StepReport], expected: Sequence[StepReport]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-4, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"packing": False}, {"checkpointing": "full"}, {"checkpointing": "selective"}],
    ids=["packed", "padded", "checkpointed", "selective"],
)
@pytest.mark.parametrize("scores", [False, True], ids=["language", "pairs"])
def test_gradients_are_those_alone(tiny_model_dir: Path, settings: dict[str, Any], scores: bool) -> None:
    make = pairs if scores else language
    given = {role: make(list(range(number, number + 4)), torch.float64) for number, role in enumerate(METHODS)}
    expected: dict[str, dict[str, Tensor]] = {}
    for role in METHODS:
        model = base(tiny_model_dir, torch.float64)
        add(in_float64(model), role, scores=scores)
        trained = learner(model, role)
        trained.accumulate(objective(role, scores=scores), [given[role]])
        expected[role] = trained.gradients(role)

    model = in_float64(base(tiny_model_dir, torch.float64, **settings))
    for role in METHODS:
        add(model, role, scores=scores)
    with model.side_by_side({role: (batch["ids"], batch["mask"]) for role, batch in given.items()}):
        losses = []
        for role, batch in given.items():
            goal = objective(role, scores=scores)
            trained = learner(model, role)
            with model.use(role):
                losses.append(trained.loss(goal, batch, trained.denominators(goal, [batch]))[0])
        torch.stack(losses).sum().backward()
    for role in METHODS:
        assert_equal(learner(model, role).gradients(role), expected[role], 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("pass_tokens", [4096, 40], ids=["one pass", "many passes"])
def test_losses_and_weights_are_those_alone(tiny_model_dir: Path, pass_tokens: int) -> None:
    expected = {role: alone(tiny_model_dir, role) for role in METHODS}
    model = base(tiny_model_dir, torch.float32)
    for role in METHODS:
        add(model, role)
    learners = {role: learner(model, role) for role in METHODS}
    steps = [together(learners, step, pass_tokens) for step in range(STEPS)]
    for role, (reports, weights) in expected.items():
        assert_alike([step[role] for step in steps], reports)
        assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]
        for name, tensor in learners[role].weights(role).items():
            assert torch.allclose(tensor, weights[name], atol=1e-4), name


@pytest.mark.slow
def test_trials_come_and_go(tiny_model_dir: Path) -> None:
    """One stops at step 5, one joins then, one diverges at step 8: the last does not notice."""
    expected = {role: alone(tiny_model_dir, role)[0] for role in ("wide", "last")}
    model = base(tiny_model_dir, torch.float32)
    for role in ("wide", "queries", "small"):
        add(model, role)
    learners = {role: learner(model, role) for role in ("wide", "queries", "small")}
    found: dict[str, list[StepReport]] = {role: [] for role in METHODS}
    for step in range(STEPS):
        if step == 5:
            model.remove("queries")
            del learners["queries"]
            add(model, "last")
            learners["last"] = learner(model, "last")
        if step == 8:
            with torch.no_grad():
                for parameter in model.parameters_of("small").values():
                    parameter.fill_(torch.nan)
        asks = {
            role: StepRequest(trained, objective(role), batches(role, step - 5 if role == "last" else step))
            for role, trained in learners.items()
        }
        for role, report in zip(asks, step_together(list(asks.values()), 4096), strict=True):
            if isinstance(report, RunError):
                del learners[role]
            else:
                found[role].append(report)
    assert_alike(found["wide"], expected["wide"])
    assert_alike(found["last"], expected["last"][: STEPS - 5])
    assert "small" not in learners
    assert len(found["small"]) < STEPS


def test_a_trial_goes_on_alone_when_the_last_one_of_some_layers_has_left(tiny_model_dir: Path) -> None:
    model = base(tiny_model_dir, torch.float32)
    add(model, "queries")
    add(model, "small")
    ids = torch.arange(1, 9)[None]
    with model.use("queries"):
        before = model.hidden(ids, torch.ones_like(ids))
    with model.use("small"):  # the active one of all layers
        model.hidden(ids, torch.ones_like(ids))
    model.remove("small")
    with model.use("queries"):
        assert torch.equal(model.hidden(ids, torch.ones_like(ids)), before)
