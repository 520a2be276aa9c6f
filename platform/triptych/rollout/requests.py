"""Requests for sampled answers: each has a lease and a random stream of its own."""

from collections.abc import Sequence

from triptych import storage
from triptych.engines.base import SampleRequest


def requests(prompts: Sequence[Sequence[int]], copies: int, label: str, seed: object) -> list[SampleRequest]:
    """Each prompt `copies` times, those of a prompt together; the leases are `label/prompt/copy`."""
    return [
        request(prompt, f"{label}/{number}/{copy}", seed)
        for number, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def request(prompt: Sequence[int], lease: str, seed: object) -> SampleRequest:
    """One answer to ask for; its random stream follows from `seed` and the lease alone."""
    stream = int(storage.digest_of([seed, lease])[:8], 16)
    return SampleRequest(lease, tuple(prompt), stream)
