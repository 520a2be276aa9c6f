"""What an artifact folder is allowed to hold, and whether vLLM can serve it."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import UserError
from triptych.models.peft_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FACTS,
    HEAD_WEIGHTS,
    MODEL_WEIGHTS,
    PREFIX,
    largest_rank,
    of_module,
)
from triptych.recipe.method import MERGING

if TYPE_CHECKING:
    from torch import Tensor

MAX_RANK = 64
"""Largest rank that is taken as servable unless the caller says otherwise. An engine that serves a rank rounds it up to
one that vLLM has kernels for, and every adapter in it then costs that rank."""
MAX_BYTES = 8 * 2**30
_SUFFIXES = {".safetensors", ".json", ".jsonl", ".parquet", ".txt", ".md", ".yaml", ".yml", ".jinja", ".model", ".html"}
_NAMES = {"LICENSE", "NOTICE"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_NAME = re.compile(r"[a-z0-9_]{1,40}")
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Ways to draw the first weights that leave the base alone; the others (PiSSA, OLoRA, CorDA, LoftQ) change it."""
_INDICES = ".shira_indices"
"""Which entries of a weight are trained; all else are numbers with a fraction."""
_SERVED_WHOLE = {"classifier", "score"}
_ENTIRE = re.compile(r"\.(embed_tokens|lm_head)\.base_layer\.weight$|\.(score|classifier)\.(weight|bias)$")
"""Entire matrices that vLLM takes, or skips, beside the factors."""
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")


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


def inspect(folder: Path, kind: str, max_rank: int = MAX_RANK) -> str | None:
    """Why vLLM cannot serve the artifact; None if it can.

    `folder` has passed `check_files`. ArtifactError if it is broken or refers to code: a tensor that is not finite,
    shapes that contradict the rank, a malformed file, `auto_map` in a configuration.
    """
    for path in sorted(folder.rglob("*config.json")):
        if "auto_map" in _read_json(path):
            raise ArtifactError(f"{path.name}: auto_map points to Python code, and an artifact never brings code")
    if kind == "model":
        _checked_shapes(folder, MODEL_WEIGHTS)
        return "it is a whole model, not an adapter: serve it as the base (`model.base`) of an endpoint of its own"
    names = _method(folder)
    if len(names) > 1 or (names and not (folder / ADAPTER_CONFIG).is_file()):
        return _inspect_ours(folder, kind, names)
    config = _read_json(folder / ADAPTER_CONFIG)
    shapes = _checked_shapes(folder, ADAPTER_WEIGHTS)
    _check_heads(folder, kind, shapes)
    is_lora = config.get("peft_type") == "LORA"
    stray = _check_pairs(config, shapes[ADAPTER_WEIGHTS]) if is_lora else []
    if kind == "classifier":
        return "it is a classifier: the endpoint generates text, it names no classes"
    if kind != "lora" or HEAD_WEIGHTS in shapes:
        return (
            "it has a scalar head: the endpoint generates text, it gives no scores"
            if HEAD_WEIGHTS in shapes
            else (f"it is of kind {kind!r}: only adapters of kind 'lora' are served")
        )
    if not is_lora:
        return f"its peft_type is {config.get('peft_type')!r}: vLLM serves LORA only{_instead(names)}"
    return _unsupported(config, max_rank) or (f"vLLM has no place for its tensor {stray[0]}" if stray else None)


def _inspect_ours(folder: Path, kind: str, names: Sequence[str]) -> str:
    """The same, of an adapter that peft has no format for, and of a hybrid, whose parts have a folder each."""
    parts = [f"{name}/{ADAPTER_WEIGHTS}" for name in names] if len(names) > 1 else [ADAPTER_WEIGHTS]
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in parts:
        shapes |= _checked_shapes(folder, part)
    _check_heads(folder, kind, shapes)
    if kind != "lora":
        return f"it is of kind {kind!r}: only adapters of kind 'lora' are served"
    return f"its method is {' + '.join(names)}: vLLM serves LoRA only{_instead(names)}"


def _instead(names: Sequence[str]) -> str:
    """What else can be done with an adapter of these methods."""
    return "; merge it into the base (`adapters merge`)" if names and set(names) <= set(MERGING) else ""


