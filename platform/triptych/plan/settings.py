"""Settings that change the memory and speed of a stage but not what is learned, and the values to try."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from triptych.errors import UserError
from triptych.models.sizes import Sizes, model_sizes
from triptych.plan.devices import on_devices
from triptych.plan.machines import Machine
from triptych.plan.sharding import may_shard, with_strategy
from triptych.recipe import Recipe, TrainedStage
from triptych.recipe.training import AutoSetting, Checkpointing, StrategyName

SettingName = AutoSetting | Literal["strategy"]
"""A field of `Settings`; the strategy has an `auto` of its own in recipes."""
ALL: tuple[SettingName, ...] = ("micro_tokens", "checkpointing", "loss_chunk", "strategy")
_CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
_CHUNKS = (128, 512, 2048, None)


@dataclass(frozen=True)
class Settings:
    """One value for each setting. The global batch is not among them: gradients of smaller micro-batches accumulate."""

    micro_tokens: int
    checkpointing: Checkpointing
    loss_chunk: int | None
    strategy: StrategyName

    @classmethod
    def of(cls, stage: TrainedStage, strategy: StrategyName) -> "Settings":
        """The settings of a stage."""
        memory = stage.train.memory
        return cls(stage.train.batch.micro_tokens, memory.checkpointing, memory.loss_chunk, strategy)

    def on(self, stage: TrainedStage) -> TrainedStage:
        """The stage with these settings, none of them left to `auto`."""
        train = with_strategy(stage, self.strategy).train
        changed = {"checkpointing": self.checkpointing, "loss_chunk": self.loss_chunk}
        parts: dict[str, Any] = {
            "memory": train.memory.model_copy(update=changed),
            "batch": train.batch.model_copy(update={"micro_tokens": self.micro_tokens}),
        }
        return stage.model_copy(update={"train": train.model_copy(update=parts | {"auto": ()})})

    def __str__(self) -> str:
        chunk = "all logits at once" if self.loss_chunk is None else f"loss_chunk {self.loss_chunk}"
        return f"micro_tokens {self.micro_tokens}, checkpointing {self.checkpointing}, {chunk}, {self.strategy}"


def all_settings(recipe: Recipe, name: str, own: Settings, vary: Collection[SettingName]) -> Iterator[Settings]:
    """Every combination of the settings in `vary`; the others stay as they are in `own`."""
    stage = recipe.trained[name]
    tokens = _micro_tokens(stage) if "micro_tokens" in vary else [own.micro_tokens]
    kinds = _CHECKPOINTING if "checkpointing" in vary else (own.checkpointing,)
    chunks = _CHUNKS if "loss_chunk" in vary and stage.shape().logits else (own.loss_chunk,)
    strategies = _strategies(stage) if "strategy" in vary else [own.strategy]
    for strategy, kind, chunk, micro in itertools.product(strategies, kinds, chunks, tokens):
        if len(chunks) == 1 or chunk is None or chunk < micro:
            yield Settings(micro, kind, chunk, strategy)


def _micro_tokens(stage: TrainedStage) -> list[int]:
    """Micro-batch sizes to try: one longest row or pair, doubled up to all rows of a worker's step."""
    shape = stage.shape()
    most = max(1, -(-shape.rows_per_update // stage.workers.fewest)) * shape.row_tokens
    found = [shape.row_tokens]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def _strategies(stage: TrainedStage) -> list[StrategyName]:
    """Strategies to try: those that take every optimizer and precision. DeepSpeed's must be asked for."""
    if stage.workers.count == 1:
        return ["single"]
    return ["ddp", "fsdp"] if may_shard(stage) else ["ddp"]


def resolve_strategy(recipe: Recipe, name: str, machine: Machine, sizes: Sizes | None = None) -> StrategyName:
    """The strategy of a stage that the machine has room for: its own, or for `auto` the simplest that fits.

    One worker is `single`; more are `ddp`, or `fsdp` where a device would not hold the peak of ddp and holds that of
    fsdp. `sizes` None: those of the base; a base of unknown sizes is left to ddp.
    """
    workers = recipe.trained[name].workers
    if workers.strategy != "auto":
        return workers.strategy
    if workers.count == 1:
        return "single"
    try:
        sizes = sizes or model_sizes(recipe.model)
    except UserError:
        return "ddp"
    _, replicated = on_devices(recipe, name, sizes, machine, "ddp")
    if all(device.peak.expected <= device.capacity for device in replicated.values()):
        return "ddp"
    if not may_shard(recipe.trained[name]):
        return "ddp"
    _, sharded = on_devices(recipe, name, sizes, machine, "fsdp")
    return "fsdp" if all(device.peak.low <= device.capacity for device in sharded.values()) else "ddp"
