"""What a tracker is told, and what every tracker does alike."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from triptych import storage
from triptych.errors import UserError

Row = Mapping[str, Any]

PROJECT = "triptych"
"""MLflow experiment and W&B project where MLFLOW_EXPERIMENT_NAME and WANDB_PROJECT name no other."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_FILE = "trackers.json"


@dataclass(frozen=True)
class Tracked:
    """One stage of a run."""

    folder: str
    """URL of the stage's folder."""
    run: str
    stage: str
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    rows: Sequence[Row]
    """What the metrics log has, up to the checkpoint that the stage goes on from."""

    @property
    def name(self) -> str:
        return f"{self.run}-{self.stage}"

    @property
    def config(self) -> dict[str, Any]:
        """The recipe without the credentials of its URLs."""
        plain: dict[str, Any] = json.loads(redacted(json.dumps(dict(self.recipe))))
        return plain | {"stage": self.stage}

    def run_id(self, tracker: str) -> str | None:
        """The id that the tracker gave this stage when it was first told of it."""
        return self._ids().get(tracker)

    def keep_run_id(self, tracker: str, run_id: str) -> None:
        """Remember it in the stage's folder."""
        storage.write_bytes(storage.join(self.folder, _FILE), json.dumps(self._ids() | {tracker: run_id}).encode())

    def _ids(self) -> dict[str, str]:
        url = storage.join(self.folder, _FILE)
        return json.loads(storage.read_bytes(url)) if storage.exists(url) else {}


class Tracker(Protocol):
    """Raises as it likes: whoever calls it copes, once it is made."""

    last: int
    """Step of the newest row that it has; 0 before any."""

    def write(self, rows: Sequence[Row]) -> None:
        """Rows by step."""

    def close(self, *, failed: bool) -> None:
        """The stage has ended."""


@contextmanager
def refused(tracker: str) -> Iterator[None]:
    """What a tracker's library raises while it starts is the user's to set right."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        raise UserError(f"trackers: {tracker} refused: {redacted(error)}") from None


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Every number of a row but its step; those of a list as `key/0`, `key/1` and so on."""
    for key, value in row.items():
        items = [(f"{key}/{place}", item) for place, item in enumerate(value)] if isinstance(value, list) else []
        for name, item in items or [(key, value)]:
            if name != "step" and isinstance(item, int | float):
                yield name, float(item)


def redacted(text: object) -> str:
    """Without the user and password of any URL."""
    return _CREDENTIALS.sub("***", str(text))
