"""The largest micro-batch of RL's samples, by which its memory is predicted; prompts are known, answers are not."""

import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from triptych.data.batches import computed_tokens, cut
from triptych.data.encode import encode_prompts
from triptych.models.families import packs_rows
from triptych.recipe import Recipe, Rl
from triptych.recipe.work_shape import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEN = 8
"""Steps whose samples are drawn."""
SHARES = (0.4, 0.55, 0.7, 0.85, 1.0)
"""Lengths of answers that are tried, as shares of the most that sampling writes: in some step they are that long."""
Prompts = Sequence[Sequence[int]]


def of_rows(recipe: Recipe, stage: Rl, rows: Sequence[Any], tokenizer: "PreTrainedTokenizerBase") -> MicroBatch | None:
    """The largest micro-batch of prompts that are not encoded yet."""
    prompts = encode_prompts(rows, tokenizer, stage.rollout.max_prompt_tokens, max_bad_rows=len(rows))
    return largest_batch(recipe, stage, [prompt.input_ids for prompt in prompts])


def largest_batch(recipe: Recipe, stage: Rl, prompts: Prompts) -> MicroBatch:
    """Tokens of the largest micro-batch of an update, low, expected and high by how long answers are."""
    limit = stage.answer_tokens
    found = [_largest(recipe, stage, prompts, max(1, int(share * limit))) for share in SHARES]
    tokens = [one for one, _ in found]
    most, expected = max(tokens), sorted(tokens)[-2]
    learned = sorted(learned / most for _, learned in found)
    return MicroBatch(
        most,
        max(map(len, prompts)) + limit,
        (min(tokens) / most, expected / most, 1.05),
        (learned[0], learned[-2], min(1.0, learned[-1])),
        fmean(map(len, prompts)),
    )


def _largest(recipe: Recipe, stage: Rl, prompts: Prompts, answer: int) -> tuple[int, int]:
    """Tokens of the largest micro-batch where each answer has `answer` of them, and the most answers' tokens of one."""
    train, packing = stage.train, packs_rows(recipe.model)
    tokens = learned = 1
    for samples in _updates(stage, recipe.seed, prompts, answer):
        for own in cut(samples, train.batch.micro_tokens, train.workers.fewest, packing=packing):
            for micro in own:
                tokens = max(tokens, computed_tokens([samples[place] for place in micro], packing=packing))
                learned = max(learned, answer * len(micro))
    return tokens, learned


def _updates(stage: Rl, seed: int, prompts: Prompts, answer: int) -> Iterator[list[list[list[int]]]]:
    """The samples of each optimiser step, each a row of one sequence; no two answers have a token in common."""
    rollout, drawn, parts = stage.rollout, random.Random(seed), stage.train.batch.minibatches
    for step in range(min(SEEN, stage.train.steps)):
        first, number = step * rollout.prompts_per_step, rollout.samples_per_prompt
        asked = [prompts[(first + i) % len(prompts)] for i in range(rollout.prompts_per_step) for _ in range(number)]
        samples = [[[*prompt, *[-1 - i] * answer]] for i, prompt in enumerate(asked)]
        drawn.shuffle(samples)
        for part in range(parts):
            yield samples[part * len(samples) // parts : (part + 1) * len(samples) // parts]
