"""Real engines in real actors: what they sample, what they run after a sync, and what their death costs."""

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save
from transformers import LlamaForCausalLM

from triptych.engines.base import (
    BASE_VERSION,
    Ack,
    Digested,
    Engine,
    EnginePlan,
    Logprobs,
    RolloutRecord,
    SampleRequest,
    adapter_digest,
)
from triptych.engines.table import ENGINES
from triptych.errors import RunError, UserError
from triptych.recipe.rollout import Rollout, Sampling
from triptych.rollout.pool import RolloutPool
from triptych.rollout.sync_check import check_sync

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STOP, VOCAB, MODEL_LEN = 2, 512, 128
SAMPLING = Sampling(max_new_tokens=24, temperature=0.7)
NOISE = 1e-4
"""Mean |engine - transformers| of a token, fp32."""
Reference = Callable[..., Logprobs]


class Learner:
    """Holds the CPU that a learner would."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False)
    yield
    ray.shutdown()


def start(model_dir: Path, placement_timeout_s: float = 120.0, **settings: Any) -> RolloutPool:
    rollout = Rollout(**{"kv_cache_gb": 0.1, "timeout_s": 10.0, **settings})
    return RolloutPool.start(str(model_dir), "float32", rollout, MODEL_LEN, 4, [STOP], placement_timeout_s)


@pytest.fixture(scope="module")
def pool(cluster: None, model_dir: Path) -> Iterator[RolloutPool]:
    """Two engines of half a CPU in merged mode, beside one CPU held as a learner's would be."""
    learner: Any = ray.remote(num_cpus=1)(Learner).remote()
    pool = start(model_dir)
    yield pool
    pool.close()
    ray.kill(learner)


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Any]) -> list[Any]:
    """Two policies: the second is a small step on from the first."""
    return [make_adapter(1), make_adapter(1, size=0.06)]


