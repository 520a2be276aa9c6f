"""A client's multiplexing header neither chooses a replica, nor costs a second look for one, nor is remembered."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.common import PendingRequest

from triptych.serve.router import GatewayRouter

DEPLOYMENT = DeploymentID("gateway", "triptych")


@dataclass(frozen=True)
class Replica:
    """What a router sees of a replica that is never busy."""

    replica_id: ReplicaID
    multiplexed_model_ids: frozenset[str] = frozenset()
    max_ongoing_requests: int = 1000
    node_id: str = "node"
    availability_zone: str | None = None

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


@dataclass
class Seen:
    """Of a router that was asked with these names."""

    looks: int = 0
    chosen: list[ReplicaID] = field(default_factory=list)
    remembered: set[str] = field(default_factory=set)


def route(kind: type[PowerOfTwoChoicesRequestRouter], replicas: Sequence[Replica], names: Sequence[str]) -> Seen:
    """One request after another, each with a name in the header."""
    seen = Seen()

    class Counting(kind):  # type: ignore[misc, valid-type]
        async def choose_replicas(self, *args: Any, **options: Any) -> Any:
            seen.looks += 1
            return await super().choose_replicas(*args, **options)

    async def ask() -> None:
        router = Counting(
            deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
        )
        router.update_replicas(list(replicas))
        for name in names:
            metadata = RequestMetadata(str(uuid.uuid4()), str(uuid.uuid4()), multiplexed_model_id=name)
            replica = await router._choose_replica_for_request(PendingRequest([], {}, metadata))
            seen.chosen.append(replica.replica_id)
        seen.remembered = router._multiplexed_model_id_fallback_match | set(router._pending_requests_by_model_id)

    asyncio.run(ask())
    return seen


def replica(name: str, *models: str) -> Replica:
    return Replica(ReplicaID(name, DEPLOYMENT), frozenset(models))


def test_the_header_costs_no_second_look_and_is_forgotten() -> None:
    names = ["kind@1", "kind@1", "made-up", "made-up"]
    ours = route(GatewayRouter, [replica("a")], names)
    assert ours.looks == len(names)
    assert ours.remembered == set()
    stock = route(PowerOfTwoChoicesRequestRouter, [replica("a")], names)
    assert stock.looks > len(names), "Ray no longer looks twice: is the router of ours still needed?"
    assert stock.remembered == set(names), "Ray no longer remembers: is the router of ours still needed?"


def test_the_header_chooses_no_replica() -> None:
    replicas = [replica("a", "kind@1"), replica("b"), replica("c")]
    assert len(set(route(GatewayRouter, replicas, ["kind@1"] * 100).chosen)) == 3
    assert len(set(route(PowerOfTwoChoicesRequestRouter, replicas, ["kind@1"] * 100).chosen)) == 1
