"""Memory, speed and placement of a recipe, predicted before anything is launched. Config only: no weights, no Ray."""

from triptych.plan.estimate import DeviceEstimate, Estimate, RoleEstimate, StageEstimate, estimate
from triptych.plan.machines import Machine, Node, cluster, local, machine
from triptych.plan.memory import Bytes
from triptych.plan.placement import Placement, Request, place, requests

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
    "local",
    "machine",
    "place",
    "requests",
]
