"""Shares of weights, gradients and optimizer state that a strategy leaves on each worker."""

from dataclasses import dataclass

from triptych.recipe import TrainedStage, Workers
from triptych.recipe.refusals import under_strategy
from triptych.recipe.training import StrategyName


@dataclass(frozen=True)
class Sharding:
    """The number of workers that each kind of state is spread over; 1: every worker has all of it."""

    workers: int
    """Number of workers, each of which writes its share of a checkpoint."""
    weights: int
    """Weights of the frozen base and of what is trained."""
    gradients: int
    optimizer: int
    """Optimizer state, and the copy that it updates."""
    whole_model: bool
    """The base is sharded too: weights are gathered for the pass, block by block."""
    float32_base: bool
    """The frozen base is held in float32."""
    master_copy: bool
    """A worker updates a float32 copy of its share."""
    bucket: bool
    """DeepSpeed's buffer for reducing gradients."""
    message: bool
    """All gradients are copied into one message."""
    offloaded: tuple[str, ...]
    """Parts of a GPU worker that lie in CPU memory."""


def sharding(workers: Workers, strategy: StrategyName) -> Sharding:
    """The sharding of a group of workers at its smallest."""
    count = workers.fewest
    zero = int(strategy[-1]) if strategy.startswith("zero") else 0
    whole = strategy in ("fsdp", "zero3")
    offloaded: tuple[str, ...] = ()
    if workers.offload and workers.gpus:
        offloaded = ("gradients", "optimizer") + (("weights", "masters", "adapter") if whole else ())
    return Sharding(
        workers=count,
        weights=count if whole else 1,
        gradients=count if whole or zero == 2 else 1,
        optimizer=count if whole or zero else 1,
        whole_model=whole,
        float32_base=zero == 3,
        master_copy=zero in (1, 2) or (zero == 3 and bool(offloaded)),
        bucket=zero > 0 and workers.gpus > 0,
        message=strategy == "ddp" and count > 1,
        offloaded=offloaded,
    )


def may_shard(stage: TrainedStage) -> bool:
    """True where `strategy: auto` may shard the stage's base model."""
    method = stage.own_method
    return stage.shards_by_default and (method is None or under_strategy(method, "fsdp") is None)


def with_strategy(stage: TrainedStage, strategy: StrategyName) -> TrainedStage:
    """A copy of the stage with another strategy."""
    workers = stage.workers.model_copy(update={"strategy": strategy})
    return stage.model_copy(update={"train": stage.train.model_copy(update={"workers": workers})})
