"""Does an engine run the adapter that was trained? Its answers to an adapter's probes, asked for as any client asks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.models.adapter_effect import Probes, UnusableError
from triptych.registry import AdapterVersion, Registry
from triptych.registry.facts import UnreadableError

MOST_OTHERS = 8
"""Other versions of a name that an answer is compared with, the newest first."""


@dataclass(frozen=True)
class VersionProbes:
    """A version's probes, and those of the other versions of its name."""

    probes: Probes | None
    others: Mapping[str, Probes]


def version_probes(registry: Registry, version: AdapterVersion) -> VersionProbes:
    """Probes of a version and of the others of its name, as the registry has them."""
    versions = sorted(registry.versions(version.name), key=lambda one: -one.version)
    refs = [one.ref for one in versions if one.ref != version.ref][:MOST_OTHERS]
    found = {ref: probes for ref in refs if (probes := _probes(registry, ref)) is not None}
    return VersionProbes(registry.facts(version.ref).probes, found)


def completion_fields(model: str, sequences: Iterable[Sequence[int]]) -> dict[str, Any]:
    """Fields of a request to /v1/completions for the log-probabilities of given tokens."""
    prompts = [list(row) for row in sequences]
    return {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}


def answered_logprobs(answer: Mapping[str, Any], sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities of all tokens of the sequences but the first of each, from the answer to `completion_fields`.

    Raises:
        UnusableError: it holds none.
    """
    try:
        rows = {choice["index"]: choice["prompt_logprobs"] for choice in answer["choices"]}
        return [
            [_of_token(at, token) for at, token in zip(rows[i][1:], row[1:], strict=True)]
            for i, row in enumerate(sequences)
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        raise UnusableError("are missing: it answered without prompt_logprobs, a field of vLLM's") from None


def _of_token(at: Mapping[Any, Any], token: int) -> float:
    """A token's log-probability; JSON has its id as a string."""
    found = at[token] if token in at else at[str(token)]
    return float(found["logprob"])


def _probes(registry: Registry, ref: str) -> Probes | None:
    try:
        return registry.facts(ref).probes
    except UnreadableError:
        return None
