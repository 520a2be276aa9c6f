"""Sources to tables of tokens, block by block: nothing but the table grows with the source.

A small source is encoded here, a large one by Ray Data's tasks. Either way a table holds the same rows in the same
order.
"""

import functools
import json
import logging
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from transformers import PreTrainedTokenizerBase

from triptych import storage
from triptych.data.chat import Control
from triptych.data.checked import ChatCheck
from triptych.data.examples import Examples
from triptych.data.files import absolute
from triptych.data.rows import BadRow, DataRow
from triptych.data.sources import Parse, Survey, iterate_rows
from triptych.data.table import write_blocks
from triptych.errors import UserError
from triptych.models.base import model_tokenizer
from triptych.recipe import Source, Workers
from triptych.recipe.model import Model
from triptych.stages.context import StageContext

_BLOCK_ROWS = 512
_LARGE = 64 * 2**20
"""Bytes of rows above which Ray Data encodes them: a minute's work for one process."""
_REPORTED = ("truncated", "split", "dropped", "unlearnable")

log = logging.getLogger(__name__)


def examples_of(ctx: StageContext[Any]) -> Examples:
    """How the stage's rows become tokens."""
    found: Examples = resolve_name(ctx.stage.examples)(ctx.stage)
    return found


def checked_parser(ctx: StageContext[Any], source: Source, examples: Examples) -> Parse:
    """The rows' parser, and the check of each chat by the base's template. Picklable too."""
    return functools.partial(_parse_checked, parse=examples.parse, ctx=ctx, control=source.control_tokens)


def _parse_checked(
    record: dict[str, Any], *, parse: Parse, ctx: StageContext[Any], control: Control
) -> Sequence[DataRow]:
    check = _check(ctx.base_dir, ctx.recipe.model, control)
    return [check(row) for row in parse(record)]


def encode(ctx: StageContext[Any], split: str, source: Source, survey: Survey, examples: Examples) -> dict[str, int]:
    """Commit the split's table, unless it is there; the number of its rows, and what became of the source's.

    Raises:
        UserError: nothing is left to learn from.
    """
    url = storage.join(ctx.folder, "data", split)
    counts_url = storage.join(ctx.folder, "data", f"{split}.json")
    if storage.read_manifest(url) is None:
        large = survey.size > _LARGE
        encoded = _in_tasks(ctx, source, examples) if large else _here(ctx, source, examples)
        write_blocks(url, _counted(ctx, split, encoded, counts_url))
    counts: dict[str, int] = json.loads(storage.read_bytes(counts_url))
    return counts


def _counted(
    ctx: StageContext[Any], split: str, encoded: Iterable[tuple[pa.Table, Mapping[str, int]]], counts_url: str
) -> Iterator[pa.Table]:
    """The tables; their summed counts are written and checked when the last one is through."""
    counts: Counter[str] = Counter()
    for table, found in encoded:
        counts.update(found)
        yield table
    found_text = ", ".join(f"{counts[name]} {name}" for name in _REPORTED)
    batch = ctx.stage.train.batch
    if not counts["rows"]:
        raise UserError(
            f"stages.{ctx.name}.data.{split}: no row is left to learn from ({found_text}) within "
            f"train.batch.max_length={batch.max_length} with overlength={batch.overlength}; raise max_length"
        )
    if any(counts[name] for name in _REPORTED):
        log.warning("stage %s, %s: %d rows; %s", ctx.name, split, counts["rows"], found_text)
    storage.write_bytes(counts_url, json.dumps(counts).encode())


def _here(ctx: StageContext[Any], source: Source, examples: Examples) -> Iterator[tuple[pa.Table, Mapping[str, int]]]:
    tokenizer = _tokenizer(ctx.base_dir, ctx.recipe.model)
    for rows in _blocks(source, checked_parser(ctx, source, examples)):
        yield _encoded(rows, examples, tokenizer)


def _blocks(source: Source, parse: Parse) -> Iterator[list[DataRow]]:
    """The source's rows, some hundreds at a time. Malformed ones were judged before and are skipped."""
    bad: list[BadRow] = []
    block: list[DataRow] = []
    for rows in iterate_rows(source, parse, bad):
        block += rows
        bad.clear()
        if len(block) >= _BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block


def _encoded(
    rows: Sequence[DataRow], examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> tuple[pa.Table, Mapping[str, int]]:
    found = examples.encode(rows, tokenizer)
    columns = {name: [getattr(item, name) for item in found.items] for name in examples.schema.names}
    counts = {"rows": len(found.items)} | {name: getattr(found, name) for name in _REPORTED}
    return pa.table(columns, examples.schema), counts


class _RowBlocks(ray.data.Datasource):
    """Ray Data's view of a source: one task reads it from end to end, and others have each block as it comes."""

    def __init__(self, source: Source, parse: Parse) -> None:
        super().__init__()
        self._read = functools.partial(_pickled_blocks, source, parse)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        return [ray.data.ReadTask(self._read, BlockMetadata(None, None, None, None))]


def _pickled_blocks(source: Source, parse: Parse) -> Iterator[pa.Table]:
    for rows in _blocks(source, parse):
        yield pa.table({"rows": [pickle.dumps(rows)]})


def _in_tasks(
    ctx: StageContext[Any], source: Source, examples: Examples
) -> Iterator[tuple[pa.Table, Mapping[str, int]]]:
    """As `_here`, by tasks on the CPUs that are the stage's own: its workers do not need them yet."""
    workers: Workers = ctx.stage.train.workers
    local = source.changed(absolute)  # tasks have another working directory
    blocks = ray.data.read_datasource(
        _RowBlocks(local, checked_parser(ctx, source, examples)),
        num_cpus=0,  # else it could hold the only CPU that the tasks behind it wait for
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},  # where the file is
    )
    blocks.context.enable_progress_bars = False
    blocks.context.target_max_block_size = 1  # bytes: each block is a task's
    blocks.context.execution_options.preserve_order = True
    blocks.context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=workers.count * workers.cpus)
    encoded = blocks.map_batches(
        _encoded_pickles,
        fn_kwargs={"examples": examples, "ctx": ctx},
        batch_size=1,
        num_cpus=min(1.0, workers.cpus),
    )
    for block in encoded.iter_rows():
        yield pa.ipc.open_stream(block["table"]).read_all(), json.loads(block["counts"])


def _encoded_pickles(
    batch: dict[str, NDArray[Any]], *, examples: Examples, ctx: StageContext[Any]
) -> dict[str, list[Any]]:
    """One block's rows, pickled by our own reader -> its table as Arrow bytes, its counts as JSON."""
    rows = pickle.loads(batch["rows"][0])  # noqa: S301
    table, counts = _encoded(rows, examples, _tokenizer(ctx.base_dir, ctx.recipe.model))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"table": [sink.getvalue().to_pybytes()], "counts": [json.dumps(counts)]}


_tokenizer = functools.lru_cache(maxsize=1)(model_tokenizer)
"""Loaded once in each of Ray's processes."""


@functools.lru_cache(maxsize=2)
def _check(folder: Path, model: Model, control: Control) -> ChatCheck:
    return ChatCheck(_tokenizer(folder, model), control)
