"""Forward passes over a batch: scores of rows, values and log-probabilities of sampled answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives import IGNORE
from triptych.train.batch import Batch, answer_mask, before_response, last_token, response_ids


def sequence_scores(model: RoleModel, batch: Batch) -> Tensor:
    """Output of the active role's head for each row, [B] or [B, classes], read at its last real token."""
    return model.scores(last_token(model.hidden(batch["ids"], batch["mask"]), batch["mask"]))


def member_scores(model: RoleModel, batch: Batch, roles: Sequence[str]) -> Tensor:
    """Each role's score of each row: [roles, B]."""
    scores = []
    for role in roles:
        with model.use(role):
            scores.append(sequence_scores(model, batch))
    return torch.stack(scores)


def mean_scores(model: RoleModel, batch: Batch, roles: Sequence[str]) -> Tensor:
    """An ensemble's score of each row [B]: the mean of its members'."""
    return member_scores(model, batch, roles).mean(dim=0)


def response_values(model: RoleModel, batch: Batch) -> Tensor:
    """The active role's value of the state before each token of the answer: [B, R]."""
    return model.scores(before_response(model.hidden(batch["ids"], batch["mask"]), batch))


def response_logprobs(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """Log-probability [B, R] of each token of the answer; 0 past its end, and where an environment wrote."""
    hidden, labels = response_states(model, batch)
    return spread(model.logprobs(hidden, labels, temperature), batch)


def response_logprobs_and_entropy(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """[B, R, 2]: log-probability of each token of the answer, and the entropy where it was drawn; 0 past its end.

    Without gradients.
    """
    both = model.logprobs_and_entropy(*response_states(model, batch), temperature)
    return torch.stack([spread(values, batch) for values in both], dim=2)


def response_states(model: RoleModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [n, d] that the n answer tokens [n] of a batch were drawn from."""
    mask = answer_mask(batch)
    hidden = before_response(model.hidden(batch["ids"], batch["mask"]), batch)
    return hidden[mask], response_ids(batch)[mask]


def spread(values: Tensor, batch: Batch) -> Tensor:
    """Values [n] of answer tokens at their places [B, R]; 0 elsewhere."""
    mask = answer_mask(batch)
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def row_nats(model: RoleModel, batch: Batch) -> Tensor:
    """[B, 2], float64: the summed negative log-probability of each row's labelled tokens, and their number."""
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORE
    logprobs = model.logprobs(model.hidden(batch["ids"], batch["mask"])[:, :-1][learned], labels[learned])
    nats = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device).masked_scatter(
        learned, -logprobs.double()
    )
    return torch.stack([nats.sum(dim=1), learned.sum(dim=1).double()], dim=1)


def answer_logprob(model: RoleModel, batch: Batch) -> Tensor:
    """[B, 1], float64: the log-probability of each whole answer."""
    return response_logprobs(model, batch, temperature=1.0).double().sum(dim=1, keepdim=True)


def answer_logprob_and_greedy(model: RoleModel, batch: Batch) -> Tensor:
    """[B, 2], float64: the log-probability of each whole answer, and 1 where each of its tokens is the likeliest."""
    hidden, labels = response_states(model, batch)
    logprobs = spread(model.logprobs(hidden, labels).double(), batch)
    misses = spread((model.likeliest(hidden) != labels).double(), batch)
    return torch.stack([logprobs.sum(dim=1), (misses.sum(dim=1) == 0).double()], dim=1)
