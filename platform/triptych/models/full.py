"""A whole trained model as a plain Hugging Face folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from triptych.artifact_kinds import kind_fields
from triptych.models.peft_files import FACTS, MODEL_WEIGHTS

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def save_model(
    folder: Path,
    base: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    about: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write weights (Hugging Face names) in `dtype`, with the tokenizer and the configuration of `base`.

    `about`: facts of its origin; a `chat_template` among them replaces the base's. `changes`: fields of config.json
    that differ.
    """
    config = json.loads((base / "config.json").read_text()) | dict(changes or {})
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / MODEL_WEIGHTS, metadata={"format": "pt"})
    for name in _TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if "chat_template" in about:
        (folder / "chat_template.jinja").write_text(about["chat_template"], encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(dict(about) | kind_fields("model"), indent=2, sort_keys=True))
