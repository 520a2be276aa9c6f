"""The way through Kubernetes, by a stand-in for kubectl: none runs here, and a real one is not lost when asked."""

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.kubernetes_stand_in import SERVICE, calls, head, know, stand_in
from triptych.cli import main
from triptych.cluster.forward import forwarded
from triptych.errors import UserError


@pytest.fixture
def dashboard() -> Iterator[int]:
    """Port of a server that answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a dashboard")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def kubectl(dashboard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what the stand-in reads and writes; it knows one cluster in the context `lab`."""
    for name, value in stand_in(tmp_path, dashboard).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_forward_that_is_lost_comes_back_at_the_same_place_and_ends_with_the_block(kubectl: Path) -> None:
    said: list[str] = []
    renewed = threading.Event()

    def hear(text: str) -> None:
        said.append(text)
        renewed.set()

    with forwarded("lab", "team", hear) as url:
        assert requests.get(url, timeout=30).text == "a dashboard"
        assert renewed.wait(30)
        while True:
            try:
                assert requests.get(url, timeout=30).text == "a dashboard"
                break
            except requests.ConnectionError:
                continue
    assert said == ["the port-forward ended (error: lost connection to pod), and is renewed"]
    asked, first, second = calls(kubectl)
    common = ["--context=lab", "--namespace=team"]
    assert asked["words"] == [*common, "get", "services", "--selector=ray.io/node-type=head", "--output=json"]
    port = url.rsplit(":", 1)[1]
    forward = [*common, "port-forward", "--address=127.0.0.1", "service/lab-head-svc"]
    assert (first["words"], second["words"]) == ([*forward, ":8265"], [*forward, f"{port}:8265"])
    assert not any(psutil.pid_exists(call["pid"]) for call in calls(kubectl))


def test_the_cluster_of_a_context_without_a_namespace(kubectl: Path) -> None:
    with forwarded("lab", None, print):
        assert all(call["words"][0] == "--context=lab" for call in calls(kubectl))
        assert not any(word.startswith("--namespace") for call in calls(kubectl) for word in call["words"])


def test_an_endpoints_cluster_is_meant_only_where_there_is_no_other(kubectl: Path) -> None:
    endpoint = [head("e-head-svc", "e-x1", **SERVICE), head("e-x1-head-svc", "e-x1")]
    for services, meant in (([*endpoint, head("c-head-svc", "c")], "c-head-svc"), (endpoint, "e-head-svc")):
        know(kubectl, *services)
        with forwarded("lab", None, print):
            assert f"service/{meant}" in calls(kubectl)[-1]["words"]


def test_several_clusters_are_all_named(kubectl: Path) -> None:
    know(kubectl, head("a-head-svc", "a"), head("b-head-svc", "b"))
    with (
        pytest.raises(UserError, match=r"several Ray clusters .*a-head-svc, b-head-svc"),
        forwarded("lab", None, print),
    ):
        pass


def test_no_cluster(kubectl: Path) -> None:
    know(kubectl, {"metadata": {"name": "other"}, "spec": {"ports": [{"port": 80}]}})
    with pytest.raises(UserError, match=r"no Ray cluster .--context=lab --namespace=x.*ray.io/node-type=head"):
        forwarded("lab", "x", print).__enter__()


def test_no_such_context(kubectl: Path) -> None:
    with pytest.raises(UserError, match='kubectl: context "moon" does not exist'):
        forwarded("moon", None, print).__enter__()


def test_a_forward_that_never_begins(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARGET", "none")
    (kubectl / "bin" / "kubectl").write_text(
        '#!/bin/sh\ncase "$*" in *get*) cat "$SERVICES";; *) echo "error: forbidden" >&2; exit 1;; esac\n'
    )
    with pytest.raises(UserError, match="kubectl port-forward: error: forbidden"):
        forwarded("lab", None, print).__enter__()


def test_no_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="kubectl is not on the PATH"):
        forwarded("lab", None, print).__enter__()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--namespace", "x"), "--namespace goes with --kube-context"),
        (("--kube-context", "lab", "--address", "http://127.0.0.1:1"), "give one of them"),
        (("--kube-context", "moon"), 'context "moon" does not exist'),
    ],
)
def test_options_that_say_no_cluster(
    kubectl: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    for verb in (("runs", "list"), ("adapters", "list"), ("keys", "create", "--label", "x"), ("doctor",)):
        monkeypatch.setattr(sys, "argv", ["triptych", *verb, *words])
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        assert said in err
