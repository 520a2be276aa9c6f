"""Early stopping once a held-out metric no longer gets better (Prechelt 1998)."""

from dataclasses import asdict, dataclass
from typing import Any

from triptych.errors import UserError
from triptych.recipe import EarlyStopping


@dataclass
class Stopper:
    """Counts evaluations since the best one. Every rank decides alike: metrics are global."""

    config: EarlyStopping
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one."""

    @property
    def stops(self) -> bool:
        return self.waited >= self.config.patience

    def judge(self, step: int, heldout: dict[str, float]) -> bool:
        """Record the held-out metrics at `step`; True if they are the best so far.

        Raises:
            UserError: the metric is none of them.
        """
        key = f"heldout_{self.config.metric}"
        if key not in heldout:
            allowed = ", ".join(sorted(name.removeprefix("heldout_") for name in heldout))
            raise UserError(f"early_stopping.metric: no metric {self.config.metric!r}; allowed here: {allowed}")
        sign = 1.0 if self.config.mode == "max" else -1.0
        gain = None if self.best is None else sign * (heldout[key] - self.best)
        if gain is not None and not gain > self.config.min_delta:
            self.waited += 1
            return False
        self.best, self.best_step, self.waited = heldout[key], step, 0
        return True

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, read by `load_state`."""
        values = asdict(self)
        del values["config"]
        return values

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
