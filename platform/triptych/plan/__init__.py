"""Memory, speed and placement of a recipe, predicted before anything is launched. Config only: no weights, no Ray."""

from triptych.plan.amounts import Bytes
from triptych.plan.calibration import Calibration, MemoryRecord, calibrate, grown, machine_kind
from triptych.plan.devices import DeviceEstimate, RoleEstimate
from triptych.plan.estimate import Estimate, StageEstimate, estimate
from triptych.plan.machines import Machine, Node, cluster, local, machine
from triptych.plan.placement import Placement, Request, place, requests
from triptych.plan.sharding import with_strategy
from triptych.plan.strategy import resolve_strategy

__all__ = [
    "Bytes",
    "Calibration",
    "DeviceEstimate",
    "Estimate",
    "Machine",
    "MemoryRecord",
    "Node",
    "Placement",
    "Request",
    "RoleEstimate",
    "StageEstimate",
    "calibrate",
    "cluster",
    "estimate",
    "grown",
    "local",
    "machine",
    "machine_kind",
    "place",
    "requests",
    "resolve_strategy",
    "with_strategy",
]
