"""Memory and speed of a recipe, predicted before anything is launched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.errors import UserError
from triptych.models.sizes import Sizes, model_sizes
from triptych.plan import memory, speed
from triptych.plan.machines import GIB, Machine
from triptych.plan.machines import machine as machine_named
from triptych.plan.memory import TRANSIENT, ZERO, Bytes, Parts, total
from triptych.plan.placement import Place, pack, place, requests
from triptych.recipe import PpoStage, Recipe


@dataclass(frozen=True)
class RoleEstimate:
    """Memory of one role in one process."""

    parts: Parts

    @property
    def peak(self) -> Bytes:
        return total(self.parts.values())

    @property
    def peak_bytes(self) -> int:
        return self.peak.expected


@dataclass(frozen=True)
class DeviceEstimate:
    """Memory of a GPU, or of a node's processors: all processes of a stage that lie there."""

    peak: Bytes
    capacity: int


@dataclass(frozen=True)
class StageEstimate:
    """One stage on one machine."""

    roles: Mapping[str, RoleEstimate]
    devices: Mapping[str, DeviceEstimate]
    tokens_per_second: float

    @property
    def peak(self) -> Bytes:
        """Of the fullest device."""
        return max((device.peak for device in self.devices.values()), key=lambda peak: peak.expected)

    @property
    def peak_bytes(self) -> int:
        return self.peak.expected

    def as_dict(self) -> dict[str, Any]:
        return {
            "roles": {
                name: {"peak_bytes": role.peak.as_dict(), "parts": {k: v.as_dict() for k, v in role.parts.items()}}
                for name, role in self.roles.items()
            },
            "devices": {
                name: {"peak_bytes": device.peak.as_dict(), "capacity_bytes": device.capacity}
                for name, device in self.devices.items()
            },
            "peak_bytes": self.peak_bytes,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True)
class Estimate:
    """All stages, or the one asked for."""

    machine: Machine
    stages: Mapping[str, StageEstimate]

    @property
    def peak_bytes(self) -> int:
        """Of the fullest device of any stage."""
        return max(stage.peak_bytes for stage in self.stages.values())

    @property
    def tokens_per_second(self) -> float:
        """Of the slowest stage."""
        return min(stage.tokens_per_second for stage in self.stages.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "machine": self.machine.name,
            "peak_bytes": self.peak_bytes,
            "tokens_per_second": self.tokens_per_second,
            "stages": {name: stage.as_dict() for name, stage in self.stages.items()},
        }


def estimate(recipe: Recipe, *, machine: str | Machine | None = None, stage: str | None = None) -> Estimate:
    """Peak memory a device and tokens a second, from the recipe and the base's config.json.

    `machine` takes the place of the recipe's.

    Raises:
        UserError: unknown stage or machine, a base whose sizes are not known, or a stage that the machine cannot hold.
    """
    on = machine if isinstance(machine, Machine) else machine_named(machine or recipe.machine)
    placement = place(recipe, on, stage)
    sizes = model_sizes(recipe.model)
    for name in placement.requests:
        _refuse_what_the_base_cannot(recipe, name, sizes)
    return Estimate(on, {name: _stage(recipe, name, sizes, on) for name in placement.requests})


def _stage(recipe: Recipe, name: str, sizes: Sizes, machine: Machine) -> StageEstimate:
    stage = recipe.stages[name]
    on_gpu = isinstance(stage, PpoStage) and stage.rollout.gpus > 0
    roles = memory.roles(recipe, stage, sizes, machine.gpu if on_gpu else None)
    learner = [parts for role, parts in roles.items() if role != "engine"]
    processes = {"worker": _peak_of_turns(learner), "engine": total(roles.get("engine", {}).values())}
    places = pack(requests(name, stage), machine)
    assert places is not None
    found = StageEstimate(
        roles={role: RoleEstimate(parts) for role, parts in roles.items()},
        devices=_devices(places, processes, machine),
        tokens_per_second=speed.tokens_per_second(recipe, name, sizes, machine),
    )
    _refuse_what_cannot_fit(recipe, name, found, machine)
    return found


def _refuse_what_the_base_cannot(recipe: Recipe, name: str, sizes: Sizes) -> None:
    stage = recipe.stages[name]
    if isinstance(stage, PpoStage):
        field = "max_prompt_tokens + rollout.sampling.max_new_tokens"
        length = stage.max_prompt_tokens + stage.rollout.sampling.max_new_tokens
    else:
        field, length = "train.batch.max_length", stage.train.batch.max_length
        try:
            sizes.targets(stage.method)
        except UserError as error:
            raise UserError(f"stages.{name}.{error}") from None
    if sizes.max_length is not None and length > sizes.max_length:
        raise UserError(f"stages.{name}.{field}: {length} tokens; allowed: up to {sizes.max_length} with this base")


def _peak_of_turns(roles: list[Parts]) -> Bytes:
    """One process: all that its roles keep, and the transient parts of the role that needs most."""
    kept = total(amount for parts in roles for part, amount in parts.items() if part not in TRANSIENT)
    turns = [total(amount for part, amount in parts.items() if part in TRANSIENT) for parts in roles]
    return kept + max(turns, key=lambda turn: turn.expected, default=ZERO)


def _devices(places: list[Place], processes: Mapping[str, Bytes], machine: Machine) -> dict[str, DeviceEstimate]:
    """Peak of each device that a stage computes on. Host memory of processes on a GPU is not counted."""
    peaks: dict[str, DeviceEstimate] = {}
    for at in places:
        labels = {f"node {at.node} GPU {gpu}": machine.gpu.memory for gpu in at.gpus} if machine.gpu else {}
        for label, capacity in (labels or {f"node {at.node}": machine.nodes[at.node].memory}).items():
            before = peaks[label].peak if label in peaks else ZERO
            peaks[label] = DeviceEstimate(before + processes[at.request.role], capacity)
    return dict(sorted(peaks.items()))


def _refuse_what_cannot_fit(recipe: Recipe, name: str, found: StageEstimate, machine: Machine) -> None:
    """Only what misses even at the low end of its interval is refused."""
    for label, device in found.devices.items():
        if device.peak.low > device.capacity:
            stage = recipe.stages[name]
            fields = (
                ["micro_tokens", "max_prompt_tokens", "rollout.engines", "rollout.kv_cache_gb"]
                if isinstance(stage, PpoStage)
                else ["train.batch.micro_tokens", "train.batch.max_length", "train.workers.count"]
            )
            raise UserError(
                f"stages.{name} does not fit machine {machine}: {label} needs at least "
                f"{device.peak.low / GIB:.1f} GiB and has "
                f"{device.capacity / GIB:.1f} GiB; lower {', '.join(f'stages.{name}.{field}' for field in fields)}, "
                "or change `machine`"
            )
