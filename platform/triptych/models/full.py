"""A whole trained model as a plain Hugging Face folder."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from triptych.artifact_kinds import ArtifactKind, kind_fields
from triptych.models.peft_files import FACTS, MODEL_WEIGHTS

_GENERATION = "generation_config.json"
_SPECIAL = ("bos_token_id", "pad_token_id", "eos_token_id")
"""Fields of config.json that transformers generates by where there is no file for that."""

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    _GENERATION,
)


BUCKET = 256 * 2**20
"""Bytes of a bucket of weights: as much as is serialized at once."""


def in_buckets(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, limit: int = BUCKET) -> Iterator[bytes]:
    """Contents of safetensors files that hold the weights in `dtype`, in their order; one at least.

    A bucket has at most `limit` bytes of tensors, or is of one tensor that has more.
    """
    bucket: dict[str, Tensor] = {}
    for name, weight in weights:
        tensor = weight.to(dtype).contiguous()
        if bucket and sum(one.nbytes for one in bucket.values()) + tensor.nbytes > limit:
            yield save(bucket)
            bucket = {}
        bucket[name] = tensor
    yield save(bucket)


def save_model(
    folder: Path,
    base: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    about: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
    *,
    kind: ArtifactKind = "model",
    exact: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights (Hugging Face names) in `dtype`, with the tokenizer and the configuration of `base`.

    `about`: facts of its origin; a `chat_template` among them replaces the base's. `changes`: fields of config.json
    that differ. `exact`: further tensors, each in its own precision.
    """
    config = json.loads((base / "config.json").read_text()) | dict(changes or {})
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    tensors |= {name: tensor.contiguous() for name, tensor in (exact or {}).items()}
    save_file(tensors, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
    for name in _TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if "chat_template" in about:
        (folder / "chat_template.jinja").write_text(about["chat_template"], encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(dict(about) | kind_fields(kind), indent=2, sort_keys=True))


def write_ends(folder: Path, ends: Sequence[int]) -> None:
    """Have whoever generates with the model of a folder stop at each of these tokens, where it does not yet.

    transformers and vLLM read them from generation_config.json; all else that it says stays.
    """
    file = folder / _GENERATION
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings = {name: config[name] for name in _SPECIAL if config.get(name) is not None}
    known = settings.get("eos_token_id")
    if set(ends) - set(known if isinstance(known, list) else [known]):
        file.write_text(json.dumps(settings | {"eos_token_id": list(ends)}, indent=2, sort_keys=True), encoding="utf-8")
