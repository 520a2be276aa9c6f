"""Files of an adapter folder, and the rules by which peft reads its configuration. No torch, no peft.

peft's own two files are the configuration and the weights; Triptych adds the facts, and a head where there is one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
"""A reward model's or a classifier's head."""
MODEL_WEIGHTS = "model.safetensors"
"""A whole model, where it is one file."""
SCORE = "score.weight"
"""A whole reward model's head, among its weights."""
WHOLE = "whole"
"""Field of the facts that is true of a reward model that is a whole model."""
FACTS = "triptych.json"
"""Facts that peft's files do not hold: kind, base, base_fingerprint, method."""
PREFIX = "base_model.model."
"""Prefix of the names of a model's modules, in peft's files."""

LORA_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
"""Name of a LoRA's A or B."""

_OF_EXPERTS = re.compile(
    r"(?P<module>.+\.experts(\.base_layer)*)\.(?P<parameter>(?!base_layer\b)[^.]+)(?P<rest>\.lora_[AB]\b.*)"
)
"""Name of a tensor for the parameter of a module of experts, as roles call it: peft leaves the parameter out."""

Value = TypeVar("Value")


def is_whole(folder: Path) -> bool:
    """True of the folder of a reward model that is a whole model."""
    facts = folder / FACTS
    return facts.is_file() and bool(json.loads(facts.read_text(encoding="utf-8")).get(WHOLE))


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


def expert_parameters(names: Iterable[str]) -> list[str]:
    """Parameters of experts that a LoRA's tensors belong to, by the names that roles use; peft's `target_parameters`.

    Those of one module stand in the order in which peft wraps them, the innermost first.
    """
    found = {f"{match['module']}.{match['parameter']}" for name in names if (match := _OF_EXPERTS.fullmatch(name))}
    inside_first = sorted(found, key=lambda name: -name.count(".base_layer"))
    return [name.removeprefix(PREFIX).replace(".base_layer", "") for name in inside_first]


def peft_name(name: str) -> str:
    """A tensor's name in peft's files, by that which roles use."""
    match = _OF_EXPERTS.fullmatch(name)
    return f"{match['module']}{match['rest']}" if match else name


def role_name(name: str, target_parameters: Sequence[str] | None) -> str:
    """A tensor's name as roles use it, by that in peft's files; `target_parameters` as `expert_parameters` gives them.

    peft wraps a module once for each parameter, and `base_layer` leads from a wrapper to the next one inside.
    """
    path, dot, rest = name.partition(".lora_")
    module = path.replace(".base_layer", "").removeprefix(PREFIX)
    own = [parameter for parameter in target_parameters or () if parameter.rpartition(".")[0] == module]
    if not own or not module.endswith(".experts"):
        return name
    return f"{path}.{own[-1 - path.count('.base_layer')].rpartition('.')[2]}{dot}{rest}"
