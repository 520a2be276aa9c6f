"""Interface of trackers, the stage that they track, and helpers that they share."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from triptych import storage
from triptych.errors import UserError

MetricsRow = Mapping[str, Any]

PROJECT = "triptych"
"""MLflow experiment and W&B project where MLFLOW_EXPERIMENT_NAME and WANDB_PROJECT name no other."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_FILE = "trackers.json"


@dataclass(frozen=True)
class Tracked:
    """Stage of a run, as trackers are given it."""

    folder: str
    """URL of the stage's folder."""
    run: str
    stage: str
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    rows: Sequence[MetricsRow]
    """Rows of the metrics log up to the checkpoint that the stage continues from."""

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"

    @property
    def config(self) -> dict[str, Any]:
        """The recipe without the credentials of its URLs."""
        plain: dict[str, Any] = json.loads(redacted(json.dumps(dict(self.recipe))))
        return plain | {"stage": self.stage}

    def run_id(self, tracker: str) -> str | None:
        """Id of this stage's run in a tracker; None before its first start."""
        return self._ids().get(tracker)

    def keep_run_id(self, tracker: str, run_id: str) -> None:
        """Write the id of this stage's run in a tracker to the stage's folder."""
        storage.write_bytes(storage.join(self.folder, _FILE), json.dumps(self._ids() | {tracker: run_id}).encode())

    def _ids(self) -> dict[str, str]:
        url = storage.join(self.folder, _FILE)
        return json.loads(storage.read_bytes(url)) if storage.exists(url) else {}


class Tracker(Protocol):
    """Interface of a tracker. Errors of its methods are logged and its rows sent again; its constructor may raise."""

    last: int
    """Step of the newest row that it has; 0 before any."""

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Write rows, in the order of their steps."""

    def close(self, *, failed: bool) -> None:
        """End the stage's run, as failed or finished."""


@contextmanager
def refused(tracker: str) -> Iterator[None]:
    """Turn errors of a tracker's library at its start into a UserError, since the user has to fix them."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        raise UserError(f"trackers: {tracker} refused: {redacted(error)}") from None


def numbers(row: MetricsRow) -> Iterator[tuple[str, float]]:
    """Names and values of the numbers of a row except its step; those of a list as `key/0`, `key/1` and so on."""
    for key, value in row.items():
        items = [(f"{key}/{place}", item) for place, item in enumerate(value)] if isinstance(value, list) else []
        for name, item in items or [(key, value)]:
            if name != "step" and isinstance(item, int | float):
                yield name, float(item)


def redacted(text: object) -> str:
    """Text with the user and password of every URL replaced by `***`."""
    return _CREDENTIALS.sub("***", str(text))
