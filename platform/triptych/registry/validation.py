"""Checks of an artifact folder before it is stored: no code, no links, sound tensors that fit its configuration."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import UserError
from triptych.models.adapter_effect import PROBES_FILE, Probes, read_probes, weights_digest
from triptych.models.peft_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FACTS,
    HEAD_WEIGHTS,
    LORA_FACTOR,
    MODEL_WEIGHTS,
    PREFIX,
    SCORE,
    is_whole,
    of_module,
)
from triptych.registry.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 8 * 2**30
_SUFFIXES = {".safetensors", ".json", ".jsonl", ".parquet", ".txt", ".md", ".yaml", ".yml", ".jinja", ".model", ".html"}
_NAMES = {"LICENSE", "NOTICE"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_NAME = re.compile(r"[a-z0-9_]{1,40}")
_INDICES = ".shira_indices"
"""Suffix of tensors that list a weight's trained entries; all other tensors are floating-point."""
_ADAPTERS = ("policy", "reward_model", "classifier")


class ArtifactError(UserError):
    """A folder that must never be stored: unsafe or broken. The message names the file and the reason."""


def check_files(folder: Path, max_bytes: int = MAX_BYTES) -> list[Path]:
    """The files of an artifact folder, sorted; ArtifactError at a link, a kind of file not kept, or too many bytes."""
    if not folder.is_dir() or folder.is_symlink():
        raise ArtifactError(f"{folder} is not a folder")
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(f"{name} is a link or a device: an artifact holds plain files only")
        if path.is_dir():
            continue
        if path.suffix in _PICKLES:
            raise ArtifactError(f"{name} may hold code (pickle): save tensors as .safetensors and remove it")
        if path.name.startswith(".") or (path.suffix not in _SUFFIXES and path.name not in _NAMES):
            raise ArtifactError(f"{name}: an artifact holds {', '.join(sorted(_SUFFIXES | _NAMES))} files only")
        files.append(path)
    size = sum(path.stat().st_size for path in files)
    if size > max_bytes:
        raise ArtifactError(f"{size:,} bytes are more than an artifact may have ({max_bytes:,})")
    return files


def check_content(folder: Path, kind: str) -> Facts:
    """The facts of an artifact that has passed `check_files`.

    ArtifactError if it is broken or refers to code: a tensor that is not finite, shapes that contradict the rank, a
    malformed file, `auto_map` in a configuration.
    """
    for path in sorted(folder.rglob("*config.json")):
        if "auto_map" in _read_json(path):
            raise ArtifactError(f"{path.name}: auto_map points to Python code, and an artifact never brings code")
    methods = _methods(folder)
    needed = _needed(folder, kind, methods)
    configs = {path.relative_to(folder).as_posix(): _read_json(path) for path in folder.rglob(ADAPTER_CONFIG)}
    facts = Facts(methods, configs, _checked_shapes(folder, needed), _checked_probes(folder))
    if kind == "reward_model":
        _check_head(folder, facts.shapes)
    if kind == "classifier":
        _check_class_head(folder, facts.shapes)
    if kind in _ADAPTERS and facts.config is not None and facts.config.get("peft_type") == "LORA":
        _check_pairs(facts.config, facts.shapes[ADAPTER_WEIGHTS])
    return facts


def _needed(folder: Path, kind: str, methods: Sequence[str]) -> list[str]:
    """The tensor files without which the folder is no artifact of its kind."""
    if kind == "model" or (kind in _ADAPTERS and is_whole(folder)):
        return [MODEL_WEIGHTS]
    if kind not in _ADAPTERS:
        return []
    if len(methods) > 1:
        return [f"{name}/{ADAPTER_WEIGHTS}" for name in methods]
    if not methods:  # made elsewhere, so in peft's format
        _read_json(folder / ADAPTER_CONFIG)
    return [ADAPTER_WEIGHTS]


def _methods(folder: Path) -> tuple[str, ...]:
    """The methods of an adapter that Triptych made; none where triptych.json names none."""
    facts = _read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    method = facts.get("method") or []
    parts = method if isinstance(method, list) else [method]
    names = [part.get("name") if isinstance(part, dict) else None for part in parts]
    wrong = [name for name in names if not (isinstance(name, str) and _NAME.fullmatch(name))]
    if wrong:
        raise ArtifactError(f"{FACTS}: {str(wrong[0])[:60]!r} is the name of no method")
    return tuple(str(name) for name in names)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path.name} is missing: an adapter folder holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.name} holds no JSON object")
    return content


