"""The replica: one vLLM engine that takes adapters from the registry while it runs."""

import logging
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackConfig
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig
from ray.serve.llm import LLMConfig
from ray.serve.llm.openai_api_models import CompletionRequest

from triptych.data.end_tokens import end_tokens
from triptych.errors import UserError
from triptych.models.adapter_effect import UnusableError
from triptych.models.base import fingerprint, model_tokenizer, resolve_base
from triptych.models.lora_fit import check_lora_fit
from triptych.models.vllm_lora import unserved_module
from triptych.models.weights import without_other_weights
from triptych.recipe.model import Model
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve import errors
from triptych.serve.adapter_cache import AdapterLoader, fetch_adapter
from triptych.serve.adapter_effect import answered_logprobs, completion_fields
from triptych.serve.capabilities import MisfitError, engine_for, engines_of
from triptych.serve.effect_checks import EffectChecks

logger = logging.getLogger("ray.serve")


def llm_config(config: ServeConfig) -> LLMConfig:
    """Configuration of the engine for Ray Serve LLM."""
    engine = config.engine
    engine_kwargs: dict[str, Any] = {
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enable_lora": True,
        "max_loras": engine.max_loras,
        "max_cpu_loras": engine.max_cpu_loras,
        "max_lora_rank": engine.max_lora_rank,
    }
    if config.model.chat_template is not None:
        engine_kwargs["chat_template"] = config.model.chat_template
    if engine.gpus:
        engine_kwargs |= {"tensor_parallel_size": engine.gpus, "gpu_memory_utilization": engine.gpu_memory}
        bundles = [{"GPU": 1.0}] * engine.gpus
    else:
        engine_kwargs |= {"kv_cache_memory_bytes": int(engine.kv_cache_gb * 2**30), "enforce_eager": True}
        bundles = [{"CPU": 0.0}]  # the replica's own CPUs are added to the first bundle
    return LLMConfig(
        model_loading_config={"model_id": config.model_id, "model_source": config.model.base},
        engine_kwargs=engine_kwargs,
        placement_group_config={"bundles": bundles},
        runtime_env={"env_vars": _environment(config)},
        callback_config=CallbackConfig(callback_class=_ModelIsHere),
        experimental_configs={"stream_batching_interval_ms": 0},
        deployment_config={
            "num_replicas": config.replicas,
            # A placement group cannot ask for nothing: one byte of memory stands for a replica that needs no CPU.
            "ray_actor_options": {"num_cpus": engine.cpus, "memory": 1},
            # Twice the batch: the next requests are in the engine before the running ones end.
            "max_ongoing_requests": 2 * engine.max_num_seqs,
            "max_queued_requests": engine.max_queued_requests,
            # A busy node with few cores answers late, and that is no reason to restart it.
            "health_check_timeout_s": 60,
            "graceful_shutdown_timeout_s": 10,
        },
    )


def _environment(config: ServeConfig) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if config.engine.gpus == 0:
        # The engine and its worker in one process, its threads ours to set: one process less to start and to pass to.
        env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return env


class _ModelIsHere(CallbackBase):
    """A callback that keeps Ray from downloading: `resolve_base` has fetched the model."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class _CpuEngineConfig(VLLMEngineConfig):
    """vLLM's configuration with one process on CPU, where Ray insists on two; see `_environment`."""

    def get_initialization_kwargs(self) -> dict[str, Any]:
        return {**super().get_initialization_kwargs(), "distributed_executor_backend": "uni"}


