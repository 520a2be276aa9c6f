"""vLLM as an engine, in the process that makes it, so that killing the process kills it all.

New weights reach it in one of two ways. `merged` loads base plus adapter as a whole checkpoint, and nothing about the
engine's speed changes. `adapter` moves a few megabytes and lets vLLM apply A and B beside W in every layer.

Whoever only knows of this engine imports neither torch nor vLLM: they are imported where the model is.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from triptych.engines.base import (
    BASE_VERSION,
    Ack,
    Digested,
    Engine,
    EnginePlan,
    Logprobs,
    RolloutRecord,
    SampleRequest,
    adapter_digest,
)
from triptych.errors import RunError
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triptych.models.weights import without_other_weights
from triptych.recipe.rollout import Sampling
from triptych.recipe.serve import LORA_RANKS


class VllmEngine(Engine):
    """vLLM in this process, offline and token in, token out."""

    def __init__(self, index: int, plan: EnginePlan) -> None:
        from vllm import LLM

        plan = plan.here()
        self._index, self._plan = index, replace(plan, model_dir=str(without_other_weights(Path(plan.model_dir))))
        self._version = BASE_VERSION
        self._llm: Any = LLM(**vllm_arguments(self._plan))
        adapter_mode = self._plan.mode == "adapter"
        self._sync: WeightSync = AdapterSync(self._llm) if adapter_mode else MergedSync(self._llm, self._plan.model_dir)

    @classmethod
    def environment(cls, plan: EnginePlan) -> dict[str, str]:
        """Environment variables for vLLM. OpenMP reads its variables once, and Ray would set one thread."""
        variables = {
            "OMP_NUM_THREADS": str(plan.rollout.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        if not plan.rollout.gpus:
            # vLLM compiles the rank of each sampled token: a C++ compiler and 15 s at the first answer, for nothing.
            variables["TORCHDYNAMO_DISABLE"] = "1"
        return variables

    def sync(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the engine's policy; see `Engine.sync`."""
        ack = self._sync.load(adapter, config, version)
        self._version = ack.version
        return ack

    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        """Replace weights of the engine's model; see `Engine.replace`."""
        ack = self._sync.replace(buckets, version)
        self._version = ack.version
        return ack

    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """Sample an answer to each request; see `Engine.generate`."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=request.seed,
                logprobs=0,  # of the drawn token only
                ignore_eos=True,  # stop_token_ids alone decide
                stop_token_ids=list(self._plan.stop_token_ids),
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self._run([request.prompt_ids for request in requests], params)
        return [self._record(request, output.outputs[0]) for request, output in zip(requests, outputs, strict=True)]

    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """Teacher-forced log-probabilities; see `Engine.logprobs`.

        vLLM applies no temperature to prompt tokens, whatever its logprobs_mode; and it reads no cached prefix for
        such a request, so every position is computed with the weights of now.
        """
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False)
        outputs = self._run([tuple(sequence) for sequence in sequences], [params] * len(sequences))
        return [
            [output.prompt_logprobs[t][sequence[t]].logprob for t in range(prompt_len, len(sequence))]
            for sequence, prompt_len, output in zip(sequences, prompt_lens, outputs, strict=True)
        ]

    def _run(self, prompts: list[tuple[int, ...]], params: list[Any]) -> list[Any]:
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(tokens, params, use_tqdm=False, lora_request=self._sync.request)
        return outputs

    def _record(self, request: SampleRequest, completion: Any) -> RolloutRecord:
        if completion.finish_reason not in ("stop", "length"):
            raise RunError(f"engine {self._index} ended {request.lease} with {completion.finish_reason}")
        ids = tuple(completion.token_ids)
        return RolloutRecord(
            lease=request.lease,
            prompt_ids=request.prompt_ids,
            response_ids=ids,
            logprobs=tuple(step[token].logprob for step, token in zip(completion.logprobs, ids, strict=True)),
            versions=(self._version,) * len(ids),
            finish_reason=completion.finish_reason,
            seed=request.seed,
            engine=self._index,
        )


def vllm_arguments(plan: EnginePlan) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for an engine's plan."""
    common: dict[str, Any] = {
        "model": plan.model_dir,
        "dtype": plan.dtype,
        "max_model_len": plan.max_model_len,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the model's own sampling defaults would change what is drawn
        "logprobs_mode": "processed_logprobs",
        "distributed_executor_backend": "uni",
        "worker_extension_cls": f"{MergeExtension.__module__}.{MergeExtension.__name__}",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if plan.rollout.gpus:
        common["gpu_memory_utilization"] = plan.rollout.gpu_memory
    else:
        common |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(plan.rollout.kv_cache_gb * 2**30),
            "block_size": 32,  # at the default of 128 no chat shares the keys and values of its system prompt
        }
    if plan.mode == "adapter":
        rank = next(r for r in LORA_RANKS if r >= plan.lora_r)
        # Two in memory: the new adapter is loaded before the old one goes.
        common |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": rank}
    return common


