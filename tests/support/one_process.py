"""A stand-in for a cluster: the workers' part of a supervised stage runs in this process, and nobody is told of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from triptych.observe.progress import Progress


class Silent(Progress):
    """Nobody is told."""

    def __init__(self) -> None:
        super().__init__(None)

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Nothing."""


@contextmanager
def one_process() -> Iterator[None]:
    """Stages of a recipe must wait for each other: loading two models at once is not for threads of one process."""
    import ray
    import torch

    from triptych.stages.supervised import training

    def launch(name: str, work: Callable[[dict[str, Any]], None], config: dict[str, Any], *_: object) -> None:
        work(config)

    node = {"Alive": True, "Resources": {"CPU": 2.0, "memory": 24 * 2**30}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray, "nodes", lambda: [node])
        patched.setattr(training, "launch", launch)
        patched.setattr(training, "get_device", lambda: torch.device("cpu"))
        yield


class Stopped(Exception):  # noqa: N818 - stands for a signal
    """The end of a process in the middle of a stage."""


@contextmanager
def stopped_at_step(number: int) -> Iterator[None]:
    """Inside, a stage is stopped at its optimiser step `number`; that it was is checked at the end."""
    from triptych.errors import RunError
    from triptych.train.learner import Learner

    step, taken = Learner.step, []

    def stopping(*args: Any) -> Any:
        taken.append(1)
        if len(taken) == number:
            raise Stopped
        return step(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", stopping)
        with pytest.raises((Stopped, RunError)):
            yield
