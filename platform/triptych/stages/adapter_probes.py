"""The learner's log-probabilities of fixed token sequences, by which an engine is told to run the adapter or not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.forward.roles import BASE, RoleModel
from triptych.models.adapter_effect import Probes, choose
from triptych.models.adapter_probes import probe_candidates
from triptych.stages.context import StageContext
from triptych.stages.models import tokenizer_of
from triptych.train.batch import Batch, sample_batch
from triptych.train.learners import RoleLearner
from triptych.train.tasks.forward import response_logprobs


def probes_of(ctx: StageContext[Any], learner: RoleLearner, role: str) -> Probes:
    """Probes of a trained role, by two forward passes of a few hundred tokens. Collective."""
    asked = probe_candidates(learner.model.lm, tokenizer_of(ctx))
    base, adapter = (_logprobs(learner, name, asked) for name in (BASE, role))
    return choose(asked, base, adapter, str(learner.model.dtype).removeprefix("torch."))


def _logprobs(learner: RoleLearner, role: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities at temperature 1 of all tokens of equally long sequences but the first."""

    def compute(model: RoleModel, batch: Batch) -> Tensor:
        return response_logprobs(model, batch, temperature=1.0)

    batch = sample_batch([row[:1] for row in sequences], [row[1:] for row in sequences], 0)
    return learner.forward(role, compute, batch).to(torch.float64).tolist()