class MergeExtension:
    """Methods that vLLM mixes into its worker: they run where the weights are."""

    model_runner: Any

    def triptych_merge(self, model_dir: str, adapter: bytes, config: dict[str, Any]) -> None:
        """Replace every weight by base plus LoRA.

        The whole checkpoint is loaded each time: vLLM fuses q, k and v into one matrix and prepacks it on CPU, so a
        part of it cannot be replaced alone.
        """
        from safetensors.torch import load

        from triptych.engines.merging import merged_weights

        self._load(lambda *to: merged_weights(Path(model_dir), adapter, config, *to), set(load(adapter)))

    def triptych_replace(self, model_dir: str, buckets: Iterable[bytes]) -> None:
        """Replace every weight by that of a bucket, or by the checkpoint's own."""
        from triptych.engines.merging import replaced_weights

        changed: set[str] = set()
        self._load(lambda *to: replaced_weights(Path(model_dir), _noting(buckets, changed), *to), changed)

    def _load(self, weights: "Callable[..., Iterator[tuple[str, Any]]]", changed: set[str]) -> None:
        """Load what `weights` gives for a precision and a device; `changed`: by the end, tensors of the adapter."""
        import torch

        model_config = self.model_runner.model_config
        device = torch.device(self.model_runner.device)
        experts = _unset_experts(self.model_runner.get_model()) if device.type == "cpu" else []
        with torch.inference_mode():
            self.model_runner.reload_weights(weights_iterator=weights(model_config.dtype, device))
            if device.type == "cpu":
                _pack_heads(self.model_runner.get_model())
        _check_experts(experts, changed)


def _pack_heads(model: Any) -> None:
    """Pack the output head anew where it shares the embedding's weights.

    vLLM packs a head for its CPU kernel when weights of its own are loaded. Those that it shares come under the
    embedding's name, and its kernel would go on with the old ones.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedEmbeddingMethod) and hasattr(layer, "cpu_linear"):
            method.process_weights_after_loading(layer)


def _noting(buckets: Iterable[bytes], names: set[str]) -> Iterator[bytes]:
    """The buckets, whose tensors' names are added to `names` as they pass."""
    from safetensors import deserialize

    for bucket in buckets:
        names.update(name for name, _ in deserialize(bucket))
        yield bucket


def _unset_experts(model: Any) -> list[tuple[Any, Any]]:
    """Have vLLM set its experts up again as it loads weights; gives each layer's method and its kernel of before.

    It lays experts out for its CPU kernel at the first load alone: after others the kernel would read plain matrices.
    """
    methods: list[Any] = [getattr(layer, "quant_method", None) for layer in model.modules()]
    experts = [(method, method.moe_kernel) for method in methods if getattr(method, "moe_kernel", None) is not None]
    for method, _ in experts:
        method.moe_kernel = None
    return experts


def _check_experts(experts: list[tuple[Any, Any]], changed: set[str]) -> None:
    """Keep the experts that vLLM did not load again; they are those of the base.

    Raises:
        RunError: the adapter changes experts.
    """
    kept = [(method, kernel) for method, kernel in experts if method.moe_kernel is None]
    for method, kernel in kept:
        method.moe_kernel = kernel
    if kept and (reached := next((name for name in sorted(changed) if ".experts." in name), None)):
        raise RunError(f"vLLM takes no new weights for the experts of this model, and the adapter changes {reached}")


class WeightSync(Protocol):
    """One way in which new weights enter vLLM."""

    request: Any
    """The LoRARequest of every generation, or None."""

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the policy of this engine; nothing of the old one answers afterwards."""

    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        """Replace weights of this engine; nothing of the old ones answers afterwards."""


class MergedSync:
    """Weight sync that loads base plus adapter as the engine's model."""

    request = None

    def __init__(self, llm: Any, model_dir: str) -> None:
        self._llm, self._model_dir = llm, model_dir

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the policy; see `WeightSync.load`."""
        self._llm.collective_rpc("triptych_merge", args=(self._model_dir, adapter, config))
        self._forget()
        return Ack(version, adapter_digest(adapter, config))

    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        """Replace weights; see `WeightSync.replace`. vLLM's worker is in this process, so buckets pass one by one."""
        passing = Digested(buckets)
        self._llm.collective_rpc("triptych_replace", args=(self._model_dir, passing))
        self._forget()
        return Ack(version, passing.digest)

    def _forget(self) -> None:
        """Drop keys and values of the old weights."""
        if not self._llm.reset_prefix_cache():
            raise RunError("the engine keeps keys and values of the old weights: its prefix cache is in use")


class AdapterSync:
    """Weight sync that loads the adapter from a folder in memory; name, number and path are never used twice.

    vLLM's `load_inplace` is avoided: its prefix cache would still hold keys and values of the old adapter.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._count = 0
        self.request: Any = None

    def load(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the policy; see `WeightSync.load`."""
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

    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        """Refuse weights: engines that run adapters keep the base's."""
        raise RunError("an engine that runs adapters takes no new weights; allowed: rollout.sync merged")
