"""Memory, speed and placement of a recipe, predicted before anything is launched. Config only: no weights, no Ray."""

from triptych.plan.amounts import Bytes
from triptych.plan.calibration import (
    Calibration,
    MachineProfile,
    MemoryRecord,
    calibrate,
    grown,
    machine_kind,
    profile_here,
)
from triptych.plan.choose import Choice, Option, choose, nearest_that_fits, options, with_choice
from triptych.plan.devices import DeviceEstimate, RoleEstimate, Tracer
from triptych.plan.duration import Duration, duration
from triptych.plan.estimate import Estimate, StageEstimate, estimate, worker_parts
from triptych.plan.machines import Machine, Node, cluster, local, machine
from triptych.plan.placement import Placement, Request, place, requests
from triptych.plan.rates import Rates
from triptych.plan.settings import resolve_strategy
from triptych.plan.sharding import with_strategy

__all__ = [
    "Bytes",
    "Calibration",
    "Choice",
    "DeviceEstimate",
    "Duration",
    "Estimate",
    "Machine",
    "MachineProfile",
    "MemoryRecord",
    "Node",
    "Option",
    "Placement",
    "Rates",
    "Request",
    "RoleEstimate",
    "StageEstimate",
    "Tracer",
    "calibrate",
    "choose",
    "cluster",
    "duration",
    "estimate",
    "grown",
    "local",
    "machine",
    "machine_kind",
    "nearest_that_fits",
    "options",
    "place",
    "profile_here",
    "requests",
    "resolve_strategy",
    "with_choice",
    "with_strategy",
    "worker_parts",
]
