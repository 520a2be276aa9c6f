"""Weights & Biases tracker, configured by its own variables: WANDB_MODE, WANDB_PROJECT, WANDB_API_KEY and so on."""

import os
import uuid
from collections.abc import Sequence

import wandb

from triptych.observe.trackers.tracked import PROJECT, MetricsRow, Tracked, numbers, refused


class Wandb:
    """Tracker that writes to W&B. An offline run cannot be continued: each start leaves a whole one, with one id."""

    def __init__(self, tracked: Tracked) -> None:
        run_id = tracked.run_id("wandb") or uuid.uuid4().hex[:12]
        tracked.keep_run_id("wandb", run_id)
        here = "://" not in tracked.folder and "WANDB_DIR" not in os.environ
        with refused("wandb"):
            self._run = wandb.init(
                id=run_id,
                resume="allow",
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                group=tracked.run,
                name=tracked.name,
                config=tracked.config,
                dir=tracked.folder if here else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        self.last = max(self._run.step - 1, 0)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """See Tracker."""
        for row in rows:
            self._run.log(dict(numbers(row)), step=row["step"])

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=int(failed))
