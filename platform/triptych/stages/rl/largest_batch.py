"""The largest micro-batch of RL's samples, by which its memory is predicted; prompts are known, answers are not."""

import random
from collections.abc import Iterator, Sequence

from triptych.data.batches import computed_tokens, cut
from triptych.recipe import Rl
from triptych.recipe.stage import MicroBatch
from triptych.stages.context import StageContext

SEEN = 8
"""Steps whose samples are drawn."""
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Lengths of answers that are tried, as shares of the most that sampling writes: some of a step are that long."""
Prompts = Sequence[Sequence[int]]


def largest_batch(ctx: StageContext[Rl], prompts: Prompts) -> MicroBatch:
    """Tokens of the largest micro-batch of an update, low, expected and high by how long answers are."""
    limit = ctx.stage.rollout.sampling.max_new_tokens
    found = [_largest(ctx, prompts, max(1, int(share * limit))) for share in SHARES]
    tokens = [one for one, _ in found]
    most, usual = max(tokens), sorted(tokens)[len(tokens) // 2]
    learned = [learned / most for _, learned in found]
    return MicroBatch(
        most,
        max(map(len, prompts)) + limit,
        (min(tokens) / most, usual / most, 1.05),
        (learned[0], learned[len(learned) // 2], min(1.0, max(learned))),
    )


def _largest(ctx: StageContext[Rl], prompts: Prompts, answer: int) -> tuple[int, int]:
    """Tokens of the largest micro-batch where each answer has `answer` of them, and the most answers' tokens of one."""
    train, packing = ctx.stage.train, ctx.recipe.model.packing
    tokens = learned = 1
    for samples in _updates(ctx, prompts, answer):
        for own in cut(samples, train.batch.micro_tokens, train.workers.fewest, packing=packing):
            for micro in own:
                tokens = max(tokens, computed_tokens([samples[place] for place in micro], packing=packing))
                learned = max(learned, answer * len(micro))
    return tokens, learned


def _updates(ctx: StageContext[Rl], prompts: Prompts, answer: int) -> Iterator[list[list[list[int]]]]:
    """The samples of each optimiser step, each a row of one sequence; no two answers have a token in common."""
    rollout, drawn = ctx.stage.rollout, random.Random(ctx.recipe.seed)
    parts = ctx.stage.train.batch.minibatches
    for step in range(min(SEEN, ctx.stage.train.steps)):
        first, number = step * rollout.prompts_per_step, rollout.samples_per_prompt
        asked = [prompts[(first + i) % len(prompts)] for i in range(rollout.prompts_per_step) for _ in range(number)]
        samples = [[[*prompt, *[-1 - i] * answer]] for i, prompt in enumerate(asked)]
        drawn.shuffle(samples)
        for part in range(parts):
            yield samples[part * len(samples) // parts : (part + 1) * len(samples) // parts]
