"""Dynamic loss scaling, so that small gradients survive float16 (Micikevicius et al. 2017, arXiv 1710.03740)."""

GROWTH_INTERVAL = 1000
"""Finite steps after which the scale doubles."""


class LossScale:
    """A power of two that the loss is multiplied by; 1 where the precision needs none."""

    def __init__(self, *, enabled: bool) -> None:
        self.value = 65536.0 if enabled else 1.0
        self._enabled = enabled
        self._finite_steps = 0

    def grow(self) -> None:
        """Count a finite step; double the scale after enough of them."""
        self._finite_steps += 1
        if self._enabled and self._finite_steps % GROWTH_INTERVAL == 0:
            self.value *= 2

    def shrink(self) -> None:
        """Halve the scale after gradients that were not finite."""
        self._finite_steps = 0
        if self._enabled:
            self.value = max(self.value / 2, 1.0)
