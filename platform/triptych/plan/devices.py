"""Memory of each device that a stage computes on."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from triptych.models.sizes import Sizes
from triptych.plan import memory
from triptych.plan.amounts import ON_CPU, TRANSIENT, ZERO, Bytes, Parts, total
from triptych.plan.calibration import MemoryRecord, allocator, calibrate, machine_kind
from triptych.plan.machines import Machine
from triptych.plan.placement import PlacedProcess, is_engine, pack, requests
from triptych.plan.sharding import Sharding, sharding
from triptych.recipe import Recipe
from triptych.recipe.amount import bytes_of
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import MicroBatch


@dataclass(frozen=True)
class RoleEstimate:
    """Memory of one role in one process."""

    parts: Parts

    @property
    def peak(self) -> Bytes:
        """Peak memory on the device where the role computes; offloaded parts do not count."""
        return total(_on_device(self.parts).values())

    @property
    def peak_bytes(self) -> int:
        """Expected bytes of the peak."""
        return self.peak.expected


@dataclass(frozen=True)
class DeviceEstimate:
    """Memory of a GPU, or of a node's processors: all processes of a stage that lie there."""

    peak: Bytes
    capacity: int


class Tracer(Protocol):
    """A function that traces memory on the learner's own step, in place of the closed form; see `measure.traced`."""

    def __call__(
        self,
        recipe: Recipe,
        name: str,
        roles: dict[str, Parts],
        sizes: Sizes,
        spread: Sharding,
        batch: MicroBatch | None = None,
        *,
        on_gpu: bool,
    ) -> dict[str, Parts]:
        """The roles of stage `name` with traced parts where tracing is possible.

        Args:
            roles: parts of each role by the closed form, in one process.
            spread: how weights, gradients and optimizer state are sharded.
            batch: the largest micro-batch of the stage's data; None: the largest that the recipe allows.
            on_gpu: whether the workers compute on a GPU.
        """


def on_devices(
    recipe: Recipe,
    name: str,
    sizes: Sizes,
    machine: Machine,
    strategy: StrategyName,
    *,
    trace: Tracer | None = None,
    records: Sequence[MemoryRecord] = (),
    batch: MicroBatch | None = None,
) -> tuple[dict[str, RoleEstimate], dict[str, DeviceEstimate]]:
    """Memory of a stage's roles, and of each device of a machine that has room for its processes.

    Args:
        name: the stage.
        strategy: what `workers.strategy` resolves to.
        trace: traces the learner's step in place of the closed form.
        records: earlier runs that calibrate the prediction.
        batch: the largest micro-batch of the stage's data; None: the largest that the recipe allows.
    """
    stage = recipe.trained[name]
    roles = memory.roles(recipe, stage, sizes, strategy, machine.gpu, batch)
    workers = stage.workers
    if trace is not None:
        on_gpu = workers.gpus > 0 and machine.gpu is not None
        roles = trace(recipe, name, roles, sizes, sharding(workers, strategy), batch, on_gpu=on_gpu)
    known = calibrate(records, machine_kind(machine), recipe.model.dtype, strategy)
    if known.count:
        learned = {
            role: parts | {"allocator": allocator(parts, known)} for role, parts in roles.items() if not is_engine(role)
        }
        roles |= learned
    learner = [parts for role, parts in roles.items() if not is_engine(role)]
    processes = {
        "worker": _peak_of_turns([_on_device(parts) for parts in learner]),
        **{role: total(parts.values()) for role, parts in roles.items() if is_engine(role)},
    }
    offloaded = total(size for parts in learner for part, size in parts.items() if part.startswith(ON_CPU))
    places = pack(requests(name, stage), machine)
    assert places is not None
    return {role: RoleEstimate(parts) for role, parts in roles.items()}, by_device(
        places, processes, offloaded, machine, recipe
    )


def _on_device(parts: Parts) -> Parts:
    return {part: size for part, size in parts.items() if not part.startswith(ON_CPU)}


def _peak_of_turns(roles: list[Parts]) -> Bytes:
    """Peak of one process: the lasting parts of all roles, and the transient parts of the largest role."""
    kept = total(amount for parts in roles for part, amount in parts.items() if part not in TRANSIENT)
    turns = [total(amount for part, amount in parts.items() if part in TRANSIENT) for parts in roles]
    return kept + max(turns, key=lambda turn: turn.expected, default=ZERO)


def by_device(
    places: list[PlacedProcess], processes: Mapping[str, Bytes], offloaded: Bytes, machine: Machine, recipe: Recipe
) -> dict[str, DeviceEstimate]:
    """Peak of each device. Of processes on a GPU, only what is offloaded counts in the memory of their node."""
    peaks: dict[str, DeviceEstimate] = {}
    cap = sys.maxsize if recipe.memory is None else bytes_of(recipe.memory)

    def add(label: str, size: Bytes, capacity: int) -> None:
        before = peaks[label].peak if label in peaks else ZERO
        peaks[label] = DeviceEstimate(before + size, min(capacity, cap))

    for at in places:
        node, capacity = f"node {at.node}", machine.nodes[at.node].memory
        size = processes[at.request.role]
        if not at.gpus or machine.gpu is None:
            add(node, size, capacity)
            continue
        for gpu in at.gpus:
            add(f"{node} GPU {gpu}", size, machine.gpu.memory)
        if at.request.role == "worker" and offloaded.high:
            add(node, offloaded, capacity)
    return dict(sorted(peaks.items()))
