"""Sampled answers of one step, and what is computed of them: matrices [samples, answer tokens]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from triptych.data.batches import cut
from triptych.data.encode import PromptExample
from triptych.errors import RunError
from triptych.forward.roles import RoleModel
from triptych.objectives.masking import widen
from triptych.rewards.base import Answer
from triptych.rollout.pool import RolloutPool
from triptych.rollout.trajectory import Trajectory
from triptych.train.batch import Batch, sample_batch
from triptych.train.group import Group
from triptych.train.learners import RoleLearner


def moments(name: str, scores: Tensor) -> dict[str, float]:
    """Mean of scores [N] as `name`, and as `<name>_std` their sample deviation, which one score has none of."""
    deviation = {f"{name}_std": scores.std().item()} if len(scores) > 1 else {}
    return {name: scores.mean().item(), **deviation}


@dataclass(frozen=True)
class Samples:
    """N answers, the same on every rank; R is the longest one's length, what environments wrote included."""

    records: Sequence[Trajectory]
    prompts: Sequence[PromptExample]
    groups: Sequence[int]
    """For each answer, the place of its prompt in `prompts`: equal for the answers to one prompt."""
    pad: int
    micro_tokens: int
    temperature: float
    """Temperature that the answers were sampled at, and so of their log-probabilities."""

    @cached_property
    def mask(self) -> Tensor:
        """[N, R] bool, true at tokens that the policy drew."""
        width = max(len(record.drawn) for record in self.records)
        rows = [[*record.drawn, *[False] * (width - len(record.drawn))] for record in self.records]
        return torch.tensor(rows, dtype=torch.bool)

    @cached_property
    def rollout_logprobs(self) -> Tensor:
        """[N, R] log-probabilities that the engines gave; 0 where the policy drew nothing."""
        flat = torch.tensor([value for record in self.records for value in record.logprobs])
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, flat)

    @cached_property
    def truncated(self) -> Tensor:
        """[N] bool: answers cut by their length."""
        return torch.tensor([record.finish_reason == "length" for record in self.records])

    @cached_property
    def failed(self) -> Tensor:
        """[N] bool: trajectories whose environment failed."""
        return torch.tensor([record.failed is not None for record in self.records])

    def joined(self, other: "Samples") -> "Samples":
        """These answers, then the other ones, whose prompts are other prompts."""
        groups = [len(self.prompts) + group for group in other.groups]
        return replace(
            self,
            records=[*self.records, *other.records],
            prompts=[*self.prompts, *other.prompts],
            groups=[*self.groups, *groups],
        )

    def of_rows(self, rows: Sequence[int]) -> "Samples":
        """Some of the answers, in the order of `rows`; each keeps its group."""
        return replace(self, records=[self.records[row] for row in rows], groups=[self.groups[row] for row in rows])

    def answers(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Answer]:
        """The answers for rewards; `texts`: of the responses, `prompts`: of prompts whose messages are not known."""
        return [
            Answer(
                record.prompt_ids,
                record.last_turn,
                text,
                self.prompts[group].fields,
                self.prompts[group].messages or ({"role": "user", "content": prompt},),
                group,
                record.earned,
                sum(record.drawn) - len(record.last_turn),
            )
            for record, text, prompt, group in zip(self.records, texts, prompts, self.groups, strict=True)
        ]

    def micro_batches(
        self, learner: RoleLearner, rows: Sequence[int] | None = None, columns: dict[str, Tensor] | None = None
    ) -> list[tuple[list[int], Batch | None]]:
        """This rank's micro-batches of the given rows (all of them): row numbers, and the batch with its `columns`.

        Ranks have equally many; None stands for an empty one.
        """
        chosen = list(range(len(self.records))) if rows is None else list(rows)
        sequences = [[*self.records[row].prompt_ids, *self.records[row].response_ids] for row in chosen]
        rows_of_one = [[sequence] for sequence in sequences]
        ranks = cut(rows_of_one, self.micro_tokens, learner.group.size, packing=learner.model.packing)
        mine = ranks[learner.group.rank]
        numbers = [[chosen[index] for index in micro] for micro in mine]
        return [(rows, self._batch(rows, columns or {}) if rows else None) for rows in numbers]

    def forward(self, learner: RoleLearner, role: str, compute: Callable[[RoleModel, Batch], Tensor]) -> Tensor:
        """`compute` of every row as `role`, over all ranks: [B, ...] of each micro-batch becomes [N, ...].

        Where the second dimension is the answer's tokens, a micro-batch fills the first of them.
        """
        whole: Tensor | None = None
        for rows, batch in self.micro_batches(learner):
            # Ranks that shard the weights work together: one that has no rows left computes one for nothing.
            values = learner.forward(role, compute, self._batch([0], {}) if batch is None else batch)
            values = widen(values[: len(rows)]).cpu()
            if whole is None:
                width = self.mask.shape[1:] if values.ndim > 1 else ()
                whole = torch.zeros(len(self.records), *width, *values.shape[2:], dtype=values.dtype)
            if values.ndim == 1:
                whole[rows] = values
            else:
                whole[rows, : values.shape[1]] = values
        return torch.stack([part for part in learner.group.gather(whole) if part is not None]).sum(dim=0)

    def judged(self, pool: RolloutPool, group: Group) -> Tensor:
        """[N, R] log-probabilities at temperature 1 by a pool's model, which the first rank asks for.

        0 where the policy drew nothing.

        Raises:
            RunError: the pool's answers did not arrive.
        """
        sequences = [[*record.prompt_ids, *record.response_ids] for record in self.records]
        starts = [len(record.prompt_ids) for record in self.records]
        found = group.broadcast(pool.judged(sequences, starts) if group.rank == 0 else None)
        if found is None:
            raise RunError("rank 0 broadcast no log-probabilities")
        read = zip(found, (record.drawn for record in self.records), strict=True)
        flat = torch.tensor([value for row, drawn in read for value, own in zip(row, drawn, strict=True) if own])
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, flat)

    def _batch(self, rows: list[int], columns: dict[str, Tensor]) -> Batch:
        prompts = [self.records[row].prompt_ids for row in rows]
        responses = [self.records[row].response_ids for row in rows]
        drawn = [self.records[row].drawn for row in rows]
        batch = sample_batch(prompts, responses, self.pad, None if all(map(all, drawn)) else drawn)
        return batch | {name: column[rows] for name, column in columns.items()}
