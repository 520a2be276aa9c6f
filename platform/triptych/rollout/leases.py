"""Leases: requests go out in chunks, and each is answered exactly once, in request order."""

from collections import deque
from collections.abc import Sequence

from triptych.engines.base import RolloutRecord, SampleRequest
from triptych.errors import RunError

LARGEST_CHUNK = 128


def chunked(requests: Sequence[SampleRequest], engines: int) -> list[list[SampleRequest]]:
    """Chunks of nearly equal tokens: the requests, longest prompt first, are dealt round.

    A chunk is one engine's batch, and a larger batch is faster (64 answers of the 135M model by two engines, one core
    each, tokens/s: chunks of 32 383, of 16 328, of 8 253, of 4 179). So few answers make one chunk an engine; of many,
    an idle engine takes the next.
    """
    count = max(min(len(requests), engines), -(-len(requests) // LARGEST_CHUNK))
    shares = shares_of([len(request.prompt_ids) for request in requests], count)
    return [[requests[place] for place in share] for share in shares]


def shares_of(lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` shares of sequences of these lengths, by their places: dealt round, the longest first."""
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [longest_first[number::count] for number in range(count)]


class Leases:
    """The accounting of one call of `generate`."""

    def __init__(self, requests: Sequence[SampleRequest], engines: int) -> None:
        self._order = [request.lease for request in requests]
        if len(set(self._order)) != len(self._order):
            raise RunError("the leases of one call must differ")
        self._waiting = deque(chunked(requests, engines))
        self._answers: dict[str, RolloutRecord] = {}

    def take(self) -> list[SampleRequest] | None:
        """The next chunk to sample, or None when all are out or answered."""
        return self._waiting.popleft() if self._waiting else None

    def give_back(self, chunk: list[SampleRequest]) -> None:
        """Return the chunk of a lost engine: the next idle engine takes its unanswered requests."""
        unanswered = [request for request in chunk if request.lease not in self._answers]
        if unanswered:
            self._waiting.appendleft(unanswered)

    def answer(self, chunk: list[SampleRequest], records: list[RolloutRecord]) -> None:
        """Store the records of a chunk.

        Raises:
            RunError: a record for another lease than asked, or a second one for the same lease.
        """
        if [record.lease for record in records] != [request.lease for request in chunk]:
            raise RunError("a rollout engine answered other leases than it was given")
        for record in records:
            if record.lease in self._answers:
                raise RunError(f"lease {record.lease} was answered twice")
            self._answers[record.lease] = record

    @property
    def done(self) -> bool:
        """True once every lease is answered."""
        return len(self._answers) == len(self._order)

    def records(self) -> list[RolloutRecord]:
        """The records of all requests, in request order."""
        return [self._answers[lease] for lease in self._order]
