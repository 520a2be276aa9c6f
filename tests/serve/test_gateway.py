"""The gateway's routes over HTTP: keys, names, errors. The registry is real; the engine says what it is told to."""

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse
from ray.serve.exceptions import BackPressureError

from tests.support.gateway import CHAT, StandInEngine, client_of, error_of
from triptych.registry import Registry


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def key(registry: Registry) -> str:
    return registry.create_key("test")


@pytest.fixture
def client(engine: StandInEngine, registry: Registry, key: str, tiny_model_dir: Path) -> TestClient:
    client = client_of(engine, registry, tiny_model_dir)
    client.headers["Authorization"] = f"Bearer {key}"
    return client


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "Bearer sk-wrong", "Basic abc", "Bearer " + "k" * 5000])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/nothing", "/docs", "/openapi.json"])
def test_no_route_without_a_key(client: TestClient, header: str | None, path: str) -> None:
    del client.headers["Authorization"]
    response = client.get(path, headers={} if header is None else {"Authorization": header})
    error_of(response, 401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_body_is_not_even_read_without_a_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    error_of(client.post("/v1/chat/completions", content=b"not json"), 401, "invalid_api_key")


def test_health_needs_no_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    assert client.get("/healthz").status_code == 200


def test_a_revoked_key_is_soon_refused(client: TestClient, registry: Registry) -> None:
    assert client.get("/v1/models").status_code == 200
    registry.revoke_key(registry.keys()[0].id)
    deadline = time.monotonic() + 20
    while client.get("/v1/models").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_keys_are_not_asked_for_where_the_config_says_so(
    engine: StandInEngine, registry: Registry, tiny_model_dir: Path
) -> None:
    client = client_of(engine, registry, tiny_model_dir, require_key=False)
    assert client.get("/v1/models").status_code == 200


def test_the_list_of_models(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert set(models) == {"tiny", "opinion", "opinion@1", "opinion@2"}
    assert models["opinion"]["root"] == "opinion@2"
    assert models["opinion"]["parent"] == "tiny"
    assert models["tiny"]["parent"] is None


def test_one_model(client: TestClient, registry: Registry) -> None:
    registry.alias("opinion", "canary", 1)
    card = client.get("/v1/models/opinion@canary").json()
    assert (card["id"], card["root"]) == ("opinion@canary", "opinion@1")
    error_of(client.get("/v1/models/nobody"), 404, "model_not_found")


@pytest.mark.parametrize(
    ("asked", "engine_name"),
    [("tiny", "tiny"), ("opinion", "opinion@2"), ("opinion@1", "opinion@1"), ("opinion@canary", "opinion@1")],
)
def test_the_engine_sees_versions_only(
    client: TestClient, registry: Registry, engine: StandInEngine, asked: str, engine_name: str
) -> None:
    registry.alias("opinion", "canary", 1)
    response = client.post("/v1/chat/completions", json={"model": asked, **CHAT})
    assert response.status_code == 200, response.text
    assert engine.requests[0].model == engine_name
    assert response.json()["model"] == engine_name


def test_a_moved_alias_soon_acts(client: TestClient, registry: Registry) -> None:
    def served() -> str:
        return str(client.post("/v1/chat/completions", json={"model": "opinion@live", **CHAT}).json()["model"])

    registry.alias("opinion", "live", 1)
    assert served() == "opinion@1"
    registry.alias("opinion", "live", 2)
    deadline = time.monotonic() + 20
    while served() != "opinion@2":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "opinion@9",
        "opinion@nobody",
        "..",
        "../opinion",
        "/etc/passwd",
        "opinion/..",
        "opinion\0",
        "o" * 10_000,
        "$(id)",
        "opinion;id",
        "OPINION",
        "opinion@",
        "@1",
        "opinion@1@2",
        "opinion@../1",
        " opinion",
        "opinion\n",
        "оpinion",
    ],
)
def test_other_names_are_not_models(client: TestClient, engine: StandInEngine, name: str) -> None:
    error = error_of(client.post("/v1/chat/completions", json={"model": name, **CHAT}), 404, "model_not_found")
    assert error["param"] == "model"
    assert len(error["message"]) < 200
    assert engine.requests == []


def test_a_name_that_is_none_never_reaches_the_registry(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Registry, "get", lambda self, ref: asked.append(ref))
    for name in ("..", "a/b", "a\0", "x" * 10_000, ";$()"):
        error_of(client.post("/v1/chat/completions", json={"model": name, **CHAT}), 404, "model_not_found")
    assert asked == []


def test_an_adapter_that_does_not_fit_is_explained(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json={"model": "toobig", **CHAT})
    assert "its rank is 16" in error_of(response, 404, "model_not_found")["message"]


