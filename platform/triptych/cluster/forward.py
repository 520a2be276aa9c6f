"""Port-forward, by kubectl, to the dashboard of a Ray cluster inside Kubernetes, renewed when it drops."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triptych.errors import UserError

_DASHBOARD = 8265
_HEADS = "ray.io/node-type=head"
"""Label that KubeRay gives to the services of heads."""
_TIMEOUT_S = 30.0
_PAUSE_S = 0.5
_LISTENING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@contextmanager
def forwarded(context: str, namespace: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """The URL, on this machine, of the dashboard of the cluster in a kubectl context, for the time of the block.

    Args:
        context: of kubectl.
        namespace: None for the context's own.
        say: shows a line when the port-forward is renewed.

    Raises:
        UserError: there is no kubectl, no such context, no cluster, more than one, or it cannot be reached.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UserError("--kube-context: kubectl is not on the PATH; install it, or give --address")
    words = [kubectl, f"--context={context}", *([] if namespace is None else [f"--namespace={namespace}"])]
    service = _head([*words, "get", "services", f"--selector={_HEADS}", "--output=json"])
    forward = _Forward([*words, "port-forward", "--address=127.0.0.1", f"service/{service}"], say)
    try:
        yield f"http://127.0.0.1:{forward.port}"
    finally:
        forward.close()


class _Forward:
    """kubectl as a child process, restarted on the same local port whenever it ends."""

    def __init__(self, words: list[str], say: Callable[[str], None]) -> None:
        self._words = words
        self._say = say
        self._closed = threading.Event()
        self._changing = threading.Lock()
        self._child, self.port = self._start("")
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """End kubectl."""
        with self._changing:
            self._closed.set()
            self._child.terminate()
        self._keeper.join()

    def _start(self, port: str) -> tuple["subprocess.Popen[str]", str]:
        """Start kubectl; the child and its port once it listens, or a UserError with its last line of stderr."""
        child = subprocess.Popen(
            [*self._words, f"{port}:{_DASHBOARD}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to answer
        )
        assert child.stdout is not None
        if found := _LISTENING.match(child.stdout.readline()):
            return child, found[1]
        raise UserError(f"kubectl port-forward: {_last_words(child)}")

    def _keep(self) -> None:
        while True:
            said = _last_words(self._child)
            if self._closed.is_set():
                return
            self._say(f"the port-forward ended ({said}), and is renewed")
            while not self._renew():
                if self._closed.wait(_PAUSE_S):
                    return

    def _renew(self) -> bool:
        """Start kubectl again; False while there is nothing to reach, as while the head moves to another node."""
        try:
            child, _ = self._start(self.port)
        except UserError:
            return False
        with self._changing:
            self._child = child
            if self._closed.is_set():
                child.terminate()
        return True


def _last_words(child: "subprocess.Popen[str]") -> str:
    """Wait for a child's end; its last line of stderr."""
    _, said = child.communicate()
    return (said.strip().splitlines() or [f"exit code {child.returncode}"])[-1]


def _head(words: list[str]) -> str:
    """Name of the service of the one head; clusters of RayServices count only if there is no other cluster."""
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"kubectl gets no answer from Kubernetes within {_TIMEOUT_S:.0f} s") from None
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
        raise UserError(f"kubectl: {said[-1].removeprefix('error: ')}")
    services = [one for one in json.loads(asked.stdout)["items"] if _has_dashboard(one)]
    endpoints = [one for one in services if _labels(one).get("ray.io/originated-from-crd") == "RayService"]
    serving = {_cluster(one) for one in endpoints}
    clusters = [one for one in services if one not in endpoints and _cluster(one) not in serving]
    names = sorted(str(one["metadata"]["name"]) for one in clusters or endpoints)
    if len(names) == 1:
        return names[0]
    where = " ".join(word for word in words if word.startswith(("--context", "--namespace")))
    if not names:
        raise UserError(f"there is no Ray cluster ({where}): no service with label {_HEADS}; is it the --namespace?")
    raise UserError(
        f"there are several Ray clusters ({where}): run `kubectl {where} port-forward service/NAME {_DASHBOARD}` for "
        f"one of {', '.join(names)}, and give --address http://127.0.0.1:{_DASHBOARD}"
    )


def _labels(service: dict[str, Any]) -> dict[str, str]:
    return service["metadata"].get("labels") or {}


def _cluster(service: dict[str, Any]) -> str | None:
    return (service["spec"].get("selector") or {}).get("ray.io/cluster")


def _has_dashboard(service: dict[str, Any]) -> bool:
    return any(port["port"] == _DASHBOARD for port in service["spec"].get("ports") or ())
