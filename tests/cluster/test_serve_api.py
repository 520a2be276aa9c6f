"""What is sent to a dashboard whose Serve runs already: nothing that takes down what is not ours."""

from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from triptych.cluster.client import Client
from triptych.cluster.endpoint import find_endpoint, put, take_down
from triptych.cluster.environment import Environment
from triptych.errors import UserError
from triptych.recipe.serve import ServeConfig

ARGS = {"model": {"base": "smollm2-135m-instruct"}, "registry": "sqlite:////mnt/runs/registry.db"}
LISTENS = {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 9000}}
OTHER = {"name": "other", "route_prefix": "/other", "import_path": "other:app"}
OURS = {"name": "triptych", "route_prefix": "/", "import_path": "triptych.serve:build", "args": ARGS}


class Unconnected(JobSubmissionClient):
    def __init__(self) -> None:
        pass


class Dashboard(Client):
    """Answers as Ray's does, and keeps what it is told."""

    def __init__(self, *apps: dict[str, Any]) -> None:
        super().__init__("http://there", Unconnected(), "2.60.0", uses_token=True)
        self.apps = {app["name"]: app for app in apps}
        self.told: list[tuple[str, dict[str, Any] | None]] = []

    def request(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        assert route == "/api/serve/applications/"
        if method != "GET":
            self.told.append((method, body))
            self.apps = {app["name"]: app for app in (body or {"applications": []})["applications"]}
        state = {"status": "RUNNING", "message": "", "deployments": {"gateway": {"status": "HEALTHY", "message": ""}}}
        proxies = {
            "a": {"status": "HEALTHY", "node_ip": "10.0.0.1"},
            "b": {"status": "DRAINING", "node_ip": "10.0.0.2"},
        }
        apps = {name: state | {"deployed_app_config": app} for name, app in self.apps.items()}
        return LISTENS | {"proxies": proxies, "applications": apps}


def config(**fields: Any) -> ServeConfig:
    return ServeConfig.model_validate(ARGS | fields)


def sent(dashboard: Dashboard, config: ServeConfig, *, replace: bool = False) -> Any:
    return put(dashboard, config, Environment(), print, print, replace)


def test_an_endpoint_as_asked_is_only_found() -> None:
    dashboard = Dashboard(OURS, OTHER)
    assert sent(dashboard, config()).urls == ["http://10.0.0.1:9000/v1"]
    assert dashboard.told == []


def test_another_one_is_kept_unless_it_is_to_be_replaced() -> None:
    dashboard = Dashboard(OURS)
    with pytest.raises(UserError, match=r"endpoint with other arguments \(adapters\): --replace"):
        sent(dashboard, config(adapters=["reviews"]))
    assert dashboard.told == []


def test_serve_cannot_move() -> None:
    running = Dashboard(OTHER)
    with pytest.raises(UserError, match="port: Ray Serve listens on 9000 there"):
        sent(running, config(port=8001))
    assert running.told == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"registry": "runs/registry.db"}, "registry: 'runs/registry.db' is a place of this machine"),
        ({"registry": "sqlite:///runs/registry.db"}, "registry: 'runs/registry.db' is a place of this machine"),
        ({"artifacts": "file:///home/me/artifacts"}, "artifacts: "),
        ({"model": {"base": "tests"}}, "model.base: 'tests' is a folder of this machine"),
    ],
)
def test_places_of_this_machine(fields: dict[str, Any], said: str) -> None:
    running = Dashboard(OTHER)
    with pytest.raises(UserError, match=said):
        sent(running, config(**fields))
    assert running.told == []


def test_others_stay_when_it_is_taken_down() -> None:
    dashboard = Dashboard(OTHER, OURS)
    assert take_down(dashboard)
    assert dashboard.told == [("PUT", LISTENS | {"applications": [OTHER]})]
    assert find_endpoint(dashboard) is None
    assert not take_down(dashboard)


def test_serve_ends_with_its_last_application() -> None:
    dashboard = Dashboard(OURS)
    assert take_down(dashboard)
    assert dashboard.told == [("DELETE", None)]
