"""The fastest settings of a stage that fit the memory there is."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from triptych.errors import UserError
from triptych.models.sizes import Sizes, model_sizes
from triptych.plan.amounts import TRANSIENT, Bytes, total
from triptych.plan.calibration import NO_PROFILE, MachineProfile
from triptych.plan.devices import DeviceEstimate, RoleEstimate, Tracer, on_devices
from triptych.plan.machines import GIB, Machine
from triptych.plan.settings import ALL, SettingName, Settings, all_settings, resolve_strategy
from triptych.plan.speed import stage_speed
from triptych.recipe import Recipe, TrainedStage

_LOOKS = 4
"""Settings that are traced, at most, before one is chosen."""


@dataclass(frozen=True)
class Option:
    """One combination of settings with its memory and speed."""

    settings: Settings
    peak: Bytes
    """Peak memory of the fullest device."""
    room: int
    """Bytes that this device has for the recipe."""
    device: str
    largest: str
    """The part that needs most of a worker's memory, of those that come and go."""
    tokens_per_second: float

    @property
    def fits(self) -> bool:
        """True where the high end of the peak's interval is within the device's memory."""
        return self.peak.high <= self.room

    @property
    def why_not(self) -> str:
        """The reason for not fitting, as a sentence: the device, its memory and the largest part."""
        return (
            f"{self.device} may need {self.peak.high / GIB:.1f} GiB of {self.room / GIB:.1f}, most of it {self.largest}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        settings = {name: getattr(self.settings, name) for name in Settings.__dataclass_fields__}
        found = {"peak_bytes": self.peak.as_dict(), "room_bytes": self.room, "fits": self.fits}
        return settings | found | {"tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Choice:
    """The settings chosen for a stage, and the alternatives."""

    best: Option
    runners_up: tuple[Option, ...]
    """Other options that fit, fastest first."""
    refused: tuple[Option, ...]
    """Options that would be faster than the best but do not fit, fastest first."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "best": self.best.as_dict(),
            "runners_up": [option.as_dict() for option in self.runners_up],
            "refused": [option.as_dict() | {"why": option.why_not} for option in self.refused],
        }


def choose(
    recipe: Recipe,
    stage: str,
    machine: Machine,
    *,
    profile: MachineProfile = NO_PROFILE,
    vary: Collection[SettingName] | None = None,
    exact: bool = False,
    trace: Tracer | None = None,
) -> Choice:
    """The fastest of the settings that fit; of equally fast ones (within 1%) the one that needs least.

    `vary`: the settings that may be changed; None: what the recipe leaves to `auto`. The global batch stays.
    `trace`: settings that the closed form is not sure of are traced where nothing else fits, the fastest first; that
    takes seconds each. `exact`: they are traced in any case.

    Raises:
        UserError: nothing fits.
        ValueError: `exact` without a tracer.
    """
    if exact and trace is None:
        raise ValueError("exact needs `trace`")
    found = options(recipe, stage, machine, profile=profile, vary=vary)
    if trace is not None and (exact or not any(option.fits for option in found)):
        sizes = model_sizes(recipe.model)
        found = _retraced(found, partial(_option, recipe, stage, sizes, machine, profile, trace=trace))
    fitting = sorted((option for option in found if option.fits), key=lambda o: o.tokens_per_second, reverse=True)
    if not fitting:
        raise UserError(f"stages.{stage}: {_nothing(found)}")
    best = _best(fitting)
    faster = [o for o in found if not o.fits and o.tokens_per_second > best.tokens_per_second]
    return Choice(
        best,
        tuple(option for option in fitting if option != best),
        tuple(sorted(faster, key=lambda o: o.tokens_per_second, reverse=True)),
    )


def _best(found: Sequence[Option]) -> Option:
    fastest = max(option.tokens_per_second for option in found)
    return min((o for o in found if o.tokens_per_second >= 0.99 * fastest), key=lambda o: o.peak.high)


def _retraced(found: Sequence[Option], look: Callable[[Settings], Option]) -> list[Option]:
    """The options, with traced memory for the fastest ones that may fit, until one of these fits."""
    settled = list(found)
    least = max((option.tokens_per_second for option in found if option.fits), default=0.0)
    hopeful = [o for o in found if not o.fits and o.peak.expected <= o.room and 0.99 * o.tokens_per_second > least]
    for _ in range(min(_LOOKS, len(hopeful))):
        option = _best(hopeful)
        hopeful.remove(option)
        settled[settled.index(option)] = again = look(option.settings)
        if again.fits:
            break
    return settled


def options(
    recipe: Recipe,
    stage: str,
    machine: Machine,
    *,
    profile: MachineProfile = NO_PROFILE,
    vary: Collection[SettingName] | None = None,
) -> list[Option]:
    """All settings with their memory and speed, those of one strategy, checkpointing and chunk together."""
    sizes = model_sizes(recipe.model)
    planned = recipe.trained[stage]
    own = Settings.of(planned, resolve_strategy(recipe, stage, machine, sizes))
    if vary is None:
        auto = planned.train.auto
        vary = (*auto, "strategy") if planned.workers.strategy == "auto" else auto
    tried = all_settings(recipe, stage, own, vary)
    return [_option(recipe, stage, sizes, machine, profile, setting) for setting in tried]


def with_choice(
    recipe: Recipe,
    name: str,
    machine: Machine,
    *,
    profile: MachineProfile = NO_PROFILE,
    exact: bool = False,
    trace: Tracer | None = None,
) -> TrainedStage:
    """The stage with everything that it leaves to `auto` chosen; see `choose`."""
    stage = recipe.trained[name]
    if not stage.train.auto:
        return Settings.of(stage, resolve_strategy(recipe, name, machine)).on(stage)
    return choose(recipe, name, machine, profile=profile, exact=exact, trace=trace).best.settings.on(stage)


def nearest_that_fits(recipe: Recipe, name: str, machine: Machine) -> str:
    """Advice for a stage that does not fit: its fastest settings that do, or else those that need least."""
    found = options(recipe, name, machine, vary=ALL)
    fitting = [option for option in found if option.fits]
    if not fitting:
        return _nothing(found)
    best = max(fitting, key=lambda option: option.tokens_per_second)
    needs = f"{best.peak.expected / GIB:.1f} GiB, {best.tokens_per_second:,.0f} tokens/s"
    return f"nearest that fits: {best.settings} ({needs})"


def _nothing(found: Sequence[Option]) -> str:
    least = min(found, key=lambda option: option.peak.high)
    return f"no setting fits: with {least.settings}, {least.why_not}"


def _option(
    recipe: Recipe,
    name: str,
    sizes: Sizes,
    machine: Machine,
    profile: MachineProfile,
    settings: Settings,
    *,
    trace: Tracer | None = None,
) -> Option:
    changed = recipe.model_copy(update={"stages": {**recipe.stages, name: settings.on(recipe.trained[name])}})
    roles, devices = on_devices(changed, name, sizes, machine, settings.strategy, trace=trace, records=profile.records)
    label, device = _fullest(devices)
    speed = stage_speed(changed, name, sizes, machine, settings.strategy, profile.rates)
    return Option(
        settings, device.peak, device.capacity, label, _largest(list(roles.values())), speed.tokens_per_second
    )


def _fullest(devices: dict[str, DeviceEstimate]) -> tuple[str, DeviceEstimate]:
    return max(devices.items(), key=lambda item: item[1].peak.high / item[1].capacity)


def _largest(roles: Sequence[RoleEstimate]) -> str:
    sums = {part: total(r.parts[part] for r in roles if part in r.parts) for r in roles for part in r.parts}
    coming = {part: size for part, size in sums.items() if part in TRANSIENT} or sums
    return max(coming, key=lambda part: coming[part].expected)
