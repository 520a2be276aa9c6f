"""Committed prompts of a stage: token ids, and messages and the other columns of their rows as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from triptych import storage
from triptych.data.encode import PromptExample
from triptych.data.table import Table, read_table
from triptych.errors import UserError
from triptych.recipe import Rl
from triptych.recipe.reward import CalledReward
from triptych.recipe.spec import dotted
from triptych.stages.context import StageContext


def prompt_table(prompts: Sequence[PromptExample], digest: str) -> Table:
    """The prompts as a table; `digest`: of the rows that they were encoded from.

    What JSON has no form for is kept as text, but bytes, such as pictures, are left out.
    """
    fields = [json.dumps(dict(prompt.fields), default=_as_text) for prompt in prompts]
    messages = [json.dumps(list(map(dict, prompt.messages)), default=_as_text) for prompt in prompts]
    ids = [prompt.input_ids for prompt in prompts]
    return Table({"prompt_ids": ids, "fields": fields, "messages": messages}, digest)


def check_columns(ctx: StageContext[Rl], split: str, prompts: Sequence[PromptExample]) -> None:
    """UserError where a reward refuses a row, or more of them lack its column than it may leave without a score."""
    watch = ctx.stage.watch if split in ctx.stage.heldout_sets else None
    asked = ctx.stage.terms(split) | ({("watch",): watch} if watch is not None else {})
    for field, reward in asked.items():
        if not isinstance(reward, CalledReward):
            continue
        if refused := next((why for prompt in prompts if (why := reward.refuses(prompt.fields))), None):
            raise UserError(f"stages.{ctx.name}.{dotted(field)} ({reward.name}): {refused}")
        if reward.column is None:
            continue
        missing = sum(prompt.fields.get(reward.column) is None for prompt in prompts)
        if missing > reward.calls.max_failed * len(prompts):
            raise UserError(
                f"stages.{ctx.name}.{dotted(field)} ({reward.name}): {missing} of {len(prompts)} rows of "
                f"{dotted(ctx.stage.split_field(split))} have no column {reward.column!r}; the first row has: "
                f"{', '.join(sorted(prompts[0].fields)) or 'none'}"
            )


def read_prompts(ctx: StageContext[Rl], split: str) -> list[PromptExample]:
    """The prompts that the driver committed. Tables of earlier versions have no columns of fields and messages."""
    columns = read_table(storage.join(ctx.folder, "data", split))
    count = len(columns["prompt_ids"])
    fields, messages = columns.get("fields", ["{}"] * count), columns.get("messages", ["[]"] * count)
    return [
        PromptExample(ids, json.loads(own), tuple(json.loads(said)))
        for ids, own, said in zip(columns["prompt_ids"], fields, messages, strict=True)
    ]


def _as_text(value: Any) -> str | None:
    return None if isinstance(value, bytes | bytearray | memoryview) else str(value)
