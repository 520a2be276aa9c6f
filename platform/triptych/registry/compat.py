"""Compatibility with the version before: its word for a kind, and its verdict on an artifact, in columns it reads.

That version froze at registration whether its endpoint, vLLM with LoRA, can serve an artifact. Its processes may work
on the same database, so the columns `kind` and `why_not` are filled as it would fill them, until a later version drops
them. Nothing else reads this verdict where an artifact's facts can be had.
"""

from triptych.artifact_kinds import former_kind
from triptych.models.peft_files import ADAPTER_WEIGHTS
from triptych.models.vllm_lora import unserved_setting, unserved_tensor
from triptych.registry.facts import Facts

MAX_RANK = 64
"""Largest rank that the version before takes as servable unless registration says otherwise."""


def why_not(kind: str, facts: Facts, max_rank: int = MAX_RANK) -> str | None:
    """The reason why the version before could not serve the artifact; None if it could."""
    if kind == "model":
        return "it is a whole model, not an adapter: serve it as the base (`model.base`) of an endpoint of its own"
    if facts.config is not None and kind == "classifier":
        return "it is a classifier: the endpoint generates text, it names no classes"
    if facts.config is not None and facts.has_head:
        return "it has a scalar head: the endpoint generates text, it gives no scores"
    if kind != "policy":
        return f"it is of kind {former_kind(kind)!r}: only adapters of kind 'lora' are served"
    return _why_no_lora(facts, max_rank)


def _why_no_lora(facts: Facts, max_rank: int) -> str | None:
    instead = "; merge it into the base (`adapters merge`)" if facts.merges else ""
    if facts.config is None:
        return f"its method is {' + '.join(facts.methods)}: vLLM serves LoRA only{instead}"
    if facts.rank is None:
        return f"its peft_type is {facts.config.get('peft_type')!r}: vLLM serves LORA only{instead}"
    if (reason := unserved_setting(facts.config)) is not None:
        return reason
    if facts.rank > max_rank:
        return f"its rank is {facts.rank}, and {max_rank} is the largest allowed"
    return unserved_tensor(facts.shapes[ADAPTER_WEIGHTS])
