"""The registry through a gateway's admin routes: a real server, `RemoteRegistry` and the verbs as its clients."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from triptych.cli import main
from triptych.errors import RunError, UserError
from triptych.models.base import fingerprint
from triptych.registry import Registry, UnknownAdapter
from triptych.registry.remote import RemoteRegistry
from triptych.serve.capabilities import VLLM
from triptych.serve.gateway import Gateway


class NoEngine:
    """Stands where a deployment handle does, and is never asked."""

    def options(self, *, stream: bool) -> "NoEngine":
        assert stream
        return self


@pytest.fixture
def endpoint(registry: Registry, tiny_model_dir: Path) -> Iterator[str]:
    """URL of a gateway whose clients need no key to ask the models."""
    config = {"model": {"base": str(tiny_model_dir)}, "registry": registry.url, "require_key": False}
    engines: Any = {VLLM: NoEngine()}
    gateway = Gateway(engines, config=config, base_fingerprint=fingerprint(tiny_model_dir))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(gateway.app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def admin_key(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """In a file that the environment names."""
    key = registry.create_key("operator", admin=True)
    (tmp_path / "key").write_text(f"{key}\n")
    monkeypatch.delenv("TRIPTYCH_KEY", raising=False)
    monkeypatch.setenv("TRIPTYCH_KEY_PATH", str(tmp_path / "key"))
    return key


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["triptych", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run_command


def test_what_is_read_there_is_what_the_database_says(registry: Registry, endpoint: str, admin_key: str) -> None:
    registry.alias("opinion", "canary", 1)
    remote = Registry(f"{endpoint}/v1")
    assert isinstance(remote, RemoteRegistry)
    assert remote.adapters() == registry.adapters()
    assert remote.versions("opinion") == registry.versions("opinion")
    assert remote.get("opinion@canary") == registry.get("opinion@1")
    assert remote.facts("opinion@canary") == registry.facts("opinion@1")
    assert remote.users("opinion@1") == ["opinion@canary"]
    assert remote.ancestors("opinion") == remote.descendants("opinion") == []
    assert [key.label for key in remote.keys()] == ["operator"]  # noqa: SIM118


def test_what_is_changed_there_is_changed(
    registry: Registry, endpoint: str, admin_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "ray.serve")
    remote = Registry(endpoint)
    remote.alias("opinion", "canary", 1)
    remote.alias("opinion", "canary", 2)
    assert remote.rollback("opinion", "canary") == registry.get("opinion@1") == registry.get("opinion@canary")
    with pytest.raises(UserError, match="opinion@1 is used by opinion@canary"):
        remote.remove("opinion@1")
    remote.drop_alias("opinion", "canary")
    assert remote.remove("opinion@1").ref == "opinion@1"
    assert [version.ref for version in registry.versions("opinion")] == ["opinion@2"]
    operator = registry.keys()[0].id
    changes = [record.getMessage() for record in caplog.records if record.getMessage().startswith("admin: ")]
    assert changes[0] == f"admin: PUT /admin/adapters/opinion/aliases/canary by key {operator} (operator): done"
    assert f"admin: DELETE /admin/versions/opinion@1 by key {operator} (operator): refused" in changes
    assert len(changes) == 6
    assert admin_key not in caplog.text


def test_the_endpoint_never_sees_a_key_before_it_is_used(registry: Registry, endpoint: str, admin_key: str) -> None:
    remote = Registry(endpoint)
    key = remote.create_key("laptop")
    found = registry.check_key(key)
    assert found is not None
    assert (found.label, found.admin) == ("laptop", False)
    remote.revoke_key(found.id)
    assert registry.check_key(key) is None


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer sk-wrong", "Basic abc"])
def test_no_admin_route_without_a_key(endpoint: str, header: str | None) -> None:
    """Although this endpoint's models may be asked by anybody."""
    headers = {} if header is None else {"Authorization": header}
    for method, route in (("GET", "/keys"), ("POST", "/keys"), ("GET", "/adapters"), ("DELETE", "/versions/opinion@1")):
        answer = httpx.request(method, f"{endpoint}/admin{route}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{endpoint}/v1/models").status_code == 200


