"""Early stopping once a held-out metric no longer gets better (Prechelt 1998)."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from triptych.errors import UserError
from triptych.recipe import EarlyStopping


@dataclass
class Stopper:
    """Counts evaluations without progress. Every rank decides alike: metrics are global."""

    config: EarlyStopping
    best: float | None = None
    """Best finite value of the metric; None before the first."""
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one, or since the start."""

    @property
    def stops(self) -> bool:
        return self.waited >= self.config.patience

    def judge(self, step: int, heldout: dict[str, float]) -> bool:
        """Record the held-out metrics at `step`; True if they are the best so far. NaN and infinity never are.

        Raises:
            UserError: the metric is none of them.
        """
        key = f"heldout_{self.config.metric}"
        if key not in heldout:
            allowed = ", ".join(sorted(name.removeprefix("heldout_") for name in heldout))
            raise UserError(f"early_stopping.metric: no metric {self.config.metric!r}; allowed here: {allowed}")
        return self.see(step, heldout[key])

    def see(self, step: int, value: float) -> bool:
        """Record a value at `step`; True if it is the best so far."""
        if not self._gains(value):
            self.waited += 1
            return False
        self.best, self.best_step, self.waited = value, step, 0
        return True

    def _gains(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        sign = 1.0 if self.config.mode == "max" else -1.0
        return self.best is None or sign * (value - self.best) > self.config.min_delta

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, read by `load_state`."""
        values = asdict(self)
        del values["config"]
        return values

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a best value that is no number, as earlier versions kept, is none."""
        if state["best"] is not None and not math.isfinite(state["best"]):
            state = state | {"best": None, "best_step": None}
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
