"""Start and stop the endpoint from Python."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from triptych.errors import RunError, UserError
from triptych.plan import cluster
from triptych.recipe.serve import ServeConfig
from triptych.serve.preflight import check, check_port, check_room

APP = "triptych"
"""Name of the Serve application."""
START_TIMEOUT_S = 900.0
PLACE_TIMEOUT_S = 120.0

_REFUSED = "triptych.errors.UserError: "
_POLL_S = 0.5


def start(config: ServeConfig, progress: Callable[[str], None] = lambda _: None) -> str:
    """Serve on the connected Ray cluster in the background; returns the URL once the engine answers.

    `progress` is told what is being waited for. UserError: the port is in use, or the config asks for what cannot be
    served; nothing was started then. RunError: it was started and failed, and was taken down again.
    """
    check_port(config.host, config.port)
    progress("checking the base, the registry and the adapters")
    checked, base = check(config)
    progress("importing vLLM")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    from triptych.serve.app import application

    check_room(checked, cluster(ray.nodes()))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    target = serve.RunTarget(application(checked, base), name=APP, route_prefix="/")
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=config.port))
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        _wait(progress)
    except BaseException as error:
        stop()
        if isinstance(error, RayError | TimeoutError):
            raise RunError(f"Ray Serve did not start; is this machine busy? ({error})") from error
        raise
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104
    return f"http://{host}:{config.port}/v1"


def models() -> list[str]:
    """Names of the models that the running endpoint serves."""
    from ray import serve

    return [card["id"] for card in serve.get_app_handle(APP).cards.remote().result(timeout_s=60)]


def stop() -> None:
    """Take the endpoint down; the Ray cluster stays."""
    from ray import serve

    serve.shutdown()


@contextmanager
def serving(config: ServeConfig, progress: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Context manager that serves for the time of the block; gives the endpoint's URL."""
    url = start(config, progress)
    try:
        yield url
    finally:
        stop()


def is_running(status: str, message: str, deployments: Iterable[tuple[str, str]], waited: float) -> bool:
    """True once a started endpoint answers, by Ray Serve's status; False while it may still come up.

    Args:
        status: of the application.
        message: of the application.
        deployments: status and message of each deployment.
        waited: seconds since the start.

    Raises:
        UserError: the application refused its arguments.
        RunError: it failed, or a replica finds no place.
    """
    if status == "RUNNING":
        return True
    found = list(deployments)
    said = "; ".join(text for _, text in found if text) or message
    if _REFUSED in message:
        raise UserError(message.rpartition(_REFUSED)[2].partition("\n")[0])
    if status in ("DEPLOY_FAILED", "UNHEALTHY") or any(one == "UNHEALTHY" for one, _ in found):
        raise RunError(f"the endpoint did not start: {said}")
    if waited > START_TIMEOUT_S or (waited > PLACE_TIMEOUT_S and "to be scheduled" in said):
        raise RunError(f"the endpoint did not start within {waited:.0f} s: {said}")
    return False


def _wait(progress: Callable[[str], None]) -> None:
    """Wait until the application runs; RunError if it fails, or if a replica finds no place."""
    from ray import serve

    started = time.monotonic()
    while True:
        app = serve.status().applications[APP]
        deployments = [(one.status.value, one.message) for one in app.deployments.values()]
        if is_running(app.status.value, app.message, deployments, time.monotonic() - started):
            return
        progress("starting the engine")
        time.sleep(_POLL_S)
