"""TensorBoard tracker: event files in `<stage>/tensorboard`."""

import json
import time
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from triptych import storage
from triptych.observe.trackers.tracked import MetricsRow, Tracked, numbers


class TensorBoard:
    """Tracker that writes event files; a resumed stage begins a new one, which supersedes the earlier ones."""

    def __init__(self, tracked: Tracked) -> None:
        folder = storage.join(tracked.folder, "tensorboard")
        self.last = 0
        # TensorBoard reads files in the order of their names, which by themselves tell whole seconds only.
        self._writer = SummaryWriter(folder, purge_step=0, filename_suffix=f".{time.time_ns()}")
        self._writer.add_text("recipe", f"```json\n{json.dumps(tracked.config, indent=2)}\n```", 0)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """See Tracker."""
        for row in rows:
            for name, value in numbers(row):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._writer.close()
