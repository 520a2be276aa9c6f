"""A kind of stage without a learner: it keeps the chats whose answers are short, as a data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pyarrow as pa

from triptych import storage
from triptych.data import load_rows
from triptych.recipe import KINDS, Data, Recipe, Source, StageBase
from triptych.recipe.stage import Output
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_rows, data_parents, finish, measured, sources
from triptych.stages.context import StageContext, remember


class ShortAnswers(StageBase):
    """Chats whose last message has few characters."""

    runner = "tests.support.data_kind:run"

    kind: Literal["short_answers"]
    data: Data
    longest: int
    """Characters of the longest answer that is kept."""

    @property
    def output(self) -> Output:
        return "dataset"

    def splits(self) -> dict[str, Source]:
        """The rows that it selects from."""
        return self.data.splits()


def run(ctx: StageContext[ShortAnswers]) -> AdapterVersion:
    """Chats -> registered data set."""
    rows = load_rows(sources(ctx)["train"], "sft")
    inputs = remember(ctx, {"train": rows.digest}, data_parents(ctx))
    if storage.read_manifest(ctx.artifact) is None:
        short = [row.messages for row in rows.items if len(row.messages[-1].content) <= ctx.stage.longest]
        kept = [{"messages": [{"role": turn.role, "content": turn.content} for turn in chat]} for chat in short]
        blocks = [pa.Table.from_pylist([row]) for row in kept]
        commit_rows(ctx, blocks, {"kept": len(kept) / len(rows.items)})
    return finish(ctx, inputs, measured(ctx))


@contextmanager
def known() -> Iterator[None]:
    """Recipes may have the kind within the block."""
    KINDS["short_answers"] = ShortAnswers
    Recipe.model_rebuild(force=True)
    try:
        yield
    finally:
        del KINDS["short_answers"]
        Recipe.model_rebuild(force=True)
