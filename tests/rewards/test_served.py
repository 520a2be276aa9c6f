"""Rewards that servers give, asked of real ones on this machine."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.recipe.reward import Calls, HttpReward, JudgeReward
from triptych.rewards.asking import Asking, Failed
from triptych.rewards.base import Answer, Given
from triptych.rewards.client import JsonClient
from triptych.rewards.table import SCORERS

QUICK = Calls(retries=0, backoff_s=0.0, timeout_s=30.0)
Reply = tuple[int, dict[str, str], str]
Serve = Callable[[Callable[[dict[str, Any]], Reply]], str]


class Server(ThreadingHTTPServer):
    """Answers each request by a function of its JSON, and keeps paths, headers and bodies."""

    reply: Callable[[dict[str, Any]], Reply]
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, headers, text = self.server.reply(body)
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(text.encode()))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests read `asked`."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each wait, none of which is waited for."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def none(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", none)
    return waits


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def answers(*texts: str, groups: Sequence[int] | None = None) -> list[Answer]:
    prompt = ({"role": "user", "content": "6 * 7?"},)
    places = groups or [0] * len(texts)
    return [Answer((1,), (2,), text, {"level": 1}, prompt, group) for text, group in zip(texts, places, strict=True)]


def scores(settings: Any, given: Sequence[Answer]) -> list[Given]:
    async def ask() -> list[Given]:
        return list(await SCORERS[settings.name](settings).score(given, Asking(settings.calls)))

    return asyncio.run(ask())


def ok(content: Any) -> Reply:
    return 200, {}, json.dumps(content)


def said(text: str) -> Reply:
    return ok({"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_a_server_is_sent_prompts_answers_and_fields(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "secret")
    server.reply = lambda body: ok({"scores": [float(len(text)) for text in body["answers"]]})
    settings = HttpReward(url=f"{url(server)}/score", token_env="SCORER_TOKEN", per_call=2, calls=QUICK)
    assert scores(settings, answers("a", "bb", "ccc")) == [1.0, 2.0, 3.0]
    assert max(server.asked, key=lambda one: len(one[2]["answers"])) == (
        "/score",
        "Bearer secret",
        {
            "prompts": [[{"role": "user", "content": "6 * 7?"}]] * 2,
            "answers": ["a", "bb"],
            "fields": [{"level": 1}] * 2,
        },
    )
    assert len(server.asked) == 2
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((401, {}, "no key"), "answered 401: no key"),
        ((500, {}, "down"), "BusyError: .* answered 500: down"),
        ((200, {}, "no json"), "JSONDecodeError"),
        ((200, {}, "[1]"), "no mapping with `scores`"),
        ((200, {}, '{"scores": [1, 2]}'), "2 scores for 1 answers"),
        ((200, {}, '{"scores": [NaN]}'), "nan is no finite number"),
        ((200, {}, '{"scores": ["1"]}'), "'1' is no number, but str"),
    ],
)
def test_what_a_server_answers_amiss_is_the_reason(server: Server, reply: Reply, reason: str) -> None:
    server.reply = lambda body: reply
    [found] = scores(HttpReward(url=url(server), calls=QUICK), answers("a"))
    assert isinstance(found, Failed)
    assert re.search(reason, found.reason)


def test_null_is_no_judgement(server: Server) -> None:
    server.reply = lambda body: ok({"scores": [None, 1]})
    assert scores(HttpReward(url=url(server), calls=QUICK), answers("a", "b")) == [None, 1.0]


def test_a_busy_server_is_asked_again_when_it_says(server: Server, slept: list[float]) -> None:
    replies = [(429, {"Retry-After": "7"}, "later"), (503, {}, "soon"), (200, {}, '{"scores": [2]}')]
    server.reply = lambda body: replies[len(server.asked) - 1]
    calls = Calls(retries=2, backoff_s=0.0)
    assert scores(HttpReward(url=url(server), calls=calls), answers("a")) == [2.0]
    assert slept[0] == 7.0
    assert max(slept[1:]) == 0.0


def test_a_server_that_hangs_or_is_not_there_is_given_up(server: Server) -> None:
    server.reply = lambda body: (time.sleep(3), ok({"scores": [1]}))[1]  # type: ignore[func-returns-value]
    calls = Calls(retries=0, timeout_s=0.3)
    assert scores(HttpReward(url=url(server), calls=calls), answers("a")) == [Failed("no answer within 0.3 s")]
    [found] = scores(HttpReward(url="http://127.0.0.1:9/score", calls=QUICK), answers("a"))
    assert isinstance(found, Failed)
    assert "ConnectError" in found.reason


def test_a_token_comes_from_the_environment_and_goes_over_no_network_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"token_env: .* asks for a token; set SCORER_TOKEN_PATH"):
        SCORERS["http"](HttpReward(url="https://scores.example", token_env="SCORER_TOKEN"))
    monkeypatch.setenv("SCORER_TOKEN", "secret")
    with pytest.raises(UserError, match=r"url: http://scores\.example would be sent a token unencrypted"):
        SCORERS["http"](HttpReward(url="http://scores.example", token_env="SCORER_TOKEN"))
    with pytest.raises(ValueError, match="url"):
        HttpReward(url="https://me:secret@scores.example")


def test_a_judge_rates_each_answer(server: Server) -> None:
    """From 1 to 5: 4 is three quarters of the way."""
    verdicts = {"good": "Fine. [[4]]", "best": "[[1]] was too harsh: [[ 5 ]]", "odd": "[[9]]", "mute": "Well."}

    def reply(body: dict[str, Any]) -> Reply:
        question = body["messages"][0]["content"]
        return said(next(verdict for text, verdict in verdicts.items() if f"[Answer]\n{text}\n" in question))

    server.reply = reply
    settings = JudgeReward(
        url=f"{url(server)}/v1", model="judge", lowest=1, highest=5, criteria="Be kind.", calls=QUICK
    )
    good, best, odd, mute = scores(settings, answers(*verdicts))
    assert (good, best) == (0.75, 1.0)
    assert odd == Failed("ValueError: the judge's rating is 9; allowed: 1 to 5")
    assert mute == Failed("ValueError: the judge wrote no rating: 'Well.'")
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 512)
    assert "Be kind." in body["messages"][0]["content"]
    assert "[Question]\n6 * 7?" in body["messages"][0]["content"]


def test_a_judge_compares_the_answers_to_a_prompt_in_both_orders(server: Server) -> None:
    """`long` beats `mid` in both orders; the judge names A in either order of `mid` and `low`: a half each."""

    def reply(body: dict[str, Any]) -> Reply:
        question = body["messages"][0]["content"]
        first = next(text for text in ("long", "mid", "low", "other") if f"[Answer A]\n{text}\n" in question)
        second = next(text for text in ("long", "mid", "low", "other") if f"[Answer B]\n{text}\n" in question)
        if "long" in (first, second):
            return said("[[C]]" if "low" in (first, second) else "[[A]]" if first == "long" else "[[B]]")
        return said("[[A]]")

    server.reply = reply
    settings = JudgeReward(url=url(server), model="judge", mode="pairs", calls=QUICK)
    found = scores(settings, answers("long", "mid", "low", "other", groups=[0, 0, 0, 1]))
    # long: 1, 1 against mid, 0.5, 0.5 against low; mid: 0, 0 and 1, 0; low: 0.5, 0.5 and 0, 1
    assert found == [0.75, 0.25, 0.5, None]
    assert len(server.asked) == 6


def test_a_comparison_that_fails_counts_for_neither(server: Server) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        question = body["messages"][0]["content"]
        return said("[[A]]") if "[Answer A]\na\n" in question and "[Answer B]\nb\n" in question else said("?")

    server.reply = reply
    found = scores(JudgeReward(url=url(server), model="m", mode="pairs", calls=QUICK), answers("a", "b", "c"))
    assert found[:2] == [1.0, 0.0]
    assert found[2] == Failed("ValueError: the judge wrote no verdict: '?'")


def test_requests_begin_no_faster_than_their_rate(slept: list[float]) -> None:
    """One a minute: the second waits for a minute, the third for two."""

    async def turns() -> None:
        async with JsonClient(HttpReward(url="http://127.0.0.1:9"), {}, per_minute=1.0) as client:
            await asyncio.gather(client.turn(), client.turn(), client.turn())

    asyncio.run(turns())
    assert slept == pytest.approx([0.0, 60.0, 120.0], abs=30.0)
