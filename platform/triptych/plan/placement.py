"""Placement of stages: resources requested from Ray, whether a machine has them, and which stages run in parallel."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.errors import UserError
from triptych.plan.machines import Machine
from triptych.recipe import Recipe, StageBase, ready, stage_order
from triptych.recipe.spec import did_you_mean, dotted

ENGINE = "engine"
"""Role of the processes of a stage's engines."""
_EPSILON = 1e-6


@dataclass(frozen=True)
class Request:
    """`count` processes, each with its own share of one node."""

    stage: str
    role: str
    """Role of the processes: `worker` or `engine`."""
    count: int
    cpus: float
    gpus: float
    count_field: str
    """Recipe field that sets `count`; `cpus` and `gpus` stand beside it."""

    def field(self, resource: str) -> str:
        """The recipe field that sets one resource."""
        return f"{self.count_field.rpartition('.')[0]}.{resource}"


@dataclass(frozen=True)
class PlacedProcess:
    """The node, and its GPUs if any, that one process is assigned to."""

    request: Request
    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """The stages of a recipe on a machine."""

    machine: Machine
    requests: dict[str, list[Request]]
    waves: list[list[str]]
    """Stages that start together; a wave starts when the one before is done."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "machine": {
                "name": self.machine.name,
                "cpus": self.machine.cpus,
                "gpus": self.machine.gpus,
                "gpu": self.machine.gpu.name if self.machine.gpu else None,
                "nodes": [{"cpus": n.cpus, "gpus": n.gpus, "memory_bytes": n.memory} for n in self.machine.nodes],
            },
            "stages": {
                name: [{"role": r.role, "count": r.count, "cpus": r.cpus, "gpus": r.gpus} for r in requests]
                for name, requests in self.requests.items()
            },
            "waves": self.waves,
        }


def engine_of(model: str) -> str:
    """Role of the engines that run a model of its own, such as a teacher."""
    return f"{model} {ENGINE}"


def is_engine(role: str) -> bool:
    """True for the roles of engines."""
    return role.endswith(ENGINE)


def requests(name: str, stage: StageBase) -> list[Request]:
    """Resources that a stage requests from Ray while it runs: none without a learner, and none for its driver."""
    workers, rollout, where = stage.workers, stage.engines, f"stages.{name}"
    asked = []
    if workers is not None:
        count = f"{where}.{stage.workers_field}.count"
        asked.append(Request(name, "worker", workers.count, workers.cpus, workers.gpus, count))
    if rollout is not None:
        engines = f"{where}.rollout.engines"
        asked.append(Request(name, ENGINE, rollout.engines, rollout.cpus, rollout.gpus, engines))
    for one in stage.engine_models:
        engines = f"{where}.{dotted(one.field)}.engines.engines"
        asked.append(
            Request(name, engine_of(one.name), one.engines.engines, one.engines.cpus, one.engines.gpus, engines)
        )
    return asked


def place(recipe: Recipe, machine: Machine, stage: str | None = None) -> Placement:
    """Place all stages, or one.

    Raises:
        UserError: no such stage, or one that never fits; the message names the resource, what is missing and the
            fields to change.
    """
    if stage is not None and stage not in recipe.stages:
        raise UserError(
            f"no stage `{stage}`{did_you_mean(stage, list(recipe.stages))}; allowed: {', '.join(recipe.stages)}"
        )
    order = [name for name in stage_order(recipe) if stage in (None, name)]
    asked = {name: requests(name, recipe.stages[name]) for name in order}
    for wanted in asked.values():
        if pack(wanted, machine) is None:
            raise UserError(_shortage(wanted, machine))
    return Placement(machine, asked, _waves(recipe, asked, machine))


def pack(wanted: Iterable[Request], machine: Machine) -> list[PlacedProcess] | None:
    """A place for every process, the largest first on the first node that has room; None where one finds none."""
    cpus = [node.cpus for node in machine.nodes]
    gpus = [[1.0] * node.gpus for node in machine.nodes]
    places = []
    for request in sorted(wanted, key=lambda r: (r.gpus, r.cpus), reverse=True):
        for _ in range(request.count):
            for node in range(len(cpus)):
                taken = _gpus_for(request.gpus, gpus[node])
                if taken is not None and cpus[node] + _EPSILON >= request.cpus:
                    break
            else:
                return None
            cpus[node] -= request.cpus
            for index in taken:
                gpus[node][index] -= min(1.0, request.gpus)
            places.append(PlacedProcess(request, node, taken))
    return places


def _gpus_for(share: float, free: Sequence[float]) -> tuple[int, ...] | None:
    """GPUs of a node with room for a share of one GPU (the fullest first, as Ray does) or for that many whole ones."""
    if share == 0:
        return ()
    if share < 1:
        fits = [index for index, room in enumerate(free) if room + _EPSILON >= share]
        return (min(fits, key=lambda index: free[index]),) if fits else None
    whole = [index for index, room in enumerate(free) if room + _EPSILON >= 1]
    return tuple(whole[: int(share)]) if share == int(share) and len(whole) >= share else None


def _waves(recipe: Recipe, asked: dict[str, list[Request]], machine: Machine) -> list[list[str]]:
    if len(asked) == 1:
        return [list(asked)]
    done: list[str] = []
    waves: list[list[str]] = []
    while len(done) < len(asked):
        wave: list[str] = []
        for name in ready(recipe, done, ()):
            if pack([request for other in (*wave, name) for request in asked[other]], machine) is not None:
                wave.append(name)
        waves.append(wave)
        done += wave
    return waves


def _shortage(wanted: Sequence[Request], machine: Machine) -> str:
    """The reason why a stage does not fit even alone, as a sentence."""
    who = f"stages.{wanted[0].stage}"
    for resource, unit in (("cpus", "CPU"), ("gpus", "GPU")):
        largest = max(getattr(node, resource) for node in machine.nodes)
        for request in wanted:
            each, field = getattr(request, resource), request.field(resource)
            if resource == "gpus" and each > 1 and each != int(each):
                return f"{field}: {each:g} is no share of a GPU; allowed: up to 1, or a whole number"
            if each > largest + _EPSILON:
                return (
                    f"{who} does not fit machine {machine}: each {request.role} asks for {each:g} {unit}s and "
                    f"no node has more than "
                    f"{largest:g} ({each - largest:g} missing); lower {field} to {largest:g}, or change `machine`"
                )
        total = getattr(machine, resource)
        needed = sum(request.count * getattr(request, resource) for request in wanted)
        if needed > total + _EPSILON:
            askers = [request for request in wanted if getattr(request, resource)]
            listed = " + ".join(f"{r.count} {r.role}{'s' * (r.count > 1)} x {getattr(r, resource):g}" for r in askers)
            fields = [field for r in askers for field in (r.count_field, r.field(resource))]
            return (
                f"{who} does not fit machine {machine}: it needs {needed:g} {unit}s ({listed}) and there are {total:g} "
                f"({needed - total:g} missing); lower {' or '.join(fields)}, or change `machine`"
            )
    shares = ", ".join(f"{r.count} {r.role}s of {r.cpus:g} CPUs and {r.gpus:g} GPUs" for r in wanted)
    fields = [field for r in wanted for field in (r.count_field, r.field("cpus"), r.field("gpus"))]
    return f"{who} does not fit machine {machine}: no way to lay {shares} on its nodes; lower {' or '.join(fields)}"


def cores(request: Request, machine: Machine) -> int:
    """Cores that one of the request's processes can count on where all lie on the largest node."""
    node = max(node.cpus for node in machine.nodes)
    return max(1, math.floor(node / request.count))