def test_a_key_that_may_only_ask(registry: Registry, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = registry.create_key("client")
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{endpoint}/admin/keys", content=b"not json", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_an_admin_key")
    monkeypatch.setenv("TRIPTYCH_KEY", key)
    with pytest.raises(UserError, match=r"This needs an admin key.* TRIPTYCH_KEY_PATH") as refused:
        Registry(endpoint).alias("opinion", "canary", 1)
    assert key not in str(refused.value)
    assert registry.adapters()[0].aliases == {}


@pytest.mark.parametrize(
    "path", ["//admin/keys", "/v1/../admin/keys", "/%61dmin/keys", "/admin/keys/", "/admin/../admin/keys"]
)
def test_no_way_around_the_guard(endpoint: str, path: str) -> None:
    port = int(endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = int(raw.makefile("rb").readline().split()[1])
    assert status in (307, 401, 404)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/adapters/nobody", None, 404),
        ("GET", "/versions/opinion@9", None, 404),
        ("PUT", "/adapters/opinion/aliases/3", {"version": 1}, 400),
        ("PUT", "/adapters/opinion/aliases/x", {"version": "one"}, 400),
        ("PUT", "/adapters/opinion/aliases/x", {"version": 1, "more": 1}, 400),
        ("POST", "/keys", {"sha256": "short", "label": "x"}, 400),
        ("POST", "/keys", {"sha256": "0" * 64, "label": "\n"}, 400),
        ("DELETE", "/keys/nobody", None, 400),
    ],
)
def test_a_wrong_request(endpoint: str, admin_key: str, method: str, path: str, body: Any, status: int) -> None:
    headers = {"Authorization": f"Bearer {admin_key}"}
    answer = httpx.request(method, f"{endpoint}/admin{path}", headers=headers, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_client_says_what_is_wrong(endpoint: str, admin_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Registry(endpoint)
    with pytest.raises(UnknownAdapter, match="there is no adapter 'opinions'; did you mean opinion"):
        remote.get("opinions")
    with pytest.raises(UserError, match="files do not travel through the endpoint"):
        remote.export("opinion", "x")
    with pytest.raises(RunError, match="does not answer"):
        Registry("http://127.0.0.1:1").adapters()
    monkeypatch.delenv("TRIPTYCH_KEY_PATH")
    with pytest.raises(UserError, match="asks for an admin key; set TRIPTYCH_KEY_PATH"):
        Registry(endpoint)


def test_the_verbs_by_key(
    registry: Registry,
    endpoint: str,
    admin_key: str,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIPTYCH_ADDRESS", "http://127.0.0.1:1")  # an endpoint is reached from here
    monkeypatch.setenv("TRIPTYCH_REGISTRY", endpoint)
    assert run("adapters", "alias", "opinion@1", "live")[1] == "opinion@live -> opinion@1\n"
    assert "live=1" in run("adapters", "list")[1]
    code, key, _ = run("keys", "create", "--label", "ada")
    assert code == 0
    assert registry.check_key(key.strip()) is not None
    ids = {one.label: one.id for one in registry.keys()}  # noqa: SIM118
    assert run("keys", "revoke", ids["ada"])[1] == f"revoked {ids['ada']}\n"
    assert "operator  ask, administer" in run("keys", "list")[1]
    code, _, err = run("adapters", "export", "opinion", "somewhere")
    assert (code, err.startswith("error: ")) == (2, True)
    assert admin_key not in err


@pytest.mark.slow
def test_a_revoked_admin_key_stops(registry: Registry, endpoint: str, admin_key: str) -> None:
    remote = Registry(endpoint)
    remote.adapters()
    registry.revoke_key(registry.keys()[0].id)
    time.sleep(1)
    with pytest.raises(UserError, match="wrong, or it was revoked"):
        remote.adapters()
