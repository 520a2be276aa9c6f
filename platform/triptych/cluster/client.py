"""Client of a Ray cluster's jobs API: authentication, jobs, and what they print."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from triptych import credentials
from triptych.errors import RunError, UserError

TIMEOUT_S = 60.0
"""Seconds that one request may take."""
RENEW_S = 10.0
"""Seconds for which a GET is repeated while nothing listens, as during the renewal of a port-forward."""
RECONNECT_S = 120.0
"""Seconds for which `follow` tries to reconnect after a connection was lost."""

_POLL_S = 0.3
_TOKEN = "RAY_AUTH_TOKEN"
_RUNNING = (JobStatus.PENDING, JobStatus.RUNNING)
_HOW = credentials.how_to_give(_TOKEN)


class Client:
    """The cluster at one address; `connect` makes it.

    All methods raise RunError if the cluster is lost, or its jobs API fails.
    """

    def __init__(self, address: str, jobs: JobSubmissionClient, ray_version: str, uses_token: bool) -> None:
        self.address = address
        self.ray_version = ray_version
        self.uses_token = uses_token
        self._jobs = jobs

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Start a job under a new name; UserError if someone else has just started one of that name."""
        with _explained(self.address):
            try:
                self._jobs.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                raise UserError(f"{job} was submitted to {self.address} by someone else this very moment") from None

    def upload(self, runtime_env: dict[str, Any]) -> dict[str, Any]:
        """Upload the code of a runtime environment, for a use other than a job; the environment with its URLs there."""
        with _explained(self.address):
            sent = dict(runtime_env)
            self._jobs._upload_py_modules_if_needed(sent)  # `submit_job` does it by itself, and nothing else does
            return sent

    def request(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to another API of the dashboard; its JSON answer, None if it is empty."""
        with _explained(self.address):
            answer = self._jobs._do_request(method, route, json_data=body)
            if not answer.ok:
                self._jobs._raise_error(answer)
            return answer.json() if answer.content else None

    def jobs(self) -> list[JobDetails]:
        """All jobs that the cluster remembers, the oldest first."""
        with _explained(self.address):
            found = [job for job in self._jobs.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def state(self, job: str) -> JobDetails:
        """Details of a job, with its status."""
        with _explained(self.address):
            return self._jobs.get_job_info(job)

    def wait(self, job: str) -> JobDetails:
        """Wait for a job's end."""
        while is_running(details := self.state(job)):
            time.sleep(_POLL_S)
        return details

    def output(self, job: str) -> str:
        """All that a job printed."""
        with _explained(self.address):
            return self._jobs.get_job_logs(job)

    def stop(self, job: str) -> JobDetails:
        """Stop a job and wait for its end."""
        with _explained(self.address):
            self._jobs.stop_job(job)
        return self.wait(job)

    def forget(self, job: str) -> None:
        """Remove a job that ended from the list."""
        with _explained(self.address):
            self._jobs.delete_job(job)

    def follow(self, job: str, show: Callable[[str], None]) -> JobDetails:
        """Pass each line of a job's output to `show`, from its first to its end; a lost connection is renewed."""
        shown, lost_at = 0, None
        while True:
            try:
                before = shown
                shown = asyncio.run(self._tail(job, shown, show))
                details = self.state(job)
                if not is_running(details):
                    return details
                lost_at = None if shown > before else lost_at
            except (RunError, RuntimeError, OSError, aiohttp.ClientError) as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_S:
                    raise RunError(
                        f"{self.address} is lost since {RECONNECT_S:.0f} s; {job} may go on there"
                    ) from error
            time.sleep(1)

    async def _tail(self, job: str, skip: int, show: Callable[[str], None]) -> int:
        """Show the lines after the first `skip` until the connection ends; the number of lines seen by then."""
        seen, rest = 0, ""
        async for text in self._jobs.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                seen += 1
                if seen > skip:
                    show(line)
        return max(seen, skip)


def connect(address: str) -> Client:
    """Connect to the cluster whose dashboard is at `address`.

    A token is read from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray, and sent only to a cluster that wants one.

    Raises:
        UserError: nothing answers, what answers is no Ray cluster, or it refuses the token.
    """
    url = _url(address)
    mode = _authentication(url)
    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
    headers = {}
    if mode == "token":
        token = credentials.read(_TOKEN, "the cluster asks for a token", Path.home() / ".ray" / "auth_token")
        headers["Authorization"] = f"Bearer {token}"
    with _explained(url, UserError):
        client = _JobsClient(url, headers=headers)
        answer = client._do_request("GET", "/api/version")
        return Client(url, client, str(answer.json()["ray_version"]), mode == "token")


def is_running(job: JobDetails) -> bool:
    """True until a job has ended."""
    return job.status in _RUNNING


class _JobsClient(JobSubmissionClient):
    """Ray's client with a timeout, and with repeated GETs while a port-forward is being renewed."""

    def _do_request(self, method: str, *args: Any, **kwargs: Any) -> requests.Response:
        deadline = time.monotonic() + RENEW_S
        while True:
            try:
                return super()._do_request(method, *args, timeout=TIMEOUT_S, **kwargs)
            except requests.exceptions.ConnectionError:
                if method != "GET" or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}: allowed is the URL of the cluster's dashboard, as http://127.0.0.1:8265 behind a "
            "port-forward, or https://ray.example.org"
        )
    if parts.username or parts.password:
        raise UserError(f"--address: no user or password in the URL; for a token {_HOW}")
    return url.rstrip("/")


def _authentication(url: str) -> str:
    """Authentication mode of the cluster, `token` or `disabled`. Ray before 2.52 has no tokens, and no such route."""
    with _explained(url, UserError):
        answer = requests.get(f"{url}/api/authentication_mode", timeout=10, allow_redirects=False)
        if answer.status_code == 404:
            return "disabled"
        return str(answer.json()["authentication_mode"])


@contextmanager
def _explained(address: str, kind: type[Exception] = RunError) -> Iterator[None]:
    """Turn errors of the connection into one-line errors of class `kind`; a refused token into a UserError."""
    try:
        yield
    except AuthenticationError:
        raise UserError(f"{address} refused the token: it is wrong, or has expired; {_HOW}") from None
    except requests.exceptions.Timeout:
        raise kind(f"{address} does not answer in time") from None
    except requests.exceptions.JSONDecodeError:
        raise kind(f"{address} is no Ray cluster's dashboard: its answer is not Ray's") from None
    except KeyError as error:
        raise kind(f"{address} is no Ray cluster's dashboard: its answer has no {error}") from None
    except requests.exceptions.ConnectionError as error:
        raise kind(f"nothing answers at {address} ({_reason(error)}); is it the dashboard, and reachable?") from None
    except (requests.exceptions.RequestException, RuntimeError, ConnectionError) as error:
        first = str(error).strip().partition("\n")[0]
        raise kind(f"{address}: {first}") from None


def _reason(error: BaseException) -> str:
    """Text of an error's innermost cause, such as `Connection refused`."""
    inner: Any = error
    while inner is not None:
        last = inner
        found = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        inner = (
            found
            if isinstance(found, BaseException)
            else next(iter(a for a in inner.args if isinstance(a, BaseException)), None)
        )
    return getattr(last, "strerror", None) or type(last).__name__
