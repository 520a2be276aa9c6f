"""Mean and standard deviation of all numbers so far."""

import math

from torch import Tensor


class RunningMoments:
    """Moments of numbers that come in batches (Chan et al. 1983, "Algorithms for computing the sample variance")."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the whole population; 0 before there are two different numbers."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def update(self, numbers: Tensor) -> None:
        """Take in a batch [N], which is not empty."""
        batch = numbers.double()
        mean, squares = batch.mean().item(), (batch - batch.mean()).square().sum().item()
        gap, count = mean - self.mean, self.count + len(batch)
        self._squares += squares + gap * gap * self.count * len(batch) / count
        self.mean += gap * len(batch) / count
        self.count = count

    def normalized(self, numbers: Tensor) -> Tensor:
        """Numbers less the mean, over the deviation where there is one."""
        return (numbers - self.mean) / (self.std or 1.0)

    def state_dict(self) -> dict[str, float]:
        """Everything that `load_state_dict` needs."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where a state was taken."""
        self.count, self.mean, self._squares = int(state["count"]), state["mean"], state["squares"]
