"""The stop rules of a stage together: what fired, which evaluation was best, and the time that the stage has taken."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from triptych import storage
from triptych.observe.log import plain
from triptych.recipe import EarlyStopping, Rl
from triptych.recipe.stopping import StopRules
from triptych.stages.context import StageContext
from triptych.stages.rl.stop_rules import HackingRule, StepNumbers, StopRule, rules_of
from triptych.train.stopping import Stopper

_FILE = "ending.json"


@dataclass(frozen=True)
class Stopped:
    """End of a stage by a rule."""

    rule: str
    """The rule's field below `train.stopping`."""
    step: int
    why: str
    numbers: dict[str, float]


class Stopping:
    """State of a stage's rules; without rules nothing fires and no evaluation is best."""

    def __init__(self, config: StopRules | None = None, devices: float = 1.0, watched: str = "judge") -> None:
        """Begin to count the time. `devices`: see `devices_of`; `watched`: see `HackingRule`."""
        self.rules: dict[str, StopRule] = {} if config is None else rules_of(config, devices, watched)
        self.best_by = None if config is None else config.best_by
        """Held-out metric by which an evaluation is the best; None: the last weights are kept."""
        self.stopped: Stopped | None = None
        self.step = -1
        """Last step that was judged; 0: the evaluation before the first step."""
        min_delta = config.heldout.min_delta if config is not None and config.heldout is not None else 0.0
        self._best = Stopper(EarlyStopping(metric="reward", mode="max", min_delta=min_delta))
        self._before, self._started = 0.0, time.monotonic()

    @property
    def keeps_best(self) -> bool:
        """True if the stage ends with the weights of its best evaluation."""
        return self.best_by is not None

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation; None before the first, or where the last weights are kept."""
        return self._best.best_step

    @property
    def seconds(self) -> float:
        """Time of this start so far, and of earlier ones up to the checkpoint."""
        return self._before + time.monotonic() - self._started

    def judge(self, step: int, numbers: StepNumbers) -> bool:
        """Take in the numbers at a step, the same on every rank; True if its evaluation is the best so far.

        A step that was judged before a restart is not judged again.

        Raises:
            UserError: a rule reads what is not measured.
        """
        if step <= self.step:
            return False
        self.step = step
        reasons = {
            name: rule.judge(step, numbers) for name, rule in self.rules.items() if rule.needs in numbers
        }  # every rule sees every step, whatever the others find
        for name, reason in reasons.items():
            if reason is not None and self.stopped is None:
                self.stopped = Stopped(name, step, reason.why, reason.numbers)
        return self._may_be_best(numbers) and self._best.see(step, numbers[str(self.best_by)])

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, read by `load_state`."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "stopped": asdict(self.stopped) if self.stopped else None,
            "best": self._best.state(),
            "rules": {name: rule.state() for name, rule in self.rules.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.step, self._before = state["step"], state["seconds"]
        self.stopped = Stopped(**state["stopped"]) if state["stopped"] else None
        self._best.load_state(state["best"])
        for name, rule in self.rules.items():
            rule.load_state(state["rules"][name])

    def _may_be_best(self, numbers: StepNumbers) -> bool:
        watch = self.rules.get("hacking")
        if self.best_by not in numbers:
            return False
        return not (isinstance(watch, HackingRule) and watch.has_fallen(numbers))


def stopping_of(ctx: StageContext[Rl]) -> Stopping:
    """The stage's rules at their beginning; its time begins."""
    return Stopping(ctx.stage.train.stopping, devices_of(ctx), ctx.stage.watched or "judge")


def devices_of(ctx: StageContext[Rl]) -> float:
    """GPUs, or shares of them, that workers and engines reserve together; logical CPUs where neither reserves one."""
    workers, engines = ctx.stage.workers, ctx.stage.rollout
    gpus = workers.count * workers.gpus + engines.engines * engines.gpus
    return gpus or workers.count * workers.cpus + engines.engines * engines.cpus


def write_ending(ctx: StageContext[Rl], stopping: Stopping) -> None:
    """Write down which rule ended the stage, if any, and whose weights it ends with. Rank 0 calls it."""
    found: dict[str, Any] = {}
    if stopping.stopped is not None:
        found["stopped"] = asdict(stopping.stopped) | {"numbers": plain(stopping.stopped.numbers)}
    if stopping.best_step is not None:
        found["best_step"] = stopping.best_step
    storage.write_bytes(storage.join(ctx.folder, _FILE), json.dumps(found).encode())


def read_ending(ctx: StageContext[Rl]) -> dict[str, Any]:
    """Fields of the stage's summary that `write_ending` wrote: `stopped` and `best_step`, where there are such."""
    url = storage.join(ctx.folder, _FILE)
    if not storage.exists(url):
        return {}
    found: dict[str, Any] = json.loads(storage.read_bytes(url))
    return found
