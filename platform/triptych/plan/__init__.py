"""Memory, speed and placement of a recipe, predicted before anything is launched. Config only: no weights, no Ray."""

from triptych.plan.amounts import Bytes
from triptych.plan.devices import DeviceEstimate, RoleEstimate
from triptych.plan.estimate import Estimate, StageEstimate, estimate
from triptych.plan.machines import Machine, Node, cluster, local, machine
from triptych.plan.placement import Placement, Request, place, requests
from triptych.plan.process import grown_parts, worker_parts
from triptych.plan.sharding import with_strategy
from triptych.plan.strategy import resolve_strategy

__all__ = [
    "Bytes",
    "DeviceEstimate",
    "Estimate",
    "Machine",
    "Node",
    "Placement",
    "Request",
    "RoleEstimate",
    "StageEstimate",
    "cluster",
    "estimate",
    "grown_parts",
    "local",
    "machine",
    "place",
    "requests",
    "resolve_strategy",
    "with_strategy",
    "worker_parts",
]
