"""The Ray Serve application: a gateway in front of engine replicas."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import build_llm_deployment

from triptych.errors import UserError
from triptych.models.base import BUILT_IN, fingerprint, resolve_base
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve.engine import AdapterServer, llm_config
from triptych.serve.gateway import Gateway
from triptych.serve.loader import misfit


def application(args: dict[str, Any]) -> Application:
    """Deployments for the arguments of a ServeConfig; UserError where they ask for what cannot be served."""
    try:
        config = ServeConfig.model_validate(args)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise UserError("serve arguments: " + "; ".join(faults)) from error
    config = _absolute(config)
    base = fingerprint(resolve_base(config.model))
    check_adapters(config, base)
    values = config.model_dump(mode="json")
    engine = build_llm_deployment(
        llm_config(config), deployment_cls=AdapterServer, name_prefix="engine-", bind_kwargs={"config": values}
    )
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        # More than the engines and their queue take: whoever is too many learns it from us, in OpenAI's words.
        max_ongoing_requests=2 * config.engine.max_num_seqs * config.replicas + config.engine.max_queued_requests + 64,
        request_router_config=RequestRouterConfig(request_router_class="triptych.serve.router.GatewayRouter"),
    )
    return gateway.bind(engine, config=values, base_fingerprint=base)


def check_adapters(config: ServeConfig, base_fingerprint: str) -> None:
    """UserError unless the registry is there and every adapter that the config names can be served on the base."""
    registry = Registry(config.registry, config.artifacts)
    if config.adapters == "all":
        return
    for name in config.adapters:
        reason = misfit(registry.get(name), base_fingerprint, config.engine.max_lora_rank)
        if reason is not None:
            raise UserError(f"adapters: {name} cannot be served: {reason}")


def _absolute(config: ServeConfig) -> ServeConfig:
    """The same with local paths made absolute: replicas run in other folders."""
    model = config.model
    if model.base not in BUILT_IN and Path(model.base).expanduser().is_dir():
        model = model.model_copy(update={"base": str(Path(model.base).expanduser().resolve())})
    return config.model_copy(update={"model": model, "name": config.model_id})
