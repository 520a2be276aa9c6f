"""The endpoint on a cluster, through the dashboard's Serve API: deploy it, wait for it, find it, take it down.

Ray Serve keeps what is deployed this way (KubeRay's RayService uses the same API) when the laptop disconnects: it
restarts replicas after a failure, and the whole application after a restart of a head that keeps its state.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from triptych.cluster.client import Client
from triptych.cluster.environment import Environment
from triptych.cluster.submit import Say, agree, check_shared
from triptych.errors import RunError, UserError
from triptych.recipe.serve import ServeConfig
from triptych.serve.run import APP, PLACE_TIMEOUT_S, is_running

_ROUTE = "/api/serve/applications/"
_PROXIES = ("proxy_location", "http_options")
_POLL_S = 0.5
_ANY = "0.0.0.0"  # noqa: S104 - inside the cluster; keys and network policies say who may ask


@dataclass(frozen=True)
class Endpoint:
    """The application `triptych` on a cluster, whoever put it there."""

    args: dict[str, Any]
    """Arguments of `triptych.serve:build`."""
    status: str
    message: str
    deployments: tuple[tuple[str, str], ...]
    """Status and message of each."""
    port: int
    nodes: tuple[str, ...]
    """Addresses, on the cluster's network, of the nodes that take requests."""

    @property
    def urls(self) -> list[str]:
        """Base URLs for clients on the cluster's network."""
        return [f"http://{node}:{self.port}/v1" for node in self.nodes]


def find_endpoint(client: Client) -> Endpoint | None:
    """The endpoint as it is now; None if there is none, or none that was deployed through this API."""
    found = client.request("GET", _ROUTE)
    app = found["applications"].get(APP)
    if app is None or app["status"] == "DELETING" or not app["deployed_app_config"]:
        return None
    proxies = [proxy for proxy in found["proxies"].values() if proxy["status"] == "HEALTHY"]
    return Endpoint(
        args=app["deployed_app_config"].get("args") or {},
        status=app["status"],
        message=app["message"],
        deployments=tuple((one["status"], one["message"]) for one in app["deployments"].values()),
        port=_port(found),
        nodes=tuple(sorted(proxy["node_ip"] for proxy in proxies)),
    )


def put(
    client: Client, config: ServeConfig, environment: Environment, say: Say, wait: Callable[[str], None], replace: bool
) -> Endpoint:
    """Deploy the endpoint, unless the same one is there already, and wait until it answers.

    Args:
        config: the serve config; `host` and `port` matter only if Ray Serve is not running there yet.
        say: shows a line about what is going on.
        wait: called again and again with what is being waited for.
        replace: change an endpoint that has other arguments.

    Raises:
        UserError: another endpoint is there and `replace` is not set, versions differ too much, or the config names
            a place that the cluster does not have. Nothing was changed then.
        RunError: the deployment failed. If there was no endpoint before, it was taken down again.
    """
    args = config.model_dump(mode="json", exclude_unset=True, exclude={"host", "port"})
    before = find_endpoint(client)
    if before is None or before.args != args or before.status == "DEPLOY_FAILED":
        _deploy(client, config, args, environment, say, before if not replace else None)
    try:
        return _until_it_answers(client, wait)
    except (UserError, RunError):
        if before is None:
            take_down(client)
        raise


def _deploy(
    client: Client, config: ServeConfig, args: dict[str, Any], environment: Environment, say: Say, kept: Endpoint | None
) -> None:
    """Check all that can be checked first, and send the application; an endpoint that is `kept` must be the same."""
    if kept is not None and kept.args != args:
        raise UserError(
            f"{client.address} has an endpoint with other arguments ({_differing(kept.args, args)}): --replace changes "
            "it (one that Helm installed: helm upgrade does), `triptych serve --stop` takes it down"
        )
    _check_places(config)
    running = client.request("GET", _ROUTE)
    proxies = _proxies(running, config)
    sqlite = _sqlite_file(config.registry)
    environment, facts = agree(client, environment, None if sqlite is None else str(sqlite.parent), say)
    check_shared("registry", str(sqlite), facts, "name a database (postgresql+psycopg://...)")
    say(f"starting the endpoint on {client.address}")
    app = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "triptych.serve:build",
        "args": args,
        "runtime_env": client.upload(environment.resolve()),
    }
    client.request("PUT", _ROUTE, proxies | {"applications": [*_others(running), app]})


