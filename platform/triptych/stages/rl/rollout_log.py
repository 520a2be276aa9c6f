"""Log of rollouts: the answers of each step, as Parquet."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from triptych import storage
from triptych.stages.rl.rewarding import Rewarded
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker


def write_rollouts(worker: RlWorker, step: int, samples: Samples, rewarded: Rewarded) -> None:
    """Write all answers of a step, counted from 1, as one Parquet file; a step that is done again replaces it.

    `score` is the sum that was learned from, `reward_<label>` each reward's own; null where there is none.
    """
    records = samples.records
    columns = {
        "lease": [record.lease for record in records],
        "group": list(samples.groups),
        "prompt": worker.texts([record.prompt_ids for record in records]),
        "response": worker.texts([record.response_ids for record in records]),
        "prompt_ids": [list(record.prompt_ids) for record in records],
        "response_ids": [list(record.response_ids) for record in records],
        "logprobs": [list(record.logprobs) for record in records],
        "versions": [list(record.versions) for record in records],
        "finish_reason": [record.finish_reason for record in records],
        "seed": [record.seed for record in records],
        "score": _or_null(rewarded.total),
        **{f"reward_{label}": _or_null(scores) for label, scores in rewarded.parts.items()},
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    storage.write_bytes(storage.join(worker.ctx.folder, "rollouts", f"step-{step:08d}.parquet"), buffer.getvalue())


def _or_null(scores: Tensor) -> pa.Array:
    return pa.array(scores.double().numpy(), from_pandas=True)
