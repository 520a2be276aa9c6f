"""One rollout engine: vLLM inside a Ray actor, in the actor's own process, so that killing the actor kills it all."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.errors import RunError
from triptych.models.base import resolve_base
from triptych.recipe.model import Model
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.serve import LORA_RANKS
from triptych.rollout.record import BASE_VERSION, Ack, RolloutRecord, SampleRequest
from triptych.rollout.sync import AdapterSync, MergedSync, SyncMode, WeightSync


@dataclass(frozen=True)
class EnginePlan:
    """What every engine of a pool has in common."""

    model_dir: str
    dtype: str
    rollout: Rollout
    mode: SyncMode
    max_model_len: int
    lora_r: int
    stop_token_ids: tuple[int, ...]
    base: Model | None = None
    """What `model_dir` holds, for nodes that do not have that folder."""

    def here(self) -> "EnginePlan":
        """The plan with the folder of this node."""
        if self.base is None or Path(self.model_dir).is_dir():
            return self
        return replace(self, model_dir=str(resolve_base(self.base)))

    def environment(self) -> dict[str, str]:
        """Must be there before the process starts: OpenMP reads its variables once, and Ray would set one thread."""
        variables = {
            "OMP_NUM_THREADS": str(self.rollout.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        if not self.rollout.gpus:
            # vLLM compiles the rank of each sampled token: a C++ compiler and 15 s at the first answer, for nothing.
            variables["TORCHDYNAMO_DISABLE"] = "1"
        return variables

    def vllm_arguments(self) -> dict[str, Any]:
        """Arguments of `vllm.LLM`."""
        common: dict[str, Any] = {
            "model": self.model_dir,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len + 1,  # teacher forcing a full sequence still samples one token
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # the model's own sampling defaults would change what is drawn
            "logprobs_mode": "processed_logprobs",
            "distributed_executor_backend": "uni",
            "worker_extension_cls": "triptych.rollout.sync.MergeExtension",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if self.rollout.gpus:
            common["gpu_memory_utilization"] = self.rollout.gpu_memory
        else:
            common |= {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(self.rollout.kv_cache_gb * 2**30),
                "block_size": 32,  # at the default of 128 no chat shares the keys and values of its system prompt
            }
        if self.mode == "adapter":
            rank = next(r for r in LORA_RANKS if r >= self.lora_r)
            # Two in memory: the new adapter is loaded before the old one goes.
            common |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": rank}
        return common


@dataclass(frozen=True)
class Place:
    """Where an engine's process runs."""

    node_id: str
    pid: int
    cores: tuple[int, ...]
    """Those that the process may use."""


class Engine:
    """The actor. Placed at once, loaded by `load`, so that waiting for resources and loading a model are told apart."""

    def __init__(self, index: int, plan: EnginePlan) -> None:
        self._index, self._plan = index, plan
        self._version = BASE_VERSION
        self._llm: Any = None
        self._sync: WeightSync

    def place(self) -> Place:
        import ray

        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), tuple(sorted(os.sched_getaffinity(0))))

    def load(self, cores: tuple[int, ...]) -> float:
        """Start vLLM on these cores (all, if empty); seconds it took."""
        start = time.monotonic()
        if cores:
            os.sched_setaffinity(0, cores)  # inherited by every thread that vLLM starts from here
        from vllm import LLM

        self._plan = self._plan.here()
        self._llm = LLM(**self._plan.vllm_arguments())
        self._sync = (
            AdapterSync(self._llm) if self._plan.mode == "adapter" else MergedSync(self._llm, self._plan.model_dir)
        )
        return time.monotonic() - start

    def sync(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Run new weights from now on."""
        ack = self._sync.load(adapter, config, version)
        self._version = ack.version
        return ack

    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """One record for each request, in their order."""
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

    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> list[list[float]]:
        """Teacher-forced log-probabilities of the tokens after each prompt, at temperature 1.

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
