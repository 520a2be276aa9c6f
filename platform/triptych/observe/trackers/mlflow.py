"""MLflow tracker: the server at MLFLOW_TRACKING_URI or, if that is not set, the database `<runs>/mlflow.db`."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from triptych.errors import UserError
from triptych.observe.trackers.tracked import PROJECT, MetricsRow, Tracked, numbers, refused

_PARAMETER_LENGTH = 6000
"""Characters of a parameter that MLflow keeps."""
_PARAMETERS = 100
"""Largest number of parameters in one request."""
_MISSING = "RESOURCE_DOES_NOT_EXIST"


class MLflow:
    """Tracker that writes to MLflow; the metric `step` tells which rows are there."""

    def __init__(self, tracked: Tracked) -> None:
        with refused("mlflow"):
            self._client = client(tracked.folder.rsplit("/", 3)[0])
            known = tracked.run_id("mlflow")
            self._run = known if known and self._has(known) else self._begin(tracked)
            self._client.update_run(self._run, status="RUNNING")
            steps = self._client.get_metric_history(self._run, "step")
        self.last = max((metric.step for metric in steps), default=0)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """See Tracker."""
        now = int(time.time() * 1000)
        for row in rows:
            step = row["step"]
            values = [*numbers(row), ("step", float(step))]
            self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values])
            self.last = step

    def close(self, *, failed: bool) -> None:
        """See Tracker."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _has(self, run_id: str) -> bool:
        """True if the server has the run, which an earlier start of the stage made."""
        try:
            self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == _MISSING:
                return False
            raise
        return True

    def _begin(self, tracked: Tracked) -> str:
        run_id: str = self._client.create_run(experiment(self._client), run_name=tracked.name).info.run_id
        parameters = [Param(name, value[:_PARAMETER_LENGTH]) for name, value in _flat(tracked.config)]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + _PARAMETERS])
        tracked.keep_run_id("mlflow", run_id)
        return run_id


def client(runs: str) -> MlflowClient:
    """Client of the server, or of the database in the folder `runs`, which is made if absent."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # rows wait and are sent again anyhow
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and "://" in runs:
        raise UserError(f"MLFLOW_TRACKING_URI is not set, and {runs} cannot hold MLflow's database")
    if not uri:
        Path(runs).mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri or f"sqlite:///{runs}/mlflow.db")


def experiment(of: MlflowClient) -> str:
    """Id of the experiment that runs belong to, which is made if absent."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = of.get_experiment_by_name(name)
    experiment_id: str = of.create_experiment(name) if found is None else found.experiment_id
    return experiment_id


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield `a.b.c` and the text of each value of nested mappings."""
    if not isinstance(value, Mapping):
        yield path, str(value)
        return
    for key, item in value.items():
        yield from _flat(item, f"{path}.{key}" if path else str(key))
