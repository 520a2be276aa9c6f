"""Memory and speed of a recipe, predicted before anything is launched."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from triptych.errors import UserError
from triptych.methods import trained
from triptych.methods.parameters.matrix import reached_experts
from triptych.methods.parameters.virtual import positions
from triptych.models.sizes import Sizes, model_sizes
from triptych.plan.amounts import ON_CPU, TRANSIENT, Bytes, Parts, total
from triptych.plan.calibration import NO_PROFILE, MachineProfile
from triptych.plan.choose import nearest_that_fits, with_choice
from triptych.plan.devices import DeviceEstimate, RoleEstimate, Tracer, on_devices
from triptych.plan.inference import inference_memory, inference_speed, refuse_longer, strategy_of
from triptych.plan.machines import GIB, Machine
from triptych.plan.machines import machine as machine_named
from triptych.plan.placement import is_engine, place
from triptych.plan.settings import resolve_strategy
from triptych.plan.speed import Speed, UsualRow, stage_speed
from triptych.recipe import Method, Recipe
from triptych.recipe.method import parts_of
from triptych.recipe.refusals import NO_EXPERTS, NOT_GATHERED
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import MicroBatch


@dataclass(frozen=True)
class StageEstimate:
    """Predicted memory and speed of one stage on one machine."""

    strategy: StrategyName
    """The strategy that `workers.strategy` resolves to."""
    roles: Mapping[str, RoleEstimate]
    devices: Mapping[str, DeviceEstimate]
    speed: Speed

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all workers together."""
        return self.speed.tokens_per_second

    @property
    def peak(self) -> Bytes:
        """Peak memory of the fullest device."""
        return max((device.peak for device in self.devices.values()), key=lambda peak: peak.expected)

    @property
    def peak_bytes(self) -> int:
        """Expected bytes of the fullest device."""
        return self.peak.expected

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "strategy": self.strategy,
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
            "speed": self.speed.as_dict(),
        }


def worker_parts(stage: StageEstimate) -> Parts:
    """Memory of one worker on its device: what each role keeps, and the transient parts of the largest role."""
    roles = [found.parts for name, found in stage.roles.items() if not is_engine(name)]
    kept = [(name, size) for parts in roles for name, size in parts.items() if name not in TRANSIENT]
    turns = [{name: size for name, size in parts.items() if name in TRANSIENT} for parts in roles]
    found: Parts = max(turns, key=lambda turn: total(turn.values()).expected)
    for name, size in kept:
        found = found | {name: found[name] + size if name in found else size}
    return {name: size for name, size in found.items() if not name.startswith(ON_CPU)}


