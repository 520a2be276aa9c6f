"""What is refused before anything is sent: addresses, tokens, versions, places."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from triptych import __version__
from triptych.cluster.client import Client, connect
from triptych.cluster.environment import read_runtime_env
from triptych.cluster.remote_call import recipe_format
from triptych.cluster.submit import check_storage, check_versions
from triptych.credentials import sends_in_clear
from triptych.errors import UserError
from triptych.recipe import load_recipe

SECRET = "s3cret"


@pytest.fixture
def asking() -> Iterator[str]:
    """An address that asks for a token, and then answers nothing that Ray would."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"authentication_mode": "token"}' if self.path.endswith("_mode") else b"<html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://127.0.0.1:10001", "the cluster's dashboard"),
        ("file:///etc/passwd", "the cluster's dashboard"),
        ("http://", "the cluster's dashboard"),
        (f"http://me:{SECRET}@127.0.0.1:8265", "no user or password"),
        ("127.0.0.1:1", "nothing answers at http://127.0.0.1:1 (Connection refused)"),
    ],
)
def test_an_address_that_is_none(address: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        connect(address)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b" \n", f"{SECRET} {SECRET}".encode(), b"\xff\xfe", f"{SECRET}\nx".encode()])
def test_a_file_that_holds_no_token(
    asking: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH") as refused:
        connect(asking)
    assert SECRET not in str(refused.value)


def test_what_answers_is_no_dashboard(asking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    with pytest.raises(UserError, match="is no Ray cluster's dashboard") as refused:
        connect(asking)
    assert SECRET not in str(refused.value)


def test_a_token_in_the_clear_is_known() -> None:
    assert sends_in_clear("http://ray.example.org:8265")
    assert not sends_in_clear("https://ray.example.org")
    assert not sends_in_clear("http://127.0.0.1:8265")


@pytest.mark.slow
def test_versions_that_differ_are_both_named() -> None:
    class Unconnected(JobSubmissionClient):
        def __init__(self) -> None:
            pass

    client = Client("http://there", Unconnected(), "2.60.0", uses_token=True)
    said: list[str] = []
    check_versions(client, {"triptych": __version__, "format": recipe_format()}, said.append)
    assert said == []
    check_versions(client, {"triptych": "0.0.9", "format": recipe_format()}, said.append)
    [both] = said
    assert "0.0.9" in both
    assert __version__ in both
    with pytest.raises(UserError, match=rf"http://there has triptych 0\.0\.9, this machine {__version__}, and their"):
        check_versions(client, {"triptych": "0.0.9", "format": "another"}, said.append)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("storage.runs=runs", "storage.runs: 'runs'"),
        ("storage.runs=file:///home/me/runs", "storage.runs"),
        ("storage.runs=memory://runs", "storage.runs"),
        ("storage.registry=sqlite:///runs/registry.db", "storage.registry"),
        ("storage.artifacts=artifacts", "storage.artifacts"),
    ],
)
def test_a_place_of_this_machine_is_none_of_the_cluster(three_stages: Path, override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_storage(load_recipe(three_stages, ["storage.runs=s3://bucket/runs", override]))


def test_places_that_all_nodes_reach(three_stages: Path) -> None:
    for runs in ("s3://bucket/runs", "/mnt/shared/runs"):
        check_storage(load_recipe(three_stages, [f"storage.runs={runs}"]))
    postgres = ["storage.runs=s3://bucket/runs", "storage.registry=postgresql://registry/triptych"]
    check_storage(load_recipe(three_stages, postgres))


@pytest.mark.parametrize(("text", "said"), [("working_dir: .", "working_dir"), ("- pip", "mapping"), ("a: [", "read")])
def test_a_runtime_environment_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_runtime_env(path)
