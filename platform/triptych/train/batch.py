"""A micro-batch: tensors of one forward and backward pass, rows first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.data.batches import pad_right
from triptych.objectives import IGNORE

Batch = dict[str, Tensor]
"""Every batch has `ids` and `mask` [B, T]; tasks add their own columns."""


def language_batch(examples: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    """(input_ids, labels) -> ids, mask, labels [B, T]; labels are `IGNORE` where nothing is learned."""
    ids, mask = pad_right([list(ids) for ids, _ in examples], pad)
    labels, _ = pad_right([list(labels) for _, labels in examples], IGNORE)
    return {"ids": ids, "mask": mask, "labels": labels}


def pair_batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    """(chosen, rejected) -> ids, mask [2B, T]: all chosen, then all rejected."""
    ids, mask = pad_right([list(chosen) for chosen, _ in pairs] + [list(rejected) for _, rejected in pairs], pad)
    return {"ids": ids, "mask": mask}


def sample_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad: int,
    drawn: Sequence[Sequence[bool]] | None = None,
) -> Batch:
    """Prompts and their answers -> ids, mask [B, T], `start` [B] (prompt length) and `length` [B] (answer length).

    `drawn`: for each token of each answer, whether it counts as one; the batch has it as `drawn` [B, R]. None: all do.
    """
    ids, mask = pad_right([[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad)
    batch = {
        "ids": ids,
        "mask": mask,
        "start": torch.tensor([len(p) for p in prompts]),
        "length": torch.tensor([len(r) for r in responses]),
    }
    if drawn is None:
        return batch
    return batch | {"drawn": pad_right([list(map(int, row)) for row in drawn], 0)[0].bool()}


def answer_batch(sequences: Sequence[Sequence[int]], starts: Sequence[int], pad: int) -> Batch:
    """`sample_batch` of whole sequences, each with the index at which its answer starts."""
    both = list(zip(sequences, starts, strict=True))
    return sample_batch([row[:start] for row, start in both], [row[start:] for row, start in both], pad)


def response_mask(length: Tensor, width: int | None = None) -> Tensor:
    """[B] lengths -> bool [B, R], true at the answer's tokens."""
    width = int(length.max()) if width is None else width
    return torch.arange(width, device=length.device) < length[:, None]


def answer_mask(batch: Batch) -> Tensor:
    """[B, R] bool, true at the answer's tokens; of answers in several turns, at those that the policy drew."""
    mask = response_mask(batch["length"])
    return mask & batch["drawn"][:, : mask.shape[1]] if "drawn" in batch else mask


def before_response(hidden: Tensor, batch: Batch) -> Tensor:
    """Hidden states [B, T, d] -> [B, R, d]: position t is the state that the answer's token t was drawn from."""
    steps = torch.arange(int(batch["length"].max()), device=hidden.device)
    index = (batch["start"][:, None] - 1 + steps).clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))


def response_ids(batch: Batch) -> Tensor:
    """The answer's tokens [B, R], whatever stands there past its end."""
    steps = torch.arange(int(batch["length"].max()), device=batch["ids"].device)
    index = (batch["start"][:, None] + steps).clamp(max=batch["ids"].shape[1] - 1)
    return batch["ids"].gather(1, index)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [B, T, d] -> [B, d] at each row's last real token, on whichever side the padding is."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = (steps * (mask > 0)).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
