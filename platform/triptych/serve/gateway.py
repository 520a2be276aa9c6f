"""The gateway: the deployment that clients talk to."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Response
from ray.serve.handle import DeploymentHandle

from triptych.observe.metrics import GatewayMetrics
from triptych.recipe.serve import ServeConfig
from triptych.registry import Registry
from triptych.serve.admin import admin_routes
from triptych.serve.caller import Caller
from triptych.serve.catalog import Catalog
from triptych.serve.errors import ApiError
from triptych.serve.http import http_app
from triptych.serve.keys import KeyCheck
from triptych.serve.limits import within
from triptych.serve.proxied_request import Body, EngineClient, EngineMethod, ProxiedRequest

logger = logging.getLogger("ray.serve")

_REGISTRY_THREADS = 8


class Gateway:
    """Checks keys, resolves model names to routes, and proxies requests to engines, which never see an alias."""

    def __init__(
        self, engines: Mapping[str, DeploymentHandle[Any]], *, config: dict[str, Any], base_fingerprint: str
    ) -> None:
        settings = ServeConfig.model_validate(config)
        registry = Registry(settings.registry, settings.artifacts, create=False)
        pool = ThreadPoolExecutor(_REGISTRY_THREADS, thread_name_prefix="registry")
        self._registry = registry
        self._limits = settings.limits
        self.max_body_bytes = int(settings.limits.max_body_mb * 1e6)
        self._metrics = GatewayMetrics()
        self._keys = KeyCheck(registry, pool, required=settings.require_key)
        self._catalog = Catalog(settings, base_fingerprint, registry, pool, self._metrics.unreadable)
        self._engines = {name: EngineClient(replicas) for name, replicas in engines.items()}

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """The ASGI application, asked for by Ray Serve."""
        return self.app()

    def app(self) -> FastAPI:
        """The routes of this replica."""
        return http_app(self, self._keys.caller, admin_routes(self._registry))

    async def cards(self) -> list[dict[str, Any]]:
        """Cards of all models that are served."""
        return await self._catalog.cards()

    async def card(self, model: str) -> dict[str, Any]:
        """Card of one model; ApiError 404 if it is not served."""
        return await self._catalog.card(model)

    def rejected(self, error: ApiError) -> None:
        """Count an error that came before a model was found."""
        self._metrics.rejected(error.code)

    async def generate(self, caller: Caller, method: EngineMethod, body: Body) -> Response:
        """Answer a chat or a completion, whole or as a stream of server-sent events."""
        try:
            body = within(body, self._limits)
            route = await self._catalog.resolve(body.model)
        except ApiError as error:
            self.rejected(error)
            raise
        told = (method, caller.key_id, caller.label, route.model, route.engine, route.chosen_by)
        logger.debug("%s by key %s (%s): %s on %s, chosen by %s", *told)
        return await ProxiedRequest(method, body, route.model, self._metrics).run(self._engines[route.engine])
