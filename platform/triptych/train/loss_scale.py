"""Dynamic loss scaling, so that small gradients survive float16 (Micikevicius et al. 2017, arXiv 1710.03740)."""

from collections.abc import Sequence

GROWTH_INTERVAL = 1000
"""Finite steps after which the scale doubles."""


class LossScale:
    """A power of two that the loss is multiplied by; 1 where the precision needs none."""

    def __init__(self, *, enabled: bool) -> None:
        self.value = 65536.0 if enabled else 1.0
        self.finite_steps = 0
        """Finite steps since the scale was last lowered."""
        self._enabled = enabled

    def grow(self) -> None:
        """Count a finite step; double the scale after enough of them."""
        self.finite_steps += 1
        if self._enabled and self.finite_steps % GROWTH_INTERVAL == 0:
            self.value *= 2

    def shrink(self) -> bool:
        """Halve the scale after gradients that were not finite, down to 1; False where it is 1 already."""
        self.finite_steps = 0
        lowered = self.value > 1.0
        self.value = max(self.value / 2, 1.0)
        return lowered

    def state(self) -> list[float]:
        """State for a checkpoint, read by `load_state`."""
        return [self.value, float(self.finite_steps)]

    def load_state(self, state: Sequence[float]) -> None:
        """Go on from `state`; earlier versions kept the value alone."""
        self.value = state[0]
        self.finite_steps = int(state[1]) if len(state) > 1 else 0
