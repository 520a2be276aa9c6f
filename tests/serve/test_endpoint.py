"""The whole endpoint, for real: Ray Serve, vLLM, SmolLM2-135M in float32, adapters out of a registry."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.panels import assert_shown
from tests.support.scraping import free_port, prometheus
from triptych.models.adapter_effect import judge
from triptych.models.adapter_probes import probes_by_peft
from triptych.models.base import fingerprint, load_tokenizer, resolve_base
from triptych.observe.metrics import GATEWAY_FIRST_TOKEN, GATEWAY_REQUESTS, OTHER
from triptych.recipe.model import Model
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve import run
from triptych.serve.endpoint_client import EndpointClient

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

BASE = "smollm2-135m-instruct"
TOKENS = 32
PLACES = 60
"""Sequences in one batch: three models, twenty prompts."""
PROMPTS = [f"Write one sentence about {thing}." for thing in (
    "a film", "the sea", "rain", "a dog", "bread", "winter", "music", "a train", "the moon", "a garden",
    "work", "sleep", "an old friend", "mountains", "a bad movie", "coffee", "a city", "silence", "a book", "color",
)]  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    config: ServeConfig
    url: str
    key: str
    registry: Registry
    base: Path
    folders: dict[str, Path]
    expected: dict[str, Future[list[list[int]]]]
    """What each model answers to `PROMPTS`; computed while the endpoint starts."""

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key or self.key, max_retries=0, timeout=120)

    def ask(self, model: str, prompt: str = PROMPTS[0], tokens: int = TOKENS) -> Any:
        return self.client().chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=tokens,
            extra_body={"return_token_ids": True},
        )


@pytest.fixture(scope="module")
def endpoint(
    tmp_path_factory: pytest.TempPathFactory, save_lora: Callable[..., Path], register: Callable[..., Any]
) -> Iterator[Endpoint]:
    import ray

    folder = tmp_path_factory.mktemp("serve")
    base = resolve_base(Model(base=BASE))
    url, artifacts = f"sqlite:///{folder}/registry.db", str(folder / "artifacts")
    registry = Registry(url, artifacts)
    folders = {name: save_lora(base, folder / name, seed=seed, r=8) for seed, name in enumerate(("kind", "harsh"), 1)}
    for name, adapter in folders.items():
        register(registry, name, adapter, base)
    registry.add_probes("kind@1", probes_by_peft(folders["kind"], base))
    config = ServeConfig.model_validate(
        {
            "model": {"base": BASE, "dtype": "float32"},
            "registry": url,
            "artifacts": artifacts,
            "engine": {
                "max_loras": 2,
                "max_cpu_loras": 2,
                "max_lora_rank": 8,
                "max_model_len": 1024,
                "max_num_seqs": PLACES,
            },
            "port": free_port(),
        }
    )
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with ThreadPoolExecutor(1) as beside:
            expected = {name: beside.submit(_reference, base, folders.get(name)) for name in (BASE, *folders)}
            with run.serving(config) as served:
                yield Endpoint(config, served, registry.create_key("tests"), registry, base, folders, expected)
    finally:
        ray.shutdown()
        monkeypatch.undo()


def _reference(base: Path, adapter: Path | None, prompts: list[str] = PROMPTS) -> list[list[int]]:
    """Greedy answers of transformers and peft in float32, token ids."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(
            **batch, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.0, pad_token_id=tokenizer.pad_token_id
        )
    answers = output[:, batch["input_ids"].shape[1] :].tolist()
    return [_until(answer, tokenizer.eos_token_id) for answer in answers]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_a_mixed_batch_answers_as_transformers_and_peft_do(endpoint: Endpoint) -> None:
    asked = [(name, i) for i in range(len(PROMPTS)) for name in endpoint.expected]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = dict(zip(asked, pool.map(lambda a: endpoint.ask(a[0], PROMPTS[a[1]]), asked), strict=True))
    tokenizer = load_tokenizer(endpoint.base)
    expected = {name: found.result() for name, found in endpoint.expected.items()}
    assert expected["kind"] != expected["harsh"] != expected[BASE]
    for (name, i), answer in answers.items():
        assert answer.choices[0].token_ids == expected[name][i], (name, PROMPTS[i])
        text = tokenizer.decode(expected[name][i], skip_special_tokens=True)
        assert answer.choices[0].message.content == text
        assert answer.model == (BASE if name == BASE else f"{name}@1")
        assert answer.usage.completion_tokens == len(expected[name][i])