def test_only_the_listed_adapters(engine: StandInEngine, registry: Registry, key: str, tiny_model_dir: Path) -> None:
    client = client_of(engine, registry, tiny_model_dir, max_lora_rank=16, adapters=["toobig"])
    client.headers["Authorization"] = f"Bearer {key}"
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny", "toobig", "toobig@1"]
    error_of(client.post("/v1/chat/completions", json={"model": "opinion", **CHAT}), 404, "model_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"model": "tiny"},
        {"model": "tiny", "messages": "hello"},
        {"model": "tiny", **CHAT, "temperature": "hot"},
        {"model": "tiny", **CHAT, "top_logprobs": "x"},
        CHAT,
        [],
    ],
)
def test_a_bad_request(client: TestClient, body: Any) -> None:
    error_of(client.post("/v1/chat/completions", json=body), 400, "invalid_request")


def test_other_routes_and_methods(client: TestClient) -> None:
    for path in ("/", "/v1", "/v1/embeddings", "/metrics", "/tokenize", "/v1/load_lora_adapter", "/collective_rpc"):
        error_of(client.post(path, json={}), 404, "invalid_request")
    error_of(client.delete("/v1/models"), 405, "invalid_request")


def test_no_cross_origin_grant(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_fields_that_steer_the_engine_are_ours(client: TestClient, engine: StandInEngine) -> None:
    body = {"model": "tiny", **CHAT, "request_id": "mine", "priority": -9, "kv_transfer_params": {"do_remote": True}}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    sent = engine.requests[0]
    assert sent.request_id != "mine"
    assert sent.priority == 0
    assert sent.kv_transfer_params is None


def test_what_is_wrong_with_a_request_is_passed_on(client: TestClient, engine: StandInEngine) -> None:
    engine.script = lambda _: [ErrorResponse(error=ErrorInfo(message="too long", type="BadRequestError", code=400))]
    error = error_of(client.post("/v1/chat/completions", json={"model": "tiny", **CHAT}), 400, "BadRequestError")
    assert error["message"] == "too long"


@pytest.mark.parametrize(
    "failure", [ErrorResponse(error=ErrorInfo(message="/var/secret", type="X", code=500)), RuntimeError("/var/secret")]
)
def test_what_went_wrong_inside_is_not(client: TestClient, engine: StandInEngine, failure: Any) -> None:
    engine.script = lambda _: [failure]
    response = client.post("/v1/chat/completions", json={"model": "tiny", **CHAT})
    error_of(response, 500, "internal_error")
    assert "secret" not in response.text


def test_a_full_queue(client: TestClient, engine: StandInEngine) -> None:
    engine.script = lambda _: [BackPressureError(num_queued_requests=1, max_queued_requests=1)]
    response = client.post("/v1/chat/completions", json={"model": "tiny", **CHAT})
    error_of(response, 503, "overloaded")
    assert response.headers["Retry-After"] == "1"


STREAM = [
    'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
    'data: {"id":"1","choices":[{"index":0,"delta":{"content":"Yes"}}]}\n\n',
    'data: {"id":"1","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}\n\n',
    "data: [DONE]\n\n",
]


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_tells_its_tokens_only_if_asked(client: TestClient, engine: StandInEngine, asked: bool) -> None:
    engine.script = lambda _: [[event] for event in STREAM]
    body = {"model": "tiny", **CHAT, "stream": True} | ({"stream_options": {"include_usage": True}} if asked else {})
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert engine.requests[0].stream_options.include_usage
    assert response.text == "".join(STREAM if asked else [STREAM[0], STREAM[1], STREAM[3]])


def test_a_stream_that_breaks_says_so(client: TestClient, engine: StandInEngine) -> None:
    failed = 'data: {"error": {"message": "at /var/secret", "type": "X", "param": null, "code": 500}}\n\n'
    engine.script = lambda _: [[STREAM[0]], [failed], ["data: [DONE]\n\n"]]
    text = client.post("/v1/chat/completions", json={"model": "tiny", **CHAT, "stream": True}).text
    assert '"code": "internal_error"' in text
    assert "secret" not in text
    assert text.endswith("data: [DONE]\n\n")


def test_a_stream_that_never_began_is_an_error_of_its_own(client: TestClient, engine: StandInEngine) -> None:
    failed = 'data: {"error": {"message": "no", "type": "BadRequestError", "param": null, "code": 400}}\n\n'
    engine.script = lambda _: [[failed]]
    error_of(
        client.post("/v1/chat/completions", json={"model": "tiny", **CHAT, "stream": True}), 400, "BadRequestError"
    )


def test_a_registry_that_is_down(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Registry, key: str) -> None:
        raise OSError("/var/secret")

    monkeypatch.setattr(Registry, "check_key", down)
    response = client.get("/v1/models", headers={"Authorization": "Bearer another-key"})
    error_of(response, 503, "unavailable")
    assert "secret" not in response.text


def test_the_caller_travels_to_the_gateway(
    engine: StandInEngine, registry: Registry, key: str, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "ray.serve")
    client = client_of(engine, registry, tiny_model_dir)
    key_id = registry.keys()[0].id
    for headers in ({"Authorization": f"Bearer {key}"}, {}):
        client.post("/v1/chat/completions", json={"model": "tiny", **CHAT}, headers=headers)
    asked = [record.getMessage() for record in caplog.records if record.getMessage().startswith("chat by")]
    assert asked == [f"chat by key {key_id} (test): tiny on vllm, chosen by base"]
    assert key not in caplog.text
