"""What a stage can trade for memory and speed without learning anything else, and the values to try."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from triptych.plan.sharding import StrategyName, fewest, with_strategy
from triptych.recipe import PpoStage, Recipe, Stage, workers_of
from triptych.recipe.refusals import under_strategy
from triptych.recipe.training import Lever

Pulled = Lever | Literal["strategy"]
"""A lever; the strategy has an `auto` of its own in recipes."""
ALL: tuple[Pulled, ...] = ("micro_tokens", "checkpointing", "loss_chunk", "strategy")
_CHECKPOINTING: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
_CHUNKS = (128, 512, 2048, None)


@dataclass(frozen=True)
class Levers:
    """One setting of all of them. The global batch is not among them: what a micro-batch leaves is accumulated."""

    micro_tokens: int
    checkpointing: Literal["none", "selective", "full"]
    loss_chunk: int | None
    strategy: StrategyName

    @classmethod
    def of(cls, stage: Stage, strategy: StrategyName) -> "Levers":
        """As a stage has them."""
        memory = stage.memory if isinstance(stage, PpoStage) else stage.train.memory
        tokens = stage.micro_tokens if isinstance(stage, PpoStage) else stage.train.batch.micro_tokens
        return cls(tokens, memory.checkpointing, memory.loss_chunk, strategy)

    def on(self, stage: Stage) -> Stage:
        """The stage with this setting, nothing of it left to be chosen."""
        stage = with_strategy(stage, self.strategy)
        pulled = {"checkpointing": self.checkpointing, "loss_chunk": self.loss_chunk}
        if isinstance(stage, PpoStage):
            memory = stage.memory.model_copy(update=pulled)
            return stage.model_copy(update={"memory": memory, "micro_tokens": self.micro_tokens, "auto": ()})
        train = stage.train
        parts: dict[str, Any] = {
            "memory": train.memory.model_copy(update=pulled),
            "batch": train.batch.model_copy(update={"micro_tokens": self.micro_tokens}),
        }
        return stage.model_copy(update={"train": train.model_copy(update=parts | {"auto": ()})})

    def __str__(self) -> str:
        chunk = "all logits at once" if self.loss_chunk is None else f"loss_chunk {self.loss_chunk}"
        return f"micro_tokens {self.micro_tokens}, checkpointing {self.checkpointing}, {chunk}, {self.strategy}"


def auto_levers(stage: Stage) -> tuple[Lever, ...]:
    """Those that a recipe leaves to the plan, the strategy apart."""
    return stage.auto if isinstance(stage, PpoStage) else stage.train.auto


def settings(recipe: Recipe, name: str, own: Levers, pulled: Collection[Pulled]) -> Iterator[Levers]:
    """All settings of the levers in `pulled`; others stay as they are in `own`."""
    stage = recipe.stages[name]
    tokens = _micro_tokens(stage) if "micro_tokens" in pulled else [own.micro_tokens]
    kinds = _CHECKPOINTING if "checkpointing" in pulled else (own.checkpointing,)
    with_logits = stage.kind in ("sft", "ppo")
    chunks = _CHUNKS if "loss_chunk" in pulled and with_logits else (own.loss_chunk,)
    strategies = _strategies(stage) if "strategy" in pulled else [own.strategy]
    for strategy, kind, chunk, micro in itertools.product(strategies, kinds, chunks, tokens):
        if len(chunks) == 1 or chunk is None or chunk < micro:
            yield Levers(micro, kind, chunk, strategy)


def _micro_tokens(stage: Stage) -> list[int]:
    """From one longest row, or pair, by doubling to all rows that a worker has of a step."""
    if isinstance(stage, PpoStage):
        least = stage.max_prompt_tokens + stage.rollout.sampling.max_new_tokens
        rows = stage.prompts_per_step * stage.samples_per_prompt // stage.ppo.minibatches
    else:
        least = stage.train.batch.max_length * (2 if stage.kind == "reward" else 1)
        rows = stage.train.batch.rows
    most = max(1, -(-rows // fewest(workers_of(stage)))) * least
    found = [least]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def _strategies(stage: Stage) -> list[StrategyName]:
    """Those that take every optimizer and precision; DeepSpeed's are for those who ask for them."""
    if workers_of(stage).count == 1:
        return ["single"]
    sharded = not isinstance(stage, PpoStage) and under_strategy(stage.method, "fsdp") is None
    return ["ddp", "fsdp"] if sharded else ["ddp"]
