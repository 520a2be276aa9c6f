"""Whole models and parts of them learn from preferences as plain torch does: losses and gradients in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.support.gradient_cases import (
    assert_equal,
    gradients,
    in_float64,
    make_learner,
    preferences,
    rankings,
    unpaired,
)
from triptych.forward.roles import BASE, RoleModel
from triptych.methods.freeze import ROWS
from triptych.models.base import load_causal_lm
from triptych.recipe import Full, Method
from triptych.recipe.method import Freeze
from triptych.recipe.preference import Sigmoid
from triptych.train.batch import Batch
from triptych.train.learner import Objective
from triptych.train.tasks.dpo import PairPreference, pair_logps
from triptych.train.tasks.kto import UnpairedPreference
from triptych.train.tasks.rrhf import RankedPreference

METHODS: dict[str, Method] = {"full": Full(), "freeze": Freeze(layers=1), "freeze of tokens": Freeze(tokens=(7, 9, 40))}
ROW_NUMBERS = list(range(8))


def make_model(folder: Path, method: Method) -> RoleModel:
    model = in_float64(RoleModel(load_causal_lm(folder, torch.float64)))
    model.add("policy", method, trainable=True)
    return model


def logps(model: torch.nn.Module, batch: Batch, ids: str = "ids", start: str = "start") -> Tensor:
    """Sum of the log-probabilities of each answer's tokens [B], row by row and without any padding."""
    found = []
    prefix = ids.removesuffix("ids")
    for row, mask, first in zip(batch[ids], batch[f"{prefix}mask"], batch[f"{prefix}start"], strict=True):
        tokens = row[mask.bool()]
        own = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].log_softmax(dim=-1)
        every = own.gather(1, tokens[1:, None])[:, 0]
        found.append(every[int(first) - 1 :].sum())
    return torch.stack(found)


def dpo(policy: Tensor, batch: Batch) -> Tensor:
    """Equation 7 of Rafailov et al. 2023, with the labels smoothed as in cDPO."""
    chosen, rejected = policy.chunk(2)
    gap = 0.1 * ((chosen - batch["ref_chosen"]) - (rejected - batch["ref_rejected"]))
    return -(0.9 * logsigmoid(gap) + 0.1 * logsigmoid(-gap)).mean()


def kto(policy: Tensor, batch: Batch, mismatched: Tensor) -> Tensor:
    """Equation 8 of Ethayarajh et al. 2024, less its constant."""
    baseline = (mismatched - batch["ref_mismatched"]).mean().clamp(min=0).detach()
    above = 0.1 * (policy - batch["ref_logps"] - baseline)
    good = batch["desirable"]
    return torch.where(good, 1 - above.sigmoid(), 1.5 * (1 - (-above).sigmoid())).mean()


def rrhf(policy: Tensor, batch: Batch) -> Tensor:
    """Equations 1, 2 and 4 of Yuan et al. 2023, query by query."""
    means = policy / batch["length"]
    total = torch.zeros((), dtype=policy.dtype)
    queries = batch["query"].unique()
    for query in queries:
        own, scores = means[batch["query"] == query], batch["score"][batch["query"] == query]
        for better in range(len(own)):
            for worse in range(len(own)):
                if scores[better] > scores[worse]:
                    total = total + (own[worse] - own[better]).clamp(min=0)
        total = total - 0.3 * own[0]
    return total / len(queries)


CASES: dict[str, tuple[Objective, Callable[[list[int], torch.dtype], Batch]]] = {
    "dpo": (PairPreference("policy", Sigmoid(label_smoothing=0.1)), preferences),
    "kto": (UnpairedPreference("policy", 0.1, undesirable_weight=1.5), unpaired),
    "rrhf": (RankedPreference("policy", sft_weight=0.3), rankings),
}


def loss_of(case: str, plain: torch.nn.Module, batch: Batch) -> Tensor:
    policy = logps(plain, batch)
    if case == "kto":
        return kto(policy, batch, logps(plain, batch, "mismatched_ids"))
    return dpo(policy, batch) if case == "dpo" else rrhf(policy, batch)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_plain_torch(tiny_model_dir: Path, case: str, name: str) -> None:
    """Of whole micro-batches and of pieces, packed by the learner, against rows that are computed one by one."""
    objective, make = CASES[case]
    batch = make(ROW_NUMBERS, torch.float64)
    plain = in_float64(load_causal_lm(tiny_model_dir, torch.float64)).requires_grad_(True)
    loss = loss_of(case, plain, batch)
    loss.backward()
    learner = make_learner(make_model(tiny_model_dir, METHODS[name]))
    if case != "kto":  # its evaluation measures a baseline of each micro-batch
        assert learner.evaluate(objective, [batch])["loss"] == pytest.approx(loss.item(), rel=1e-10)
    expected = {key: tensor.grad for key, tensor in plain.named_parameters() if tensor.grad is not None}
    for cut in ([ROW_NUMBERS], [[0, 1, 2], [3, 4, 5, 6, 7], []]):
        pieces = [make(rows, torch.float64) if rows else None for rows in cut]
        found = gradients(learner, objective, pieces)
        assert_equal(found, {key: _of_rows(key, expected) for key in found}, 1e-8)


def _of_rows(name: str, expected: dict[str, Tensor]) -> Tensor:
    """A parameter's gradient; of `<table>.rows`, that of the trained tokens' rows."""
    if not name.endswith(ROWS):
        return expected[name]
    return expected[name.removesuffix(ROWS)][[7, 9, 40]]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_references_are_those_of_the_start(tiny_model_dir: Path, name: str) -> None:
    """Before a step, though the role has the base for itself; afterwards the policy has moved away from them."""
    learner, batch = (
        make_learner(make_model(tiny_model_dir, METHODS[name])),
        preferences(ROW_NUMBERS, torch.float64),
    )
    plain = in_float64(load_causal_lm(tiny_model_dir, torch.float64))
    with torch.no_grad():
        start = torch.stack(logps(plain, batch).chunk(2), dim=1)
    for role in ("policy", BASE):
        torch.testing.assert_close(learner.forward(role, pair_logps, batch), start, rtol=1e-12, atol=1e-10)
    batch |= dict(zip(("ref_chosen", "ref_rejected"), start.unbind(dim=1), strict=True))
    report = learner.step(PairPreference("policy", Sigmoid()), [batch])
    assert report.metrics["loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
    assert learner.evaluate(PairPreference("policy", Sigmoid()), [batch])["margin"] > 0
