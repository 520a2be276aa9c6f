"""Where the time of a step goes."""

import time
from collections import defaultdict


class Clock:
    """Seconds by part, each lap from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now
