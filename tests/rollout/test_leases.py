"""Accounting of requests: every lease once, in order, whoever answers."""

import random

import pytest

from triptych.engines.base import RolloutRecord, SampleRequest
from triptych.errors import RunError
from triptych.rollout.leases import LARGEST_CHUNK, Leases, chunked


def requests(count: int) -> list[SampleRequest]:
    draw = random.Random(count)
    return [SampleRequest(f"lease-{i}", (1,) * draw.randrange(1, 100), i) for i in range(count)]


def record(request: SampleRequest, engine: int = 0) -> RolloutRecord:
    return RolloutRecord(request.lease, request.prompt_ids, (5,), (-1.0,), (0,), "length", request.seed, engine)


@pytest.mark.parametrize("count", [0, 1, 3, 64, 1000])
@pytest.mark.parametrize("engines", [1, 2, 5])
def test_chunks_hold_every_request_once(count: int, engines: int) -> None:
    asked = requests(count)
    chunks = chunked(asked, engines)
    assert sorted(r.lease for chunk in chunks for r in chunk) == sorted(r.lease for r in asked)
    assert all(0 < len(chunk) <= LARGEST_CHUNK for chunk in chunks)
    assert len(chunks) >= min(count, engines), "no engine without work"


def test_chunks_are_balanced_in_tokens() -> None:
    sizes = [sum(len(r.prompt_ids) for r in chunk) for chunk in chunked(requests(64), engines=2)]
    assert max(sizes) < 1.15 * min(sizes)


def test_answers_come_back_in_request_order_after_a_loss() -> None:
    asked = requests(40)
    leases = Leases(asked, engines=5)
    lost = leases.take()
    assert lost
    leases.give_back(lost)
    chunks = []
    while chunk := leases.take():
        chunks.append(chunk)
    assert chunks[0] == lost, "what was lost goes first"
    for number, chunk in enumerate(reversed(chunks)):
        assert not leases.done
        leases.answer(chunk, [record(request, number) for request in chunk])
    assert leases.done
    assert [r.lease for r in leases.records()] == [r.lease for r in asked]


def test_only_unanswered_leases_are_given_out_again() -> None:
    leases = Leases(requests(4), engines=1)
    chunk = leases.take()
    assert chunk
    leases.answer(chunk[:1], [record(chunk[0])])
    leases.give_back(chunk)
    assert leases.take() == chunk[1:]


def test_a_second_or_foreign_answer_is_refused() -> None:
    leases = Leases(requests(8), engines=2)
    first, second = leases.take(), leases.take()
    assert first
    assert second
    leases.answer(first, [record(request) for request in first])
    with pytest.raises(RunError, match="answered twice"):
        leases.answer(first, [record(request) for request in first])
    with pytest.raises(RunError, match="other leases"):
        leases.answer(second, [record(request) for request in first])
    with pytest.raises(RunError, match="other leases"):
        leases.answer(second, [record(request) for request in second[:-1]])


def test_equal_leases_are_refused() -> None:
    with pytest.raises(RunError, match="must differ"):
        Leases([SampleRequest("a", (1,), 0), SampleRequest("a", (1,), 1)], engines=1)