def _method(folder: Path) -> list[str]:
    """The methods of an adapter that Triptych made; none where triptych.json names none."""
    facts = _read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    method = facts.get("method") or []
    parts = method if isinstance(method, list) else [method]
    names = [part.get("name") if isinstance(part, dict) else None for part in parts]
    wrong = [name for name in names if not (isinstance(name, str) and _NAME.fullmatch(name))]
    if wrong:
        raise ArtifactError(f"{FACTS}: {str(wrong[0])[:60]!r} is the name of no method")
    return [str(name) for name in names]


def _check_heads(folder: Path, kind: str, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    if kind == "reward":
        _check_head(folder, shapes)
    if kind == "classifier":
        _check_class_head(folder, shapes)


def _unsupported(config: Mapping[str, Any], max_rank: int) -> str | None:
    """The first feature of a LoRA configuration that vLLM does not serve."""
    init = config.get("init_lora_weights", True)
    others = sorted(set(config.get("modules_to_save") or ()) - _SERVED_WHOLE)
    rank = largest_rank(config)
    refusals = {
        "it uses DoRA (use_dora): merge it into the base, or train plain LoRA": config.get("use_dora"),
        "it trains biases (lora_bias)": config.get("lora_bias"),
        f"it trains biases (bias={config.get('bias')!r})": config.get("bias", "none") != "none",
        f"init_lora_weights={init!r} changed the base's weights: convert it to plain LoRA first": (
            isinstance(init, str) and init.lower() not in _PLAIN_INITS
        ),
        f"it trains whole modules (modules_to_save: {', '.join(others)})": others,
        "it trains single tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "it is an activated LoRA (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        "it replicates layers (layer_replication)": config.get("layer_replication"),
        "it is block-diagonal (use_bdlora)": config.get("use_bdlora"),
        "it uses QA-LoRA (use_qalora)": config.get("use_qalora"),
        f"its rank is {rank}, and {max_rank} is the largest allowed": rank > max_rank,
    }
    return next((reason for reason, applies in refusals.items() if applies), None)


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


def _checked_shapes(folder: Path, needed: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> tensor -> shape, of every safetensors file; ArtifactError at a malformed file or a value not finite."""
    if not (folder / needed).is_file():
        config = ADAPTER_CONFIG if needed == ADAPTER_WEIGHTS else "config.json"
        raise ArtifactError(f"{needed} is missing: the folder of an adapter or model holds {config} and {needed}")
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


def _check_head(folder: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    head = shapes.get(HEAD_WEIGHTS)
    if head is None:
        raise ArtifactError(f"{HEAD_WEIGHTS} is missing: a reward model without its head gives no scores")
    weight = head.get("weight", ())
    if set(head) != {"weight", "bias"} or len(weight) != 2 or weight[0] != 1 or head["bias"] != (1,):
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


def _check_pairs(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Check that LoRA's A and B come in pairs and agree with the rank; the tensors that are neither."""
    default, pattern = config.get("r"), config.get("rank_pattern") or {}
    if not all(isinstance(rank, int) and rank > 0 for rank in (default, *pattern.values())):
        raise ArtifactError(f"{ADAPTER_CONFIG}: r and rank_pattern hold ranks, whole numbers from 1")
    ranks: dict[str, dict[str, int]] = {}
    stray = []
    for key, shape in shapes.items():
        match = _PAIR.fullmatch(key)
        if match is None:
            if not _ENTIRE.search(key):
                stray.append(key)
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
        # An adapter of fused experts (target_parameters) stacks them: its shapes are multiples of the rank.
        stacked = bool(config.get("target_parameters")) and found["A"] % expected == 0
        if found["A"] != found["B"] or (found["A"] != expected and not stacked):
            raise ArtifactError(
                f"{ADAPTER_WEIGHTS}: {module} has rank {found['A']} in lora_A and {found['B']} in lora_B, "
                f"{ADAPTER_CONFIG} says {expected}"
            )
    return stray


def _rank_of(module: str, default: Any, pattern: Mapping[str, int]) -> int:
    try:
        return int(of_module(pattern, module.removeprefix(PREFIX), default))
    except re.error as error:
        raise ArtifactError(f"{ADAPTER_CONFIG}: rank_pattern has what is not a regular expression: {error}") from error