def _until_it_answers(client: Client, wait: Callable[[str], None]) -> Endpoint:
    started = time.monotonic()
    while True:
        found = find_endpoint(client)
        if found is None:
            raise RunError(f"the endpoint was taken down from {client.address} meanwhile")
        waited = time.monotonic() - started
        if is_running(found.status, found.message, found.deployments, waited):
            if found.nodes:
                return found
            if waited > PLACE_TIMEOUT_S:
                raise RunError(f"no node of {client.address} takes requests: is port {found.port} free there?")
        wait("starting the engine")
        time.sleep(_POLL_S)


def take_down(client: Client) -> bool:
    """Stop the endpoint and wait for its end; other applications stay. False if there was none."""
    running = client.request("GET", _ROUTE)
    if APP not in running["applications"]:
        return False
    if len(running["applications"]) == 1:
        client.request("DELETE", _ROUTE)
    else:
        proxies = {name: running[name] for name in _PROXIES}
        client.request("PUT", _ROUTE, proxies | {"applications": _others(running)})
    while APP in client.request("GET", _ROUTE)["applications"]:
        time.sleep(_POLL_S)
    return True


def reachable(client: Client, port: int) -> str | None:
    """The endpoint's URL if it answers at the host of the dashboard's address; else None."""
    url = f"http://{urlsplit(client.address).hostname}:{port}"
    try:
        answer = requests.get(f"{url}/healthz", timeout=5, allow_redirects=False)
        return f"{url}/v1" if answer.json() == {"status": "ok"} else None
    except requests.RequestException:
        return None


def _proxies(running: dict[str, Any], config: ServeConfig) -> dict[str, Any]:
    """Settings of Serve's proxies, which cannot move while Serve runs. UserError if the config wants another port."""
    http = running.get("http_options")
    if http is None:
        host = config.host if "host" in config.model_fields_set else _ANY
        return {"proxy_location": "HeadOnly", "http_options": {"host": host, "port": config.port}}
    port = _port(running)
    if "port" in config.model_fields_set and config.port != port:
        raise UserError(
            f"port: Ray Serve listens on {port} there, and cannot move while it runs: --port {port}, or "
            "`triptych serve --stop` first"
        )
    return {name: running[name] for name in _PROXIES}


def _port(running: dict[str, Any]) -> int:
    """Port of Serve's proxies; Ray leaves out its default."""
    return int(running["http_options"].get("port", 8000))


def _others(running: dict[str, Any]) -> list[dict[str, Any]]:
    """Configs of the other applications, as they were deployed; a PUT without them would delete them."""
    apps = [app["deployed_app_config"] for name, app in running["applications"].items() if name != APP]
    return [app for app in apps if app is not None]


def _check_places(config: ServeConfig) -> None:
    """UserError if registry, artifacts or base are places of this machine only."""
    places = {"registry": config.registry, "artifacts": config.artifacts or "/"}
    sqlite = _sqlite_file(config.registry)
    if sqlite is not None:
        places["registry"] = str(sqlite)
    for name, place in places.items():
        if place.startswith(("memory:", "file:")) or not ("://" in place or Path(place).is_absolute()):
            raise UserError(
                f"{name}: {place!r} is a place of this machine; name the cluster's, as --set registry=sqlite:////mnt/"
                "shared/runs/registry.db (the registry of a run there) or postgresql+psycopg://..., and send adapters "
                "that are here with `triptych adapters register NAME FOLDER --address URL`"
            )
    base = config.model.base
    if not Path(base).is_absolute() and Path(base).expanduser().is_dir():
        raise UserError(f"model.base: {base!r} is a folder of this machine; name one that all nodes see, or a model")


def _sqlite_file(url: str) -> Path | None:
    """The file of a SQLite registry; None for a server's."""
    if "://" in url and not url.startswith("sqlite:"):
        return None
    return Path(url.removeprefix("sqlite:///"))


def _differing(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