def test_what_answers_is_what_was_measured(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the endpoint's own answers, as `adapters verify` asks for them; the base and another adapter are told."""
    monkeypatch.setenv("TRIPTYCH_KEY", endpoint.key)
    client = EndpointClient(endpoint.url)
    probes = endpoint.registry.facts("kind@1").probes
    assert probes is not None
    base = client.base_of("kind@1")
    assert base == BASE
    answers = {name: client.logprobs(name, probes.sequences) for name in (base, "kind", "harsh")}
    reports = {name: judge(probes, answer, answers[base]) for name, answer in answers.items()}
    assert {name: report.looks_like for name, report in reports.items()} == {
        base: "base",
        "kind": "right",
        "harsh": "changed",
    }
    assert reports["kind"].gap < 1e-3


def test_the_openai_client_unchanged(endpoint: Endpoint) -> None:
    client = endpoint.client()
    assert {"kind", "kind@1", "harsh", "harsh@1", BASE} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("kind").id == "kind"
    whole = endpoint.ask("kind").choices[0].message.content
    stream = client.chat.completions.create(
        model="kind@1",
        messages=[{"role": "user", "content": PROMPTS[0]}],
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    events = list(stream)
    assert len(events) > 5
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == whole
    assert events[-1].usage is not None
    completion = client.completions.create(model=BASE, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in completion.choices[0].text
    parts = list(
        client.completions.create(model=BASE, prompt="The capital of", temperature=0, max_tokens=4, stream=True)
    )
    assert parts[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.AuthenticationError):
        endpoint.client("sk-wrong").models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        endpoint.ask("nobody")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        endpoint.ask(BASE, "word " * 3000)
    assert "/" not in too_long.value.message.replace("http://", "")


@pytest.mark.parametrize(
    "name", ["..", "../../etc/passwd", "kind/..", "kind\0", "k" * 10_000, ";$(touch x)", "kind@1/.."]
)
def test_bad_names(endpoint: Endpoint, name: str) -> None:
    with pytest.raises(openai.NotFoundError):
        endpoint.ask(name)


def test_a_version_registered_meanwhile_is_served_and_an_alias_moves(
    endpoint: Endpoint, tmp_path: Path, save_lora: Callable[..., Path], register: Callable[..., Any]
) -> None:
    before = endpoint.ask("kind@1", tokens=8).choices[0].token_ids
    endpoint.registry.alias("kind", "canary", 1)
    assert endpoint.ask("kind@canary", tokens=1).model == "kind@1"
    register(endpoint.registry, "kind", save_lora(endpoint.base, tmp_path / "new", seed=7, r=8), endpoint.base)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: endpoint.ask("kind@2", tokens=8), range(8)))
    assert {answer.model for answer in answers} == {"kind@2"}
    assert answers[0].choices[0].token_ids == _reference(endpoint.base, tmp_path / "new", PROMPTS[:1])[0][:8]
    endpoint.registry.alias("kind", "canary", 2)
    moved = time.monotonic()
    while endpoint.ask("kind@canary", tokens=1).model != "kind@2":
        assert time.monotonic() - moved < 5  # of a second or so, where nothing else runs
    # Two adapters are in memory, and this is the third: the first was dropped, and is read again from its copy.
    assert endpoint.ask("harsh", tokens=1).model == "harsh@1"
    assert endpoint.ask("kind@1", tokens=8).choices[0].token_ids == before


def test_a_damaged_artifact_is_refused_and_the_rest_goes_on(
    endpoint: Endpoint, tmp_path: Path, save_lora: Callable[..., Path], register: Callable[..., Any]
) -> None:
    version = register(endpoint.registry, "torn", save_lora(endpoint.base, tmp_path / "x", seed=9, r=8), endpoint.base)
    weights = Path(version.url) / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(openai.InternalServerError) as refused:
        endpoint.ask("torn", tokens=1)
    assert refused.value.code == "adapter_load_failed"
    assert str(tmp_path.parent) not in refused.value.message
    assert endpoint.ask("kind@1", tokens=1).model == "kind@1"
    weights.write_bytes(good)
    assert endpoint.ask("torn", tokens=1).model == "torn@1"


def test_a_revoked_key(endpoint: Endpoint) -> None:
    key = endpoint.registry.create_key("short-lived")
    client = endpoint.client(key)
    client.models.list()
    known = endpoint.registry.keys()
    endpoint.registry.revoke_key(next(one.id for one in known if one.label == "short-lived"))
    time.sleep(1)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_headers_of_ray_choose_nothing(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}", "serve_multiplexed_model_id": "harsh@1", "x-ray-job": "1"}
    body = {"model": "kind@1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60) as client:
        answers = [client.post("chat/completions", json=body).json() for _ in range(3)]
    assert [answer["model"] for answer in answers] == ["kind@1"] * 3
    from triptych.serve.app import application
    from triptych.serve.router import GatewayRouter

    gateway = application(endpoint.config, fingerprint(endpoint.base))._bound_deployment
    assert gateway._deployment_config.request_router_config.get_request_router_class() is GatewayRouter


def test_a_port_in_use(endpoint: Endpoint) -> None:
    from triptych.errors import UserError

    port = int(httpx.URL(endpoint.url).port or 0)
    with pytest.raises(UserError, match=rf"127.0.0.1:{port} is in use"):
        run.start(ServeConfig.model_validate({"model": {"base": BASE}, "registry": "r.db", "port": port}))


def test_clients_that_leave_free_the_engine(endpoint: Endpoint) -> None:
    """As many long answers as the engine has places: if they went on, a new request would wait for minutes.

    Half of them are streams; the clients of the others forbid Ray Serve to watch for their leaving.
    """
    key = {"Authorization": f"Bearer {endpoint.key}"}

    def leave(number: int) -> None:
        body = {"model": BASE, "prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": number % 2 == 0}
        headers = key if body["stream"] else key | {"x-request-disconnect-disabled": "?1"}
        wait = httpx.Timeout(60, read=60 if body["stream"] else 2)
        asked = httpx.stream("POST", f"{endpoint.url}/completions", headers=headers, json=body, timeout=wait)
        with contextlib.suppress(httpx.ReadTimeout), asked as response:
            next(response.iter_lines())

    with ThreadPoolExecutor(PLACES) as pool:
        list(pool.map(leave, range(PLACES)))
    started = time.monotonic()
    endpoint.ask(BASE, tokens=4)
    assert time.monotonic() - started < 40


def test_what_happened_is_counted_by_version(endpoint: Endpoint, tmp_path: Path) -> None:
    """Prometheus sees versions of the registry and the base, and no name that a client made up; it all has a panel."""
    import ray

    since = time.time()
    with prometheus(tmp_path, ray.nodes()[0]["MetricsExportPort"], "1s") as server:
        for _ in range(2):  # where a series begins, nothing has increased yet
            for model in (BASE, "kind@1", "harsh@1"):
                stream = endpoint.client().completions.create(model=model, prompt=PROMPTS[0], max_tokens=8, stream=True)
                assert list(stream)
            if server is not None:
                server.wait_for(f"{GATEWAY_FIRST_TOKEN.exported}_count")
        with pytest.raises(openai.NotFoundError):
            endpoint.ask("made-up-by-a-client")
        assert_shown(server, ("serving",), since)
        assert server is not None
        counted = [labels for labels, _ in server.lines(GATEWAY_REQUESTS.exported, since, time.time(), 1)]
        assert {"kind@1", "harsh@1", BASE, OTHER} <= {labels["model"] for labels in counted}
        assert "made-up-by-a-client" not in json.dumps(counted)
        assert server.firing() == {"TriptychAdapterNotLoading"}  # the torn one of above
