"""Files of an adapter folder, and the rules by which peft reads its configuration. No torch, no peft.

peft's own two files are the configuration and the weights; Triptych adds the facts, and a head where there is one.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
"""A reward model's or a classifier's head."""
MODEL_WEIGHTS = "model.safetensors"
"""A whole model, where it is one file."""
FACTS = "triptych.json"
"""Facts that peft's files do not hold: kind, base, base_fingerprint, method."""
PREFIX = "base_model.model."
"""Prefix of the names of a model's modules, in peft's files."""

LORA_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
"""Name of a LoRA's A or B."""

Value = TypeVar("Value")


def of_module(patterns: Mapping[str, Value] | None, module: str, default: Value) -> Value:
    """The value of one module in `rank_pattern` or `alpha_pattern`.

    peft's rule: the first key that, as a regular expression, matches the whole name or what stands after one of its
    dots. `module` is named without `PREFIX`.

    Raises:
        re.error: a key is not a regular expression.
    """
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of a LoRA's modules, by its configuration."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
