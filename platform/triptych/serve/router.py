"""Routing of requests to replicas of the gateway; Ray's proxies import this module, so it stays light."""

from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter


class GatewayRouter(PowerOfTwoChoicesRequestRouter):
    """Ray's default router without the `serve_multiplexed_model_id` header, by which a client would choose its replica.

    Ray looks a second time for a replica that holds such a model, and keeps every name, and the last request with it,
    for as long as the proxy lives, before any key is checked. Ray has no public place to drop the header.
    """

    async def _choose_replica_for_request(self, pending_request: Any, *, is_retry: bool = False) -> Any:
        pending_request.metadata.multiplexed_model_id = ""
        return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