class AdapterServer(LLMServer):
    """Ray's vLLM replica that loads the adapter version `name@3` on its first request, whenever it was registered.

    Ray's own multiplexing is left out: it knows only names in a bucket, loads one adapter at a time, and a load that
    hangs blocks all others.
    """

    async def __init__(self, llm_config: LLMConfig, *, config: dict[str, Any]) -> None:  # type: ignore[misc]
        self._config = ServeConfig.model_validate(config)
        self._engines = engines_of(self._config)
        self._base = folder = resolve_base(self._config.model)
        self._fingerprint = fingerprint(folder, self._config.model.chat_template)
        self._ends = _end_tokens(folder, self._config.model)
        self._registry = Registry(self._config.registry, self._config.artifacts, create=False)
        checked = self._config.engine.check_adapters
        self._effects = EffectChecks(self._registry, self._logprobs, self._config.model_id) if checked else None
        self._adapters = AdapterLoader(self._fetch, self._load, self._config.engine.adapter_timeout_s)
        # Ray gives an actor without CPUs one thread; the engine's process takes its own number from here.
        os.environ["OMP_NUM_THREADS"] = str(self._config.engine.threads or len(os.sched_getaffinity(0)))
        stock = llm_config.get_engine_config()
        kind = VLLMEngineConfig if self._config.engine.gpus else _CpuEngineConfig
        # Ray offers no public way to say where on this node the model lies, or which executor runs it.
        llm_config._engine_config = kind.model_validate(
            {
                **dict(stock),
                "hf_model_id": str(without_other_weights(folder)),
                "frontend_kwargs": stock.frontend_kwargs | content_format(takes_text=bool(self._ends)),
            }
        )
        await super().__init__(llm_config)

    def _init_multiplex_loader(self, model_downloader_cls: object = None) -> None:
        """Leave Ray's multiplexing out."""

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        """Ignore a client's header that would choose an adapter."""

    async def _start_engine(self) -> None:
        """Start the engine without Ray's usage report, which costs an actor of its own."""
        await self.engine.start()

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """Answer a chat; the answer ends where training ends it, too."""
        return await super().chat(ended(request, self._ends), raw_request_info)

    async def _run_request(self, request: Any, **options: Any) -> AsyncIterator[Any]:
        failure = await self._have(request.model)
        if failure is not None:
            return _only(failure)
        return await super()._run_request(request, **options)

    async def _have(self, ref: str) -> ErrorResponse | None:
        """Have an adapter version loaded; an error for the client where it cannot be."""
        if ref == self._config.model_id:
            return None
        try:
            await self._adapters.ensure(ref)
        except TimeoutError:
            return _error(503, errors.ADAPTER_SLOW, f"The adapter {ref} is still being loaded; try again later.")
        except MisfitError as error:
            return _error(400, errors.ADAPTER_UNFIT, f"The adapter {ref} is not served here: {error}.")
        except Exception:
            logger.exception("adapter %s could not be loaded", ref)
            return _error(500, errors.ADAPTER_FAILED, f"The adapter {ref} could not be loaded.")
        return None

    async def _load(self, ref: str, folder: str) -> None:
        # vLLM numbers adapters itself; the path is new for new content, so no cached prefix of other weights is reused.
        place = DiskMultiplexConfig(model_id=ref, max_total_tokens=None, local_path=folder, lora_assigned_int_id=1)
        try:
            await self.engine.resolve_lora(place)
        except Exception as error:
            if (stray := unserved_module(str(error))) is None:
                raise
            raise MisfitError(stray) from error
        if self._effects is not None:
            self._effects.start(ref)

    async def _logprobs(self, model: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of the sequences' tokens but the first, from this replica's own engine."""
        request = CompletionRequest(**completion_fields(model, sequences))
        async for answer in self.engine.completions(request):
            return answered_logprobs(answer.model_dump(), sequences)
        raise UnusableError("are missing: the engine gave no answer")

    def _fetch(self, ref: str) -> str:
        version = self._registry.get(ref)
        engine_for(version, self._registry, self._fingerprint, self._engines)
        found = fetch_adapter(version)
        try:
            check_lora_fit(found, self._base)
        except UserError as error:
            raise MisfitError(str(error)) from error
        return str(found)


def ended(request: Any, ends: Sequence[int]) -> Any:
    """A vLLM request for a chat that stops at the tokens `ends` too, unless its client asks for no end."""
    if not request.ignore_eos:
        request.stop_token_ids = list(dict.fromkeys([*(request.stop_token_ids or ()), *ends]))
    return request


def content_format(*, takes_text: bool) -> dict[str, str]:
    """Arguments of vLLM's frontend by which a chat template is given what it is given in training: text.

    Left to itself, vLLM gives lists of parts to a template that has a loop for them, and such loops write two parts
    without the line end that training has between them. Templates that take lists alone are left to it.
    """
    return {"chat_template_content_format": "string"} if takes_text else {}


def _end_tokens(folder: Path, model: Model) -> list[int]:
    """The tokens that end an answer; none for a base that takes no chats."""
    try:
        return end_tokens(folder, model_tokenizer(folder, model))
    except UserError as error:
        logger.warning("chats are not answered: %s", error)
        return []


def _error(code: int, kind: str, message: str) -> ErrorResponse:
    return ErrorResponse(error=ErrorInfo(message=message, type=kind, code=code))


async def _only(item: ErrorResponse) -> AsyncIterator[ErrorResponse]:
    yield item