@dataclass(frozen=True)
class Estimate:
    """Estimates of all stages, or of the requested one."""

    machine: Machine
    stages: Mapping[str, StageEstimate]

    @property
    def peak_bytes(self) -> int:
        """Expected bytes of the fullest device of any stage; 0 where none trains."""
        return max((stage.peak_bytes for stage in self.stages.values()), default=0)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the slowest stage; 0 where none trains."""
        return min((stage.tokens_per_second for stage in self.stages.values()), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "machine": self.machine.name,
            "peak_bytes": self.peak_bytes,
            "tokens_per_second": self.tokens_per_second,
            "stages": {name: stage.as_dict() for name, stage in self.stages.items()},
        }


def estimate(
    recipe: Recipe,
    *,
    machine: str | Machine | None = None,
    stage: str | None = None,
    exact: bool = False,
    trace: Tracer | None = None,
    profile: MachineProfile = NO_PROFILE,
    batches: Mapping[str, MicroBatch] = MappingProxyType({}),
    advise: bool = True,
) -> Estimate:
    """Peak memory per device and tokens per second, from the recipe and the base's config.json.

    `machine` takes the place of the recipe's. Memory comes from a closed form; with `exact` what a step works with
    comes from `trace`, as `triptych.measure.traced`, which takes seconds. Given without `exact`, it is asked only
    of settings left to `auto` where none fits for sure. `profile` calibrates memory and speed by what was measured on
    the machine. `batches`: the largest micro-batch of the data of the stages whose data were read.
    `advise`: a refusal names the nearest setting that fits, which takes a second to find.

    Raises:
        UserError: unknown stage or machine, a base whose sizes are not known, or a stage that the machine cannot hold.
        ValueError: `exact` without a tracer.
    """
    if exact and trace is None:
        raise ValueError("exact needs `trace`")
    on = machine if isinstance(machine, Machine) else machine_named(machine or recipe.machine)
    placed = place(recipe, on, stage).requests
    names = [name for name in placed if name in recipe.trained]
    sizes = model_sizes(recipe.model)
    chosen = {name: with_choice(recipe, name, on, profile=profile, exact=exact, trace=trace) for name in names}
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, **chosen}})
    for name in names:
        _refuse_what_the_base_cannot(recipe, name, sizes)
    tracer = trace if exact else None
    trained = {name: _stage(recipe, name, sizes, on, profile, tracer, batches.get(name)) for name in names}
    found = {name: one for name in placed if (one := trained.get(name) or _measuring(recipe, name, sizes, on, profile))}
    for name, planned in found.items():
        if too_little := _shortage(planned):
            nearest = f"{nearest_that_fits(recipe, name, on)}; or " if advise and name in trained else ""
            raise UserError(f"stages.{name} does not fit machine {on}: {too_little}; {nearest}change `machine`")
    return Estimate(on, found)


def _stage(
    recipe: Recipe,
    name: str,
    sizes: Sizes,
    machine: Machine,
    profile: MachineProfile,
    trace: Tracer | None,
    batch: MicroBatch | None,
) -> StageEstimate:
    strategy = resolve_strategy(recipe, name, machine, sizes)
    records = profile.records
    roles, devices = on_devices(recipe, name, sizes, machine, strategy, trace=trace, records=records, batch=batch)
    row = UsualRow.of(recipe.trained[name], batch)
    speed = stage_speed(recipe, name, sizes, machine, strategy, profile.rates, row)
    return StageEstimate(strategy, roles, devices, speed)


def _measuring(
    recipe: Recipe, name: str, sizes: Sizes, machine: Machine, profile: MachineProfile
) -> StageEstimate | None:
    """The estimate of a stage that only measures; None for another."""
    workers, shape = recipe.stages[name].workers, recipe.stages[name].measuring()
    if workers is None or shape is None:
        return None
    refuse_longer(recipe, name, shape, sizes)
    roles, devices = inference_memory(recipe, name, workers, shape, sizes, machine)
    speed = inference_speed(recipe, name, workers, shape, sizes, machine, profile.rates)
    return StageEstimate(strategy_of(workers), roles, devices, speed)


def _refuse_what_the_base_cannot(recipe: Recipe, name: str, sizes: Sizes) -> None:
    stage = recipe.trained[name]
    shape, taken = stage.shape(), max(positions(role.method) for role in stage.roles(recipe.stages))
    if stage.own_method is not None:
        try:
            trained(stage.own_method, sizes)
        except UserError as error:
            raise UserError(f"stages.{name}.{error}") from None
    _refuse_experts(recipe, name, sizes)
    if sizes.max_length is not None and shape.context + taken > sizes.max_length:
        why = f"with this base and the method's {taken} virtual tokens" if taken else "with this base"
        raise UserError(
            f"stages.{name}.{shape.context_field}: {shape.context} tokens; "
            f"allowed: up to {sizes.max_length - taken} {why}"
        )


def _refuse_experts(recipe: Recipe, name: str, sizes: Sizes) -> None:
    """UserError where LoRA on experts meets a strategy or engines that have no place for it."""

    def reach(method: Method | None) -> bool:
        return method is not None and any(reached_experts(part, sizes.experts) for part in parts_of(method))

    stage = recipe.trained[name]
    if stage.workers.strategy == "zero3" and reach(stage.own_method):
        raise UserError(f"stages.{name}.train.workers.strategy: {NOT_GATHERED}")
    policy = recipe.stages.get(getattr(stage, "policy", ""))
    as_adapter = stage.engines is not None and stage.engines.sync == "adapter"
    if as_adapter and policy is not None and reach(policy.output_method(recipe.stages)):
        raise UserError(f"stages.{name}.rollout.sync: {NO_EXPERTS}")


def _shortage(found: StageEstimate) -> str | None:
    """A sentence on the first device whose memory is too small even at the low end of the interval; None: all fit."""
    for label, device in found.devices.items():
        if device.peak.low > device.capacity:
            needed, has = device.peak.low / GIB, device.capacity / GIB
            return f"{label} needs at least {needed:.1f} GiB and has {has:.1f} GiB"
    return None