class ToyEngine(Engine):
    """Answers every prompt with one stop token."""

    def __init__(self, index: int, plan: EnginePlan) -> None:
        self._index, self._stop, self._version = index, plan.stop_token_ids[0], BASE_VERSION

    @classmethod
    def environment(cls, plan: EnginePlan) -> dict[str, str]:
        return {"TOY_ENGINE": plan.model_dir}

    def sync(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        self._version = version
        return Ack(version, adapter_digest(adapter, config))

    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        self._version, passing = version, Digested(buckets)
        assert all(passing)
        return Ack(version, passing.digest)

    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        def answer(r: SampleRequest) -> RolloutRecord:
            versions = (self._version,)
            return RolloutRecord(r.lease, r.prompt_ids, (self._stop,), (0.0,), versions, "stop", r.seed, self._index)

        return [answer(request) for request in requests]

    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        return [[float(os.environ["TOY_ENGINE"])] * (len(s) - n) for s, n in zip(sequences, prompt_lens, strict=True)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(b'{"weights":"replaced"}' + content).hexdigest()


def requests(count: int, seed: int = 0) -> list[SampleRequest]:
    draw = random.Random(seed)
    prompts = [tuple(draw.randrange(3, VOCAB) for _ in range(draw.randrange(4, 40))) for _ in range(count)]
    return [SampleRequest(f"lease-{i}", prompt, seed=1000 + i) for i, prompt in enumerate(prompts)]


def sequences(records: list[RolloutRecord]) -> tuple[list[list[int]], list[int]]:
    return [[*r.prompt_ids, *r.response_ids] for r in records], [len(r.prompt_ids) for r in records]


def sampled(records: list[RolloutRecord]) -> Logprobs:
    return [list(record.logprobs) for record in records]


def mean_gap(left: Logprobs, right: Logprobs) -> float:
    pairs = [abs(a - b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(pairs) / len(pairs)


def engine_actor(pool: RolloutPool, index: int) -> Any:
    """The actor itself: how these tests inject faults and ask one engine alone."""
    coordinator: Any = pool._coordinator
    return ray.get(coordinator.__ray_call__.remote(lambda coordinator: coordinator._slots[index].actor))


def pids(pool: RolloutPool) -> list[int]:
    return [engine["place"]["pid"] for engine in pool.stats()["engines"]]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pid)


def test_samples_carry_their_log_probabilities(pool: RolloutPool, reference: Reference) -> None:
    asked = requests(24)
    records = pool.generate(asked, SAMPLING)
    assert [record.lease for record in records] == [request.lease for request in asked]
    assert [record.prompt_ids for record in records] == [request.prompt_ids for request in asked]
    assert {record.engine for record in records} == {0, 1}
    for record in records:
        assert record.versions == (BASE_VERSION,) * len(record.response_ids)
        if record.finish_reason == "stop":
            assert record.response_ids.index(STOP) == len(record.response_ids) - 1
        else:
            assert len(record.response_ids) == SAMPLING.max_new_tokens
            assert STOP not in record.response_ids
    assert mean_gap(sampled(records), reference(None, *sequences(records), temperature=0.7)) < NOISE


def test_a_stop_token_ends_an_answer_and_is_kept(pool: RolloutPool) -> None:
    many = pool.generate(requests(64), Sampling(max_new_tokens=64, temperature=2.0))
    assert any(record.response_ids[-1] == STOP and record.finish_reason == "stop" for record in many)


def test_a_seed_gives_the_same_answer_on_either_engine(pool: RolloutPool) -> None:
    asked = requests(16)
    first, second = (
        ray.get(engine_actor(pool, i).generate.remote(order, SAMPLING)) for i, order in ((0, asked), (1, asked[::-1]))
    )
    same = [left.response_ids == right.response_ids for left, right in zip(first, second[::-1], strict=True)]
    assert all(same), f"{same.count(False)} of 16 differ"
    assert len({record.response_ids for record in first}) == 16


def test_engines_use_their_own_cores(pool: RolloutPool) -> None:
    engines = pool.stats()["engines"]
    if len(engines[0]["place"]["cores"]) < 2:
        pytest.skip("one core only")
    assert not set(engines[0]["pinned"]) & set(engines[1]["pinned"])
    for engine in engines:
        # The main thread and OpenMP's are pinned; Ray's own threads started before.
        assert os.sched_getaffinity(engine["place"]["pid"]) == set(engine["pinned"])
        threads = ray.get(engine_actor(pool, engine["index"]).__ray_call__.remote(_torch_threads))
        assert threads == 1


def _torch_threads(_: Any) -> int:
    import torch

    return torch.get_num_threads()


def test_a_merged_sync_is_what_the_learner_computes(
    pool: RolloutPool, adapters: list[Any], reference: Reference
) -> None:
    before = pool.generate(requests(16), SAMPLING)
    report = pool.sync(adapters[0].content, adapters[0].config, version=0)
    assert report.mode == "merged"
    assert report.seconds < 10
    after = pool.generate(requests(16), SAMPLING)
    assert [r.response_ids for r in after] != [r.response_ids for r in before]
    assert {version for record in after for version in record.versions} == {0}
    tokens = sequences(after)
    assert mean_gap(sampled(after), reference(adapters[0], *tokens, temperature=0.7)) < NOISE
    base, new = reference(None, *tokens), reference(adapters[0], *tokens)
    assert mean_gap(base, new) > 100 * NOISE, "the adapter must matter"
    check = check_sync(pool.logprobs(*tokens), new, base, tolerance=NOISE)
    assert all(engine.conclusive and engine.share == pytest.approx(1, abs=0.01) for engine in check.engines)


def test_replaced_weights_reach_the_head_that_shares_them_with_the_embedding(
    pool: RolloutPool, model_dir: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(model_dir)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    names = sorted(load_file(model_dir / "model.safetensors"))
    state = model.state_dict()
    buckets = [save({name: state[name].contiguous() for name in some}) for some in (names[:3], names[3:])]
    pool.replace(buckets, version=3)
    ids = [[5, 60, 71, 182, 93, 204], [7, 300, 11, 45, 9, 33]]
    with torch.no_grad():
        logp = model(torch.tensor(ids)).logits.log_softmax(-1)[:, :-1]
    expected = logp.gather(2, torch.tensor(ids)[:, 1:, None])[:, 1:, 0]
    for found in pool.logprobs(ids, [2, 2]):
        torch.testing.assert_close(torch.tensor(found), expected, atol=NOISE, rtol=0.0)


def test_the_check_catches_an_engine_that_skips_a_sync(
    pool: RolloutPool, adapters: list[Any], reference: Reference
) -> None:
    old, new = adapters
    pool.sync(old.content, old.config, version=0)
    faulty = engine_actor(pool, 1)
    ray.get(faulty.__ray_call__.remote(_skip_sync))
    try:
        pool.sync(new.content, new.config, version=1)  # engine 1 says it did
        tokens = sequences(pool.generate(requests(8), SAMPLING))
        learner_new, learner_old = reference(new, *tokens), reference(old, *tokens)
        with pytest.raises(RunError, match="engine 1 still runs the old weights"):
            # However lax the tolerance: one update moves little.
            check_sync(pool.logprobs(*tokens), learner_new, learner_old, tolerance=10.0)
    finally:
        ray.get(faulty.__ray_call__.remote(_mend_sync))
    pool.sync(new.content, new.config, version=1)
    check_sync(pool.logprobs(*tokens), learner_new, learner_old, tolerance=NOISE)


def _skip_sync(engine: Any) -> None:
    engine._engine._sync.load = lambda adapter, config, version: Ack(version, adapter_digest(adapter, config))


def _mend_sync(engine: Any) -> None:
    del engine._engine._sync.load


def test_an_engine_that_acknowledges_other_weights_is_named(pool: RolloutPool, adapters: list[Any]) -> None:
    faulty = engine_actor(pool, 0)
    ray.get(faulty.__ray_call__.remote(lambda e: setattr(e._engine._sync, "load", lambda *_: Ack(1, "f" * 64))))
    try:
        with pytest.raises(RunError, match="rollout engine 0 loaded version 1 \\(ffffffffffff\\)"):
            pool.sync(adapters[0].content, adapters[0].config, version=1)
    finally:
        ray.get(faulty.__ray_call__.remote(_mend_sync))


def test_an_adapter_that_fits_no_weight_is_refused(pool: RolloutPool, adapters: list[Any]) -> None:
    config = adapters[0].config | {"use_dora": True}
    with pytest.raises(RunError, match=r"rollout engine . failed in sync: .*use_dora"):
        pool.sync(adapters[0].content, config, version=2)


def test_a_killed_engine_loses_and_doubles_nothing(
    pool: RolloutPool, adapters: list[Any], reference: Reference
) -> None:
    old, new = adapters
    pool.sync(new.content, new.config, version=7)
    asked, sampling = requests(512), Sampling(max_new_tokens=48, temperature=0.7)
    undisturbed = pool.generate(asked, sampling)
    restarts, victim = pool.stats()["restarts"], pids(pool)[0]
    killed: list[int] = []

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    threading.Timer(0.3, kill).start()
    records = pool.generate(asked, sampling)
    assert killed, "it sampled to its end before the kill"
    assert [record.lease for record in records] == [request.lease for request in asked]
    assert [record.response_ids for record in records] == [record.response_ids for record in undisturbed]
    assert {version for record in records for version in record.versions} == {7}
    tokens = sequences(records[:8])
    logprobs = pool.logprobs(*tokens)  # waits for the new engine
    assert pool.stats()["restarts"] == restarts + 1
    assert victim not in pids(pool)
    check_sync(logprobs, reference(new, *tokens), reference(old, *tokens), tolerance=NOISE)


@pytest.mark.exhaustive
def test_a_hung_engine_is_replaced(pool: RolloutPool, adapters: list[Any], reference: Reference) -> None:
    pool.sync(adapters[1].content, adapters[1].config, version=8)
    restarts, victim = pool.stats()["restarts"], pids(pool)[1]
    os.kill(victim, signal.SIGSTOP)
    records = pool.generate(requests(8), SAMPLING)
    assert len(records) == 8
    tokens = sequences(records)
    check_sync(pool.logprobs(*tokens), reference(adapters[1], *tokens), None, tolerance=NOISE)
    assert pool.stats()["restarts"] == restarts + 1
    assert gone(victim)


def test_engines_outlive_the_worker_that_uses_them(pool: RolloutPool) -> None:
    @ray.remote(num_cpus=0, max_retries=0)
    def worker(pool: RolloutPool) -> None:
        pool.generate(requests(4), SAMPLING)
        os._exit(1)

    before = pids(pool)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(worker.remote(pool))
    assert len(pool.generate(requests(4), SAMPLING)) == 4
    assert pids(pool) == before


def test_a_prompt_without_room_for_the_answer_is_refused(pool: RolloutPool) -> None:
    with pytest.raises(UserError, match=r"rollout\.sampling\.max_new_tokens"):
        pool.generate([SampleRequest("long", (5,) * 110, 0)], SAMPLING)


def test_adapter_mode_and_close(cluster: None, model_dir: Path, adapters: list[Any], reference: Reference) -> None:
    pool = start(model_dir, engines=1, cpus=0, sync="adapter")
    pid = pids(pool)[0]
    try:
        for version, adapter in enumerate(adapters):
            assert pool.sync(adapter.content, adapter.config, version).mode == "adapter"
            records = pool.generate(requests(16), SAMPLING)
            tokens = sequences(records)
            assert mean_gap(sampled(records), reference(adapter, *tokens, temperature=0.7)) < NOISE
            old = reference(adapters[0] if version else None, *tokens)
            check_sync(pool.logprobs(*tokens), reference(adapter, *tokens), old, tolerance=NOISE)
        assert not list(Path("/dev/shm").glob("triptych-adapter-*"))
    finally:
        pool.close()
    assert gone(pid)


def test_a_pool_that_finds_no_place_says_what_is_missing(cluster: None, model_dir: Path) -> None:
    with pytest.raises(RunError, match=r"2 of 2 rollout engines .* each needs 4 CPU, the cluster has 2 CPU"):
        start(model_dir, placement_timeout_s=3.0, cpus=4)


def test_another_kind_of_engine_is_a_class_and_a_line_of_the_table(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "toy", ToyEngine)
    pool = RolloutPool.start("-0.5", "float32", Rollout(cpus=0), MODEL_LEN, 4, [STOP], engine="toy")
    try:
        pool.sync(b"weights", {}, version=3)
        asked = requests(200)
        records = pool.generate(asked, SAMPLING)
        assert [record.lease for record in records] == [request.lease for request in asked]
        assert {record.versions for record in records} == {(3,)}
        assert {record.engine for record in records} == {0, 1}
        assert pool.logprobs([[5, 6, 7]], [1]) == [[[-0.5, -0.5]]] * 2
        assert pool.replace([b"one", b"and", b"another"], version=4).digest == _digest(b"oneandanother")
        assert {record.versions for record in pool.generate(asked[:8], SAMPLING)} == {(4,)}
        os.kill(pids(pool)[0], signal.SIGKILL)
        assert {record.versions for record in pool.generate(asked, SAMPLING)} == {(4,)}, "a new engine has them too"
    finally:
        pool.close()
