"""The largest micro-batch of a stage's data is that of its steps, packed and padded, and its prediction is narrow."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from tests.support.families import tiny
from tests.support.preferences import LORA, ROWS, recipe, stage
from triptych.data import load_rows
from triptych.data.batches import computed_tokens, step_rows
from triptych.data.checked import ChatCheck
from triptych.models.base import model_tokenizer
from triptych.plan import estimate
from triptych.plan.memory import micro_batch
from triptych.recipe import Recipe, load_recipe
from triptych.recipe.work_shape import MicroBatch
from triptych.stages.context import StageContext
from triptych.stages.rl.largest_batch import largest_batch as largest_of_samples
from triptych.stages.supervised.largest_batch import largest_batch, of_rows
from triptych.stages.supervised.loop import Rows
from triptych.train.tasks.rl import TASK
from triptych.train.tasks.task import Limits

MakeContext = Callable[[dict[str, Any]], StageContext[Any]]

ENDS = 1
"""Tokens behind the text of an answer that are learned too."""
LENGTHS = [5, 60, 20, 33, 8, 41, 12, 27, 55, 3]


class Context:
    """What a stage of a recipe is given, as far as its data's shape is asked for."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        self.recipe, self.stage, self.name = recipe, recipe.stages[name], name


def rows_of(lengths: list[int]) -> Rows:
    sequences = [[[100 * number + place for place in range(length)]] for number, length in enumerate(lengths)]
    return Rows(sequences, lambda rows: {})


def context(path: Path, name: str, *changes: str) -> Any:
    return Context(load_recipe(path, list(changes)), name)


@pytest.mark.parametrize("packing", [True, False])
def test_the_largest_micro_batch_is_that_of_all_steps(three_stages: Path, packing: bool) -> None:
    sets = ("batch.rows=4", "batch.micro_tokens=96", "batch.max_length=64")
    ctx = context(three_stages, "sft", f"model.packing={packing}", *(f"stages.sft.train.{one}" for one in sets))
    rows = rows_of(LENGTHS)
    found = largest_batch(ctx.recipe, ctx.stage, rows.sequences, [length - length // 2 for length in LENGTHS])
    tokens, learned = [], []
    for step in range(ctx.stage.train.total_steps(len(LENGTHS))):
        for [*micros] in rows.cut(step_rows(len(LENGTHS), 4, ctx.recipe.seed, step), 96, 1, packing=packing):
            tokens += [computed_tokens([rows.sequences[row] for row in micro], packing=packing) for micro in micros]
            learned += [sum(LENGTHS[row] - LENGTHS[row] // 2 for row in micro) for micro in micros]
    assert found.tokens == max(tokens) <= 96
    assert found.length == max(LENGTHS)
    assert found.learned == pytest.approx((max(learned) / max(tokens),) * 3)


@pytest.mark.parametrize("kind", ["dpo", "kto", "rrhf", "sft"])
def test_the_tokens_of_answers_alone_have_logits(kind: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """All rows are one micro-batch: its answers' tokens, counted by the tokenizer, over all that it computes."""
    loaded = recipe(tmp_path, tiny_model_dir, stage=stage(tmp_path, kind, method=LORA))
    own = loaded.trained["stage"].train.batch.model_copy(update={"micro_tokens": 4096})
    train = loaded.trained["stage"].train.model_copy(update={"batch": own})
    planned: Any = loaded.trained["stage"].model_copy(update={"train": train})
    tokenizer = model_tokenizer(tiny_model_dir, loaded.model)
    examples = resolve_name(planned.examples)(planned)
    rows = load_rows(planned.data.train, planned.rows, ChatCheck(tokenizer, "refuse")).items
    found = of_rows(loaded, planned, rows, tokenizer)
    assert found is not None
    items = examples.encode(rows, tokenizer).items
    sequences = [examples.sequences_of(partial(getattr, item)) for item in items]
    said = [
        row.get("answers", [row[name] for name in ("chosen", "rejected", "completion", "response") if name in row])
        for row in ROWS[kind]
    ]
    answers = sum(len(tokenizer(text, add_special_tokens=False).input_ids) + ENDS for row in said for text in row)
    assert found.tokens == computed_tokens(sequences, packing=True)
    assert found.learned[1] == pytest.approx(answers / found.tokens)
    assert found.learned[1] < 0.9


def test_answers_of_any_length_are_within_the_shares(three_stages: Path) -> None:
    sets = ("train.batch.micro_tokens=512", "rollout.sampling.max_new_tokens=64", "rollout.max_prompt_tokens=40")
    ctx = context(three_stages, "ppo", *(f"stages.ppo.{one}" for one in sets))
    prompts = [list(range(1, 2 + length)) for length in (10, 30, 21, 17)]
    found = largest_of_samples(ctx.recipe, ctx.stage, prompts)
    low, expected, high = found.fill
    assert 0 < low <= expected <= 1 <= high
    assert found.tokens <= 512
    assert found.length == 31 + 64
    assert found.learned[0] < found.learned[1] <= found.learned[2] <= 1


def test_a_full_batch_of_short_prompts_has_whole_answers(three_stages: Path) -> None:
    sets = ("rollout.sampling.max_new_tokens=64", "rollout.max_prompt_tokens=512")
    stage = context(three_stages, "ppo", *(f"stages.ppo.{one}" for one in sets)).stage
    batch = TASK.full_batch(stage, Limits(tokens=10 * 94, length=94, vocab=50, answer_share=0.5))
    assert batch["length"].tolist() == [64] * 10


def test_data_narrow_a_prediction(three_stages: Path) -> None:
    recipe = load_recipe(three_stages, ["stages.sft.train.batch.micro_tokens=2048"])
    alone = estimate(recipe, machine="8xh100-80", stage="sft").stages["sft"].peak
    whole = micro_batch(recipe.trained["sft"])
    half = MicroBatch(whole.tokens // 2, whole.length, (0.9, 1.0, 1.1), (0.5, 0.5, 0.5))
    seen = estimate(recipe, machine="8xh100-80", stage="sft", batches={"sft": half}).stages["sft"].peak
    assert seen.expected < alone.expected
    assert (seen.high - seen.low) / seen.expected < (alone.high - alone.low) / alone.expected / 2
    filled = {"sft": replace(half, tokens=whole.tokens)}
    full = estimate(recipe, machine="8xh100-80", stage="sft", batches=filled).stages["sft"].peak
    assert full.expected == pytest.approx(alone.expected, rel=0.01)


def test_families_whose_rows_are_padded_are_planned_so(make_context: MakeContext, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    tiny("falcon_h1", torch.float32).config.save_pretrained(folder)
    ctx = make_context({"kind": "sft", "data": {"train": {"path": "rows.jsonl"}}, "train": {"steps": 3}})
    padded = ctx.recipe.model_copy(update={"model": ctx.recipe.model.model_copy(update={"base": str(folder)})})
    asked = padded.model_copy(update={"model": padded.model.model_copy(update={"packing": False})})
    found = [largest_batch(one, ctx.stage, rows_of(LENGTHS).sequences, LENGTHS) for one in (padded, asked, ctx.recipe)]
    assert found[0] == found[1] != found[2]
