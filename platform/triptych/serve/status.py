"""Whether an endpoint that was started answers yet, or never will."""

from collections.abc import Iterable

from triptych.errors import RunError, UserError

APP = "triptych"
"""Name of the Serve application."""
START_TIMEOUT_S = 900.0
PLACE_TIMEOUT_S = 120.0

_REFUSED = "triptych.errors.UserError: "


def is_running(status: str, message: str, deployments: Iterable[tuple[str, str]], waited: float) -> bool:
    """By Serve's word on the application, on each deployment (status and message), after so many seconds.

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
