"""The one file that puts the learner on Ray Train."""

import math
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.placement_group import placement_group, remove_placement_group

from triptych.errors import RunError, UserError
from triptych.recipe import Workers
from triptych.train.allocator import allocator_variables

PLACEMENT_TIMEOUT_S = 120.0


class WorkerFailedError(RunError):
    """A worker died, or raised what is neither the user's mistake nor a run that cannot go on."""


def launch(
    name: str,
    train: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    workers: Workers,
    storage_path: str,
    placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
) -> None:
    """Run `train(config)` on every worker of a Ray Train group and wait for its end.

    `storage_path` takes Ray Train's own bookkeeping; checkpoints are `train`'s matter.
    A worker that dies restarts the group, `workers.max_restarts` times; `train` goes on from its own checkpoint.

    Raises:
        UserError: `train` raised one, or the cluster lacks the resources for good.
        WorkerFailedError: a worker died more often than it may.
        RunError: `train` raised one, or could not be placed in time.
    """
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    least = workers.min_count or workers.count
    _wait_until_placeable(name, [resources] * least, placement_timeout_s)
    trainer = TorchTrainer(
        _train_with_threads,
        # Packed, for Ray Train's controller would load all that trains to read it.
        train_loop_config={
            "work": cloudpickle.dumps((train, config)),
            "threads": workers.threads or math.ceil(workers.cpus),
        },
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count if least == workers.count else (least, workers.count),
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            # Ray may count on a node that is just lost, and wait for it in vain: that is a controller failure.
            failure_config=FailureConfig(
                max_failures=workers.max_restarts, controller_failure_limit=workers.max_restarts
            ),
            worker_runtime_env={"env_vars": allocator_variables()},
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _cause(name, list(error.worker_failures.values())) from error
    except TrainingFailedError as error:
        raise RunError(f"stage {name}: {error}") from error


def _train_with_threads(loop: dict[str, Any]) -> None:
    torch.set_num_threads(loop["threads"])  # Ray gives its workers one
    train, config = cloudpickle.loads(loop["work"])
    train(config)


def _wait_until_placeable(name: str, bundles: list[dict[str, float]], timeout_s: float) -> None:
    """Wait for room for the group; RunError with what is missing, because Ray Train would retry for ever."""
    group = placement_group(bundles)
    try:
        if not group.wait(timeout_s):
            asked = {key: sum(bundle.get(key, 0.0) for bundle in bundles) for key in bundles[0]}
            free = {key: ray.available_resources().get(key, 0.0) for key in asked}
            raise RunError(
                f"stage {name} was not placed within {timeout_s:g} s: its workers need {asked}, free are {free}; "
                "lower stages.<name>.workers or rollout.engines, or wait until the cluster has room"
            )
    finally:
        remove_placement_group(group)


def _cause(name: str, failures: list[BaseException]) -> Exception:
    """Error for the driver to raise: the first UserError or RunError of a worker, else a WorkerFailedError."""
    for failure in failures:
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, UserError | RunError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return WorkerFailedError(f"stage {name}: a worker failed: {failures[0] if failures else 'no reason given'}")
