"""Log of rollouts: the answers of each step, as Parquet."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from triptych import storage
from triptych.algorithms.base import Credit, Scored
from triptych.rollout.trajectory import Trajectory
from triptych.stages.rl.rewarding import Rewarded
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker

T = TypeVar("T")


@dataclass(frozen=True)
class Learned:
    """The answers of a step that were learned from, and what was computed of their tokens."""

    rows: Sequence[int]
    """Their places among all answers of the step."""
    scored: Scored
    credit: Credit


def write_rollouts(worker: RlWorker, step: int, samples: Samples, rewarded: Rewarded, learned: Learned | None) -> None:
    """Write all answers of a step, counted from 1, as one Parquet file; a step that is done again replaces it.

    `score` is the sum over the rewards, `reward_<label>` each reward's own; null where there is none. What was computed
    of each token before the update is a list an answer, null for those that were not learned from. Such a list has null
    at tokens that the policy did not draw, as those of `logprobs` and `versions` have.
    """
    records = samples.records
    columns = {
        "lease": [record.lease for record in records],
        "group": list(samples.groups),
        "prompt": worker.texts([record.prompt_ids for record in records]),
        "response": [told(worker, record) for record in records],
        "prompt_ids": [list(record.prompt_ids) for record in records],
        "response_ids": [list(record.response_ids) for record in records],
        "drawn": [list(record.drawn) for record in records],
        "logprobs": [at_drawn(record, record.logprobs) for record in records],
        "versions": [at_drawn(record, record.versions) for record in records],
        "finish_reason": [record.finish_reason for record in records],
        "seed": [record.seed for record in records],
        "score": _or_null(rewarded.total),
        **{f"reward_{label}": _or_null(scores) for label, scores in rewarded.parts.items()},
        **({} if learned is None else _of_tokens(records, learned)),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    storage.write_bytes(storage.join(worker.ctx.folder, "rollouts", f"step-{step:08d}.parquet"), buffer.getvalue())


def _or_null(scores: Tensor) -> pa.Array:
    return pa.array(scores.double().numpy(), from_pandas=True)


def _of_tokens(records: Sequence[Trajectory], learned: Learned) -> dict[str, list[list[float | None] | None]]:
    """Column -> for each answer a number a token."""
    scored, credit = learned.scored, learned.credit
    matrices = {
        "policy_logprobs": scored.old,
        "reference_logprobs": scored.reference,
        "values": scored.values,
        "teacher_logprobs": scored.teacher,
        "advantages": credit.advantages,
        "importance_weights": credit.weights,
    }
    found: dict[str, list[list[float | None] | None]] = {}
    for name, matrix in matrices.items():
        if matrix is not None:
            column = found[name] = [None] * len(records)
            for place, row in enumerate(learned.rows):
                column[row] = at_drawn(records[row], matrix[place][scored.mask[place]].tolist())
    return found


def told(worker: RlWorker, record: Trajectory) -> str:
    """The policy's turns and the replies to them as text, each on lines of its own."""
    places = [0, *(place for turn in record.turns for place in turn)]
    parts = [record.response_ids[start:end] for start, end in pairwise(places)]
    return "\n".join(worker.texts([part for part in parts if part]))


def at_drawn(record: Trajectory, values: Sequence[T]) -> list[T | None]:
    """Values of the tokens that the policy drew, at their places among all; None elsewhere."""
    own = iter(values)
    return [next(own) if drawn else None for drawn in record.drawn]
