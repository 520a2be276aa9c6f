"""How requests find a replica of the gateway."""

from typing import Any

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter


class GatewayRouter(PowerOfTwoChoicesRequestRouter):
    """Ray's default, deaf to the `serve_multiplexed_model_id` header by which a client would choose its replica."""

    def apply_multiplex_routing(self, pending_request: Any = None) -> Any:
        """All replicas are the same to all requests."""
        return self._replica_id_set
