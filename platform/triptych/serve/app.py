"""The Ray Serve application: a gateway in front of engine replicas."""

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.llm import build_llm_deployment

from triptych.recipe.serve import ServeConfig
from triptych.serve.capabilities import VLLM
from triptych.serve.engine import AdapterServer, llm_config
from triptych.serve.gateway import Gateway
from triptych.serve.router import GatewayRouter


def application(config: ServeConfig, base_fingerprint: str) -> Application:
    """The deployments for a config that `preflight.check` has passed."""
    values = config.model_dump(mode="json")
    engine = build_llm_deployment(
        llm_config(config), deployment_cls=AdapterServer, name_prefix="engine-", bind_kwargs={"config": values}
    )
    deploy = serve.deployment(
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        # More than the engines and their queue take: whoever is too many learns it from us, in OpenAI's words.
        max_ongoing_requests=2 * config.engine.max_num_seqs * config.replicas + config.engine.max_queued_requests + 64,
        request_router_config=RequestRouterConfig(request_router_class=GatewayRouter),  # type: ignore[arg-type]
    )
    return deploy(serve.ingress()(Gateway)).bind({VLLM: engine}, config=values, base_fingerprint=base_fingerprint)
