"""An adapter's folder and its base, made into one whole model."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from triptych.errors import UserError
from triptych.methods.merge import divergence, merged_model
from triptych.models.adapter import load_adapter
from triptych.models.base import fingerprint, load_causal_lm, resolve_base
from triptych.models.full import save_model
from triptych.models.peft_files import FACTS
from triptych.recipe.model import Model

_KEPT = ("base", "base_fingerprint", "recipe")


def merge_adapter(adapter: Path, target: Path, base: str, dtype: str, limit: float) -> float | None:
    """Write the base with the adapter in its weights to a new folder; the divergence, where the base was quantized.

    Raises:
        UserError: the folder exists, the base is another than the adapter's, its method does not merge, or, from a
            quantized base, the merged model differs by more than `limit` nats a token.
    """
    if target.exists():
        raise UserError(f"{target} exists already: name a new folder")
    facts: dict[str, Any] = json.loads((adapter / FACTS).read_text())
    folder = resolve_base(Model(base=base))
    if fingerprint(folder) != facts["base_fingerprint"]:
        raise UserError(f"--base: {base} is another model than {facts['base']}, on which the adapter was trained")
    found, quantization = load_adapter(adapter, "policy"), facts.get("quantization")
    changes, weights = merged_model(folder, found.method, found.weights, quantization)
    target.mkdir(parents=True)
    about = {key: facts[key] for key in _KEPT if key in facts}
    save_model(target, folder, weights, getattr(torch, dtype), about, changes)
    if quantization is None:
        return None
    merged = load_causal_lm(target, getattr(torch, dtype)).float()
    changed = divergence(folder, found.method, found.weights, quantization, merged)
    if changed > limit:
        shutil.rmtree(target)
        raise UserError(
            f"merged in {dtype} it differs from the adapter on its {quantization} base by {changed:.4f} nats a token; "
            f"allowed: up to {limit} (--limit), or another --dtype"
        )
    return changed