def _checked_shapes(folder: Path, needed: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> tensor -> shape, of every safetensors file; ArtifactError at a malformed file or a value not finite."""
    for name in needed:
        if not (folder / name).is_file():
            config = ADAPTER_CONFIG if name == ADAPTER_WEIGHTS else "config.json"
            raise ArtifactError(f"{name} is missing: the folder of an adapter or model holds {config} and {name}")
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        shapes[name] = {}
        for key, tensor in _tensors(path):
            if not (tensor.is_floating_point() or key.endswith(_INDICES)):
                raise ArtifactError(f"{name}: {key} has type {tensor.dtype}; weights are floating-point numbers")
            if not tensor.float().isfinite().all():
                raise ArtifactError(f"{name}: {key} has values that are not finite (NaN or Inf)")
            shapes[name][key] = tuple(tensor.shape)
    return shapes


def _tensors(path: Path) -> Iterator[tuple[str, "Tensor"]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} is not a sound safetensors file: {error}") from error


def _checked_probes(folder: Path) -> Probes | None:
    """The probes of an adapter's folder; ArtifactError where they are malformed, or those of other weights."""
    file = folder / PROBES_FILE
    if not file.is_file():
        return None
    try:
        probes = read_probes(file.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{PROBES_FILE}: {error}; remove the file, or write it anew") from None
    if probes.weights != weights_digest(folder):
        raise ArtifactError(
            f"{PROBES_FILE}: weights: it was measured with another {ADAPTER_WEIGHTS} than the one beside it; remove "
            f"{PROBES_FILE}, and measure it by `triptych adapters verify --base`"
        )
    return probes


def _check_head(folder: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    head = shapes.get(HEAD_WEIGHTS)
    if is_whole(folder):
        weight = shapes[MODEL_WEIGHTS].get(SCORE, ())
        if len(weight) != 2 or weight[0] != 1:
            raise ArtifactError(f"{MODEL_WEIGHTS}: {SCORE} is the head of a reward model, [1, d], not {list(weight)}")
    elif head is None:
        raise ArtifactError(f"{HEAD_WEIGHTS} is missing: a reward model without its head gives no scores")
    elif set(head) != {"weight", "bias"} or head["weight"] != (1, *head["weight"][1:2]) or head["bias"] != (1,):
        raise ArtifactError(f"{HEAD_WEIGHTS} holds weight [1, d] and bias [1], not {dict(head)}")
    normalization = _read_json(folder / FACTS).get("normalization")
    if not isinstance(normalization, dict) or not (
        _finite(normalization.get("mean")) and _finite(normalization.get("std")) and normalization["std"] > 0
    ):
        raise ArtifactError(f"{FACTS}: normalization needs a mean and a std above 0, not {normalization}")


def _check_class_head(folder: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    head = shapes.get(HEAD_WEIGHTS)
    if head is None:
        raise ArtifactError(f"{HEAD_WEIGHTS} is missing: a classifier without its head names no classes")
    labels = _read_json(folder / FACTS).get("labels")
    if not isinstance(labels, list) or len({label for label in labels if isinstance(label, str)}) != len(labels):
        raise ArtifactError(f"{FACTS}: labels holds the names of the classes, each once, not {labels}")
    weight = head.get("weight", ())
    if set(head) != {"weight"} or len(weight) != 2 or weight[0] != len(labels):
        raise ArtifactError(f"{HEAD_WEIGHTS} holds weight [{len(labels)}, d], one row for each class, not {dict(head)}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_pairs(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that LoRA's A and B come in pairs and agree with the rank."""
    default, pattern = config.get("r"), config.get("rank_pattern") or {}
    if not all(isinstance(rank, int) and rank > 0 for rank in (default, *pattern.values())):
        raise ArtifactError(f"{ADAPTER_CONFIG}: r and rank_pattern hold ranks, whole numbers from 1")
    ranks: dict[str, dict[str, int]] = {}
    for key, shape in shapes.items():
        match = LORA_FACTOR.fullmatch(key)
        if match is None:
            continue
        if len(shape) < 2:
            raise ArtifactError(f"{ADAPTER_WEIGHTS}: {key} has shape {list(shape)}; LoRA's factors are matrices")
        ranks.setdefault(match["module"], {})[match["side"]] = shape[0] if match["side"] == "A" else shape[1]
    if not ranks:
        raise ArtifactError(f"{ADAPTER_WEIGHTS} holds no LoRA tensors")
    for module, found in ranks.items():
        expected = _rank_of(module, default, pattern)
        if set(found) != {"A", "B"}:
            raise ArtifactError(f"{ADAPTER_WEIGHTS}: {module} has only one of lora_A and lora_B")
        # An adapter of fused experts (target_parameters) stacks them: its shapes are multiples of the rank. Its names
        # leave the parameter out, by which a pattern may give it a rank.
        possible = {default, *pattern.values()} if config.get("target_parameters") else set()
        stacked = any(found["A"] % rank == 0 for rank in possible)
        if found["A"] != found["B"] or (found["A"] != expected and not stacked):
            raise ArtifactError(
                f"{ADAPTER_WEIGHTS}: {module} has rank {found['A']} in lora_A and {found['B']} in lora_B, "
                f"{ADAPTER_CONFIG} says {expected}"
            )


def _rank_of(module: str, default: Any, pattern: Mapping[str, int]) -> int:
    try:
        return int(of_module(pattern, module.removeprefix(PREFIX), default))
    except re.error as error:
        raise ArtifactError(f"{ADAPTER_CONFIG}: rank_pattern has what is not a regular expression: {error}") from error
