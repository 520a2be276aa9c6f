"""TensorBoard's event files, in `<stage>/tensorboard`."""

import json
import time
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from triptych import storage
from triptych.observe.trackers.tracked import Row, Tracked, numbers


class TensorBoard:
    """See Tracker. A stage that goes on begins a new file, which takes back all earlier ones and has everything."""

    def __init__(self, tracked: Tracked) -> None:
        folder = storage.join(tracked.folder, "tensorboard")
        self.last = 0
        # Files are read in the order of their names, which else have whole seconds.
        self._writer = SummaryWriter(folder, purge_step=0, filename_suffix=f".{time.time_ns()}")
        self._writer.add_text("recipe", f"```json\n{json.dumps(tracked.config, indent=2)}\n```", 0)

    def write(self, rows: Sequence[Row]) -> None:
        """See Tracker."""
        for row in rows:
            for name, value in numbers(row):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._writer.close()
