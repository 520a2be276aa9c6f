"""What `adapters verify` says of endpoints that cannot be asked: each names what is wrong, and never the key."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.scraping import free_port
from triptych.errors import UserError
from triptych.serve.endpoint_client import EndpointClient

KEY = "sk-secret-of-this-test"
CARDS = {"data": [{"id": "tiny", "parent": None}, {"id": "reviews@1", "parent": "tiny"}, {"id": "merged"}]}
SEQUENCES = [(3, 4, 5), (6, 7, 8)]
Answer = tuple[int, Any]


def scored(*rows: list[Any]) -> Answer:
    return 200, {"choices": [{"index": i, "prompt_logprobs": row} for i, row in reversed(list(enumerate(rows)))]}


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(models=, completions=)`: URL of an endpoint that gives these answers to whoever brings the key."""
    servers: list[ThreadingHTTPServer] = []

    def start(models: Answer = (200, CARDS), completions: Answer = (200, {})) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer("/v1/models", models)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer("/v1/completions", completions)

            def answer(self, path: str, answer: Answer) -> None:
                status, content = answer if self.path == path else (404, {})
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    status, content = 401, {"error": {"message": "The API key is wrong, or it was revoked."}}
                self.send_response(status)
                self.end_headers()
                self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_KEY", KEY)


def test_log_probabilities_are_read_in_the_order_of_the_sequences(serve: Callable[..., str]) -> None:
    rows = [
        [None, {str(b): {"logprob": -b}, "9": {"logprob": -0.1}}, {str(c): {"logprob": -c}}] for _, b, c in SEQUENCES
    ]
    client = EndpointClient(serve(completions=scored(*rows)))
    assert client.logprobs("reviews@1", SEQUENCES) == [[-4.0, -5.0], [-7.0, -8.0]]
    assert client.base_of("reviews@1") == "tiny"
    assert client.base_of("merged") is None


def test_an_endpoint_that_cannot_be_reached() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=rf"endpoint {url} cannot be reached: "):
        EndpointClient(f"{url}/v1").base_of("reviews")
    for wrong in ("ftp://somewhere", "somewhere:x"):
        with pytest.raises(UserError, match="endpoint "):
            EndpointClient(wrong).base_of("reviews")


@pytest.mark.parametrize("key", ["sk-wrong", None])
def test_a_key_that_is_wrong_or_missing(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("TRIPTYCH_KEY")
    if key is not None:
        monkeypatch.setenv("TRIPTYCH_KEY", key)
    with pytest.raises(UserError, match=r"wrong, or it was revoked.*set TRIPTYCH_KEY_PATH") as refused:
        EndpointClient(serve()).base_of("reviews")
    assert "sk-" not in str(refused.value)


def test_a_model_that_is_not_served_and_what_is(serve: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"serves no reviews@2; it serves reviews@1"):
        EndpointClient(serve()).base_of("reviews@2")


@pytest.mark.parametrize("models", [(200, "<html>"), (200, []), (200, {"models": []}), (404, {"detail": "Not Found"})])
def test_what_is_no_endpoint(serve: Callable[..., str], models: Answer) -> None:
    with pytest.raises(UserError, match=r"is no OpenAI-compatible endpoint|refuses a list of models \(404\)"):
        EndpointClient(serve(models=models)).base_of("reviews")


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        (
            (400, {"error": {"message": "prompt_logprobs: not allowed"}}),
            r"refuses prompt_logprobs \(400\): prompt_logp",
        ),
        ((400, {"detail": "no"}), r"refuses prompt_logprobs \(400\)"),
        (
            (200, {"choices": [{"index": 0, "text": "x"}, {"index": 1, "text": "y"}]}),
            "answered without prompt_logprobs",
        ),
        (scored([None, {}, {}], [None, {}, {}]), "answered without prompt_logprobs"),
        (scored([None, {"4": {"logprob": -1.0}}]), "answered without prompt_logprobs"),
    ],
)
def test_an_endpoint_that_gives_no_log_probabilities(
    serve: Callable[..., str], completions: Answer, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        EndpointClient(serve(completions=completions)).logprobs("reviews@1", SEQUENCES)
