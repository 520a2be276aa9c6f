"""How new weights reach an engine that runs: merged into the base model, or as an adapter.

`merged` computes W + scale * B @ A in float32 and gives vLLM a whole checkpoint; nothing about the engine's speed
changes. `adapter` moves a few megabytes and lets vLLM apply A and B beside W in every layer. Of methods other than LoRA
the engine gets the new weights themselves (`REPLACED`).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors

from triptych.errors import RunError
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_WEIGHTS, PREFIX, of_module
from triptych.rollout.record import Ack

SyncMode = Literal["merged", "adapter"]
REPLACED: dict[str, Any] = {"weights": "replaced"}
"""The configuration of an adapter that holds whole new weights, by their names in the checkpoint."""


def resolve_mode(sync: Literal["auto", "merged", "adapter"], on_gpu: bool) -> SyncMode:
    """A CPU engine about halves its speed with an adapter on; a GPU engine hardly notices, and merging moves it all."""
    if sync != "auto":
        return sync
    return "adapter" if on_gpu else "merged"


def adapter_digest(adapter: bytes, config: dict[str, Any]) -> str:
    """sha256 over the safetensors content and the canonical config."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    digest.update(adapter)
    return digest.hexdigest()


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder."""
    index = model_dir / f"{MODEL_WEIGHTS}.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [model_dir / name for name in names]
    return [model_dir / MODEL_WEIGHTS]


def lora_scale(config: dict[str, Any], module: str = "") -> float:
    """alpha / r, or alpha / sqrt(r) with rslora (Kalajdzievski 2023, arXiv 2312.03732), of one module."""
    r = of_module(config.get("rank_pattern"), module, config["r"])
    alpha = of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / r**0.5 if config.get("use_rslora") else alpha / r)


def lora_pairs(adapter: bytes, config: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base weight name -> (A [r, in], B [out, r]) of a peft adapter.

    Raises:
        RunError: the adapter has parts that merging would leave out.
    """
    unsupported = [k for k in ("use_dora", "modules_to_save") if config.get(k)]
    if config.get("fan_in_fan_out") or config.get("bias", "none") != "none":
        unsupported.append("fan_in_fan_out or bias")
    if unsupported:
        raise RunError(f"an adapter with {', '.join(unsupported)} cannot be merged into rollout engines")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_safetensors(adapter).items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B"):
            raise RunError(
                f"the adapter's tensor {name} is no part of a LoRA: it cannot be merged into rollout engines"
            )
        halves.setdefault(module.removeprefix(PREFIX) + ".weight", {})[half] = tensor
    for name, pair in halves.items():
        for half in ("lora_A", "lora_B"):
            if half not in pair:
                raise RunError(f"the adapter has a part for {name} without {half}")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}


def merged_weights(
    model_dir: Path, adapter: bytes, config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the base checkpoint, with the adapter added in float32 before the cast to `dtype`.

    Raises:
        RunError: a part of the adapter belongs to no tensor of the checkpoint (it would silently be lost).
    """
    replaced = load_safetensors(adapter) if config == REPLACED else {}
    pairs = {} if config == REPLACED else lora_pairs(adapter, config)
    for file in checkpoint_files(model_dir):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                weight = tensors.get_tensor(name)
                if name in pairs:
                    a, b = (half.to(device, torch.float32) for half in pairs.pop(name))
                    scale = lora_scale(config, name.removesuffix(".weight"))
                    weight = torch.addmm(weight.float(), b, a, alpha=scale)
                yield name, replaced.pop(name, weight).to(device, dtype)
    for name in (*pairs, *replaced):
        raise RunError(f"the base model in {model_dir} has no {name}, which the adapter changes")


class MergeExtension:
    """Methods that vLLM mixes into its worker: they run where the weights are."""

    model_runner: Any

    def triptych_merge(self, model_dir: str, adapter: bytes, config: dict[str, Any]) -> None:
        """Replace every weight by base plus adapter.

        The whole checkpoint is loaded each time: vLLM fuses q, k and v into one matrix and prepacks it on CPU, so a
        part of it cannot be replaced alone.
        """
        model_config = self.model_runner.model_config
        device = torch.device(self.model_runner.device)
        with torch.inference_mode():
            weights = merged_weights(Path(model_dir), adapter, config, model_config.dtype, device)
            self.model_runner.reload_weights(weights_iterator=weights)


class WeightSync(Protocol):
    """What one engine does with new weights."""

    request: Any
    """The LoRARequest of every generation, or None."""

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the policy of this engine; nothing of the old one answers afterwards."""


class MergedSync:
    """Base plus adapter becomes the engine's model."""

    request = None

    def __init__(self, llm: Any, model_dir: str) -> None:
        self._llm, self._model_dir = llm, model_dir

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        self._llm.collective_rpc("triptych_merge", args=(self._model_dir, adapter, config))
        if not self._llm.reset_prefix_cache():  # keys and values of the old weights
            raise RunError("the engine keeps keys and values of the old weights: its prefix cache is in use")
        return Ack(version, adapter_digest(adapter, config))


class AdapterSync:
    """The adapter goes through a folder in memory, under a name, number and path that are never used twice.

    vLLM's `load_inplace` is avoided: its prefix cache would still hold keys and values of the old adapter.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._count = 0
        self.request: Any = None

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        from vllm.lora.request import LoRARequest

        self._count += 1
        shm = Path("/dev/shm")  # noqa: S108 (the folder gets a random name and mode 0700)
        folder = Path(tempfile.mkdtemp(prefix="triptych-adapter-", dir=shm if shm.is_dir() else None))
        try:
            (folder / ADAPTER_WEIGHTS).write_bytes(adapter)
            (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
            request = LoRARequest(f"policy-{self._count}", self._count, str(folder))
            self._llm.llm_engine.add_lora(request)
            if self.request is not None:
                self._llm.llm_engine.remove_lora(self.request.lora_int_id)
            resident = set(self._llm.llm_engine.list_loras())
            if resident != {self._count}:
                raise RunError(f"the engine holds adapters {sorted(resident)} where only {self._count} was expected")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.request = request
        return Ack(version, adapter_digest(adapter, config))
