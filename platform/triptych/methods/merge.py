"""Merging of a trained method into the base's weights, for engines and tools that know no adapters."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from triptych.errors import UserError
from triptych.methods.kept import LEAST, Kept, chosen_dtype, kept_in
from triptych.methods.merged import Merged, merged_model
from triptych.methods.merged_by_peft import merged_by_peft
from triptych.models.adapter import adapter_facts, load_adapter
from triptych.models.base import fingerprint, load_causal_lm, plain_tokenizer, resolve_base
from triptych.models.full import save_model
from triptych.models.identity import difference
from triptych.recipe.model import Dtype, Model

TEXTS = (
    "The film is a warm and funny story about a family that learns to listen.",
    "Question: A train leaves at 9:40 and takes 85 minutes. When does it arrive? Answer: At 11:05.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In 1969 two people walked on the Moon; hundreds of millions watched them on television.",
)
"""Texts on which `divergence` compares a merged model with its adapter."""
_KEPT = ("base", "base_fingerprint", "chat_template", "hub_base", "recipe")
"""Facts of an adapter that its merged model keeps."""


@dataclass(frozen=True)
class MergeReport:
    """Precision of a merged model, and its distance from the adapter."""

    kept: Kept
    divergence: float
    """KL divergence, nats a token, of the merged model from the adapter on its base."""


def merge_adapter(
    adapter: Path, target: Path, base: str, trained_on: Mapping[str, Any], dtype: Dtype | None, limit: float
) -> MergeReport:
    """Write the base with the adapter in its weights to a new folder.

    Args:
        adapter: folder of the adapter.
        target: the new folder.
        base: name or folder of the base.
        trained_on: facts of the adapter that its folder may not hold: `base`, `base_fingerprint`.
        dtype: precision of the weights; None: the narrowest that keeps the change.
        limit: largest divergence, nats a token.

    Raises:
        UserError: the folder exists, the base is another than the adapter's, its method does not merge, the precision
            loses a part of the change, or the merged model differs by more than `limit`.
    """
    if target.exists():
        raise UserError(f"{target} exists already: name a new folder")
    facts = dict(trained_on) | adapter_facts(adapter)
    folder = _base_of(facts, base)
    merged, quantization = _merged(adapter, folder, facts), facts.get("quantization")
    kept, trained = _kept(merged, folder, dtype), log_probabilities(merged.model, folder)
    about = {key: facts[key] for key in _KEPT if key in facts}
    target.mkdir(parents=True)
    save_model(target, folder, merged.weights, getattr(torch, kept.dtype), about, merged.config)
    del merged  # so that one model is in memory at a time
    changed = divergence(trained, log_probabilities(load_causal_lm(target, torch.float32), folder))
    if not changed <= limit:
        shutil.rmtree(target)
        where = f"its {quantization} base" if quantization else "its base"
        raise UserError(
            f"merged in {kept.dtype} it differs from the adapter on {where} by {changed:.4f} nats a token; "
            f"allowed: up to {limit} (--limit), or another --dtype"
        )
    return MergeReport(kept, changed)


def _merged(adapter: Path, base: Path, facts: Mapping[str, Any]) -> Merged:
    if not adapter_facts(adapter):
        return merged_by_peft(base, adapter)
    found = load_adapter(adapter, "policy")
    return merged_model(base, found.method, found.weights, facts.get("quantization"))


def _base_of(facts: Mapping[str, Any], base: str) -> Path:
    folder = resolve_base(Model(base=base))
    if reason := difference(facts["base_fingerprint"], fingerprint(folder, facts.get("chat_template"))):
        raise UserError(
            f"--base: {base} is another model than {facts['base']}, on which the adapter was trained: {reason}"
        )
    return folder


def _kept(merged: Merged, base: Path, dtype: Dtype | None) -> Kept:
    """Share of the change that the precision keeps. UserError: a part of it is lost."""
    after = {name: merged.weights[name] for name in merged.before}
    if dtype is None:
        return chosen_dtype(AutoConfig.from_pretrained(base).model_type, merged.before, after)
    kept = kept_in(dtype, merged.before, after)
    if kept.enough:
        return kept
    if math.isnan(kept.share):
        lost = f"has no room for all values of {kept.tensor}"
    else:
        lost = (
            f"keeps {kept.share:.3f} of the adapter's change ({kept.least:.3f} in {kept.tensor}): the rest is too "
            "small to move weights that are rounded so"
        )
    wider: tuple[Dtype, ...] = ("float16", "float32")
    allowed = [one for one in wider if kept_in(one, merged.before, after).enough]
    raise UserError(f"--dtype: {dtype} {lost}; allowed: what keeps {LEAST} of it: {', '.join(allowed)}")


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, base: Path) -> list[Tensor]:
    """Log-probabilities of the next token, [T, V], in each of `TEXTS` as the base's tokenizer cuts it."""
    tokenizer = plain_tokenizer(base)
    texts = (torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS)
    return [model(input_ids=ids).logits[0].float().log_softmax(dim=-1) for ids in texts]


def divergence(trained: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """KL divergence, nats a token, of one model's `log_probabilities` from another's."""
    pairs = zip(trained, found, strict=True)
    total = sum(float(F.kl_div(other, one, log_target=True, reduction="sum")) for one, other in pairs)
    return max(total, 0.0) / sum(map(len, trained))  # rounding gives equal models something below zero
