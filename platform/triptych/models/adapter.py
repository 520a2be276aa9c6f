"""Adapter folders: peft's two files, and triptych.json with what peft does not say."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import UserError
from triptych.models.heads import ScalarHead

_HEAD = "head.safetensors"
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a reward model's scores on its training answers."""

    mean: float
    std: float


@dataclass(frozen=True)
class Adapter:
    """A trained adapter as it lies in a folder."""

    config: LoraConfig
    weights: dict[str, Tensor]
    kind: str
    """`lora` or `reward`."""
    head: dict[str, Tensor] | None = None
    """weight [1, d] and bias [1] of a reward model."""
    normalization: Normalization | None = None

    def scalar_head(self) -> ScalarHead:
        """The head of a reward model, as a module."""
        if self.head is None:
            raise UserError("this adapter has no scalar head: it is not a reward model")
        head = ScalarHead(self.head["weight"].shape[1])
        head.load(self.head["weight"], self.head["bias"])
        return head


def peft_json(config: LoraConfig) -> dict[str, Any]:
    """What stands in adapter_config.json: plain JSON, no path of this machine."""
    values = config.to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in values.items()
    }


def save_adapter(folder: Path, adapter: Adapter, about: Mapping[str, Any]) -> None:
    """Write an adapter folder; `about` (base, base_fingerprint, recipe digest) goes into triptych.json."""
    config = peft_json(adapter.config)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file({k: v.contiguous() for k, v in adapter.weights.items()}, folder / _WEIGHTS, metadata={"format": "pt"})
    facts: dict[str, Any] = dict(about) | {"kind": adapter.kind}
    if adapter.head is not None:
        save_file({k: v.contiguous() for k, v in adapter.head.items()}, folder / _HEAD)
    if adapter.normalization is not None:
        facts["normalization"] = asdict(adapter.normalization)
    (folder / "triptych.json").write_text(json.dumps(facts, indent=2, sort_keys=True))


def load_adapter(folder: Path, kind: str) -> Adapter:
    """Read an adapter folder.

    Raises:
        UserError: it is not of this kind; a reward model's head or normalisation is absent.
    """
    facts = json.loads((folder / "triptych.json").read_text())
    if facts["kind"] != kind:
        raise UserError(f"{folder.name}: an adapter of kind {facts['kind']!r}, where {kind!r} is needed")
    config = LoraConfig.from_pretrained(str(folder))
    weights = load_file(folder / _WEIGHTS)
    if kind != "reward":
        return Adapter(config, weights, kind)
    if not (folder / _HEAD).is_file() or "normalization" not in facts:
        raise UserError(f"{folder}: a reward model without its head ({_HEAD}) or normalisation; train it again")
    head = load_file(folder / _HEAD)
    return Adapter(config, weights, kind, head, Normalization(**facts["normalization"]))
