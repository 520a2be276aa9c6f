"""Adapter folders: peft's two files, and triptych.json with what peft does not say.

An ensemble's folder is its first member's; the others lie in it as `member-1`, `member-2`, ..., each in the same form.
"""

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
_FACTS = "triptych.json"


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
    """`lora`, `reward` or `classifier`."""
    head: dict[str, Tensor] | None = None
    """weight [1, d] and bias [1] of a reward model; weight [classes, d] of a classifier."""
    normalization: Normalization | None = None
    """Of the ensemble's score, where there is one."""
    others: tuple["Adapter", ...] = ()
    """The further members of an ensemble of reward models; its score is the mean over this one and them."""
    labels: tuple[str, ...] = ()
    """The classes of a classifier, in the order of its head."""

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
    folder.mkdir(exist_ok=True)
    config = peft_json(adapter.config)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file({k: v.contiguous() for k, v in adapter.weights.items()}, folder / _WEIGHTS, metadata={"format": "pt"})
    facts: dict[str, Any] = dict(about) | {"kind": adapter.kind}
    if adapter.head is not None:
        save_file({k: v.contiguous() for k, v in adapter.head.items()}, folder / _HEAD)
    if adapter.normalization is not None:
        facts["normalization"] = asdict(adapter.normalization)
    if adapter.labels:
        facts["labels"] = list(adapter.labels)
    if adapter.others:
        facts["members"] = 1 + len(adapter.others)
    for number, member in enumerate(adapter.others, start=1):
        save_adapter(_member(folder, number), member, about)
    (folder / _FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True))


def load_adapter(folder: Path, kind: str) -> Adapter:
    """Read an adapter folder.

    Raises:
        UserError: it is not of this kind; a reward model's head, normalisation or member is absent, or a classifier's
            head or labels.
    """
    if not (folder / _FACTS).is_file():
        raise UserError(f"{folder}: not an adapter of Triptych, or a part of one is missing: no {_FACTS}")
    facts = json.loads((folder / _FACTS).read_text())
    if facts["kind"] != kind:
        raise UserError(f"{folder.name}: an adapter of kind {facts['kind']!r}, where {kind!r} is needed")
    config = LoraConfig.from_pretrained(str(folder))
    weights = load_file(folder / _WEIGHTS)
    if kind == "classifier":
        if not (folder / _HEAD).is_file() or "labels" not in facts:
            raise UserError(f"{folder}: a classifier without its head ({_HEAD}) or labels; train it again")
        return Adapter(config, weights, kind, load_file(folder / _HEAD), labels=tuple(facts["labels"]))
    if kind != "reward":
        return Adapter(config, weights, kind)
    if not (folder / _HEAD).is_file() or "normalization" not in facts:
        raise UserError(f"{folder}: a reward model without its head ({_HEAD}) or normalisation; train it again")
    head, normalization = load_file(folder / _HEAD), Normalization(**facts["normalization"])
    others = tuple(load_adapter(_member(folder, number), kind) for number in range(1, facts.get("members", 1)))
    return Adapter(config, weights, kind, head, normalization, others)


def _member(folder: Path, number: int) -> Path:
    return folder / f"member-{number}"
