"""Log-probabilities of a reference, computed once before the first step and kept beside the tables.

The reference is what the policy starts from, so the policy's own base gives them, and no second model is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from triptych import storage
from triptych.errors import RunError
from triptych.forward.roles import BASE, RoleModel
from triptych.stages.context import StageContext
from triptych.stages.supervised.loop import Rows
from triptych.train.batch import Batch
from triptych.train.learner import Learner

_FILE = "references.parquet"

ReferenceColumns = Mapping[str, Tensor]
"""Name -> the values [rows] of a table's rows, float64."""


def with_references(
    ctx: StageContext[Any],
    learner: Learner,
    role: str,
    rows: Mapping[str, Rows],
    compute: Callable[[RoleModel, Batch], Tensor],
    names: Sequence[str],
) -> dict[str, Rows]:
    """The rows, whose batches have what the reference makes of them. Every rank calls it, before the first step.

    Args:
        ctx: the stage; its reference is the adapter that it goes on from, or the base.
        learner: of the policy, before anything was learned or loaded.
        role: the policy.
        rows: the tables, by split.
        compute: values [rows, columns] of a batch's rows, float64.
        names: of the columns in a batch.
    """
    reference = BASE if ctx.start is None else role
    joined = {}
    for split, own in rows.items():
        url = references_url(ctx, split)
        if not learner.group.broadcast(storage.read_manifest(url) is not None):
            values = score_rows(ctx, learner, reference, own, compute)
            columns = dict(zip(names, values.unbind(dim=1), strict=True))
            _check(ctx, split, columns)
            if learner.group.rank == 0:
                _commit(url, columns)
            learner.group.barrier()
        joined[split] = _joined(own, _read(url))
    return joined


def score_rows(
    ctx: StageContext[Any],
    learner: Learner,
    role: str,
    rows: Rows,
    compute: Callable[[RoleModel, Batch], Tensor],
) -> Tensor:
    """`compute` of all rows by a role, without gradients: [rows, columns], on every rank."""
    numbered = Rows(rows.sequences, lambda some: rows.batch(some) | {"row": torch.tensor(some)})
    own: dict[int, Tensor] = {}
    for batch in numbered.micro_batches(range(len(rows.sequences)), ctx.stage.train.batch.micro_tokens, learner):
        # Ranks that shard the weights work together: one that has no rows left scores one for nothing.
        values = learner.forward(role, compute, rows.batch([0]) if batch is None else batch).cpu()
        if batch is not None:
            own |= dict(zip(batch["row"].tolist(), values, strict=True))
    whole = {row: value for part in learner.group.gather(own) for row, value in part.items()}
    return torch.stack([whole[row] for row in range(len(rows.sequences))])


def references_url(ctx: StageContext[Any], split: str) -> str:
    """Folder of a table's references: another table, another start or another base has another one."""
    table = storage.read_manifest(storage.join(ctx.folder, "data", split))
    made_of = {
        "data": None if table is None else table.digest,
        "start": None if ctx.start_version is None else ctx.start_version.sha256,
        "base": ctx.base_fingerprint,
        "model": ctx.recipe.model.model_dump(mode="json"),
    }
    return storage.join(ctx.folder, "references", f"{split}-{storage.digest_of(made_of)[:16]}")


def _check(ctx: StageContext[Any], split: str, columns: ReferenceColumns) -> None:
    """RunError where some of a table's values are no finite numbers: nothing could be learned of them."""
    for name, values in columns.items():
        if lost := int((~values.isfinite()).sum()):
            raise RunError(
                f"stage {ctx.name}: {name} of {lost} of {len(values)} rows of data.{split} are no finite numbers: "
                "model.dtype is too narrow, or what the stage starts from has diverged"
            )


def _commit(url: str, columns: ReferenceColumns) -> None:
    with storage.committed(url) as folder:
        pq.write_table(pa.table({name: values.numpy() for name, values in columns.items()}), folder / _FILE)


def _read(url: str) -> ReferenceColumns:
    table = pq.read_table(storage.local_copy(url) / _FILE)
    return {name: torch.tensor(table[name].to_numpy()) for name in table.column_names}


def _joined(rows: Rows, columns: ReferenceColumns) -> Rows:
    def batch(some: Sequence[int]) -> Batch:
        return rows.batch(some) | {name: values[list(some)] for name, values in columns.items()}

    return Rows(rows.sequences, batch)
