"""Capabilities of engines: can an artifact be served, by its facts?"""

from collections.abc import Mapping
from dataclasses import dataclass

from triptych.models.identity import difference
from triptych.models.peft_files import ADAPTER_WEIGHTS
from triptych.models.vllm_lora import unserved_setting, unserved_tensor
from triptych.recipe.serve import ServeConfig
from triptych.registry import AdapterVersion, Registry
from triptych.registry.facts import Facts

VLLM = "vllm"
"""Name of the engine that `engine` of a config describes."""

_OTHER_KINDS = {
    "model": "it is a whole model, not an adapter: serve it as the base (`model.base`) of an endpoint of its own",
    "classifier": "it is a classifier: the endpoint generates text, it names no classes",
    "reward_model": "it has a scalar head: the endpoint generates text, it gives no scores",
    "dataset": "it is a data set: the endpoint serves models",
    "evaluation": "it is an evaluation: the endpoint serves models",
}


class MisfitError(Exception):
    """The artifact exists, but this engine cannot serve it; the message is fit for a client."""


@dataclass(frozen=True)
class Capabilities:
    """Abilities of vLLM as an engine of LoRA adapters on one base."""

    max_rank: int = 64
    """Largest rank of an adapter. An engine rounds it up to one that vLLM has kernels for, and every adapter in it then
    costs that rank."""
    limited_by: str | None = None
    """Field of the config that sets `max_rank`."""

    def why_not(self, kind: str, facts: Facts) -> str | None:
        """The reason why the engine cannot serve an artifact of this kind, whatever its base; None if it can."""
        if kind != "policy":
            return _OTHER_KINDS.get(kind, f"it is of kind {kind!r}: only policies are served")
        if facts.has_head:
            return _OTHER_KINDS["reward_model"]
        instead = "; merge it into the base (`adapters merge`)" if facts.merges else ""
        if facts.config is None:
            return f"its method is {' + '.join(facts.methods)}: vLLM serves LoRA only{instead}"
        if facts.rank is None:
            return f"its peft_type is {facts.config.get('peft_type')!r}: vLLM serves LORA only{instead}"
        return (
            unserved_setting(facts.config)
            or self._rank_too_large(facts.rank)
            or unserved_tensor(facts.shapes[ADAPTER_WEIGHTS])
        )

    def _rank_too_large(self, rank: int) -> str | None:
        if rank <= self.max_rank:
            return None
        if self.limited_by is None:
            return f"its rank is {rank}, and {self.max_rank} is the largest allowed"
        return f"its rank is {rank}, and {self.limited_by} is {self.max_rank}"


def engines_of(config: ServeConfig) -> dict[str, Capabilities]:
    """Capabilities of an endpoint's engines, by name; the first serves the base too."""
    return {VLLM: Capabilities(config.engine.max_lora_rank, "engine.max_lora_rank")}


def engine_for(
    version: AdapterVersion, registry: Registry, base_fingerprint: str, engines: Mapping[str, Capabilities]
) -> str:
    """Name of the first engine on this base that can serve the version.

    Raises:
        MisfitError: none can; the reason of the first.
        UnreadableError: the version's facts are not in the registry, and its files cannot be read.
    """
    if reason := difference(version.base_fingerprint, base_fingerprint):
        raise MisfitError(f"it was trained on {reason} ({version.base})")
    facts = registry.facts(version.ref)
    reasons = {name: engine.why_not(version.kind, facts) for name, engine in engines.items()}
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise MisfitError(next(iter(reasons.values())))
