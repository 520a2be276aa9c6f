"""`triptych plan`: the resolved recipe, its placement, memory, speed and time, before anything is launched."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.plan import Machine, MachineProfile, Rates
    from triptych.recipe import Recipe, StageBase
    from triptych.stages.first_rows import FirstRows

WORKER_MODULES = ("triptych.stages.supervised.training",)
"""Modules that a worker of Ray Train loads in addition to the learner: 0.15 GB."""


def plan(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe, a YAML file.")] = None,
    stage: Annotated[str | None, typer.Option(help="Plan this stage only.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="8GB", help="Use no more of each device's memory.")] = None,
    price: Annotated[
        float | None, typer.Option("--price-per-hour", min=0, help="Of the whole machine; the cost is shown.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine's speed, and keep it.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Trace memory on the learner's own step: seconds a stage.")
    ] = False,
    grid: Annotated[bool, typer.Option("--grid", help="Micro-batch x memory x speed of all settings.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the grid of one stage.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Find the micro-batch by real steps on this machine.")] = False,
    explain_oom: Annotated[
        str | None, typer.Option("--explain-oom", metavar="RUN", help="Say which part of a run outgrew its plan.")
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="With --explain-oom: folder or URL of the runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check a recipe; show it resolved, its placement, and its predicted memory, speed and time. Launches nothing.

    What the recipe leaves to `auto` is chosen: the fastest that fits. `machine: local` is the cluster at RAY_ADDRESS
    where that is set, else this machine. --probe alone trains: single steps, in processes of their own.
    """
    if explain_oom is not None:
        _explain(explain_oom, runs, as_json)
        return
    if recipe is None:
        raise UserError("give a RECIPE, or --explain-oom RUN")
    loaded = _loaded(recipe, [*(overrides or []), *([f"memory={memory}"] if memory else [])])
    profile = _profile(loaded, measure)
    machine = _machine(loaded)
    if grid or plot is not None:
        _grid(loaded, stage, machine, profile, plot, as_json)
    elif probe:
        _probe(loaded, stage, machine, profile, as_json)
    else:
        _plan(loaded, stage, machine, profile, price, exact, as_json)


def _loaded(path: Path, overrides: list[str]) -> "Recipe":
    """The recipe, with what its stages inherit from registered versions."""
    from triptych.recipe import load_recipe, stage_order

    recipe = load_recipe(path, overrides)
    if any(stage.asks_versions for stage in recipe.stages.values()):
        from triptych.stages.versions import with_versions  # loads torch

        recipe = with_versions(recipe)
        stage_order(recipe)  # what is known now may not go together
    return recipe


def _plan(
    recipe: "Recipe",
    stage: str | None,
    machine: "Machine",
    profile: "MachineProfile",
    price: float | None,
    exact: bool,
    as_json: bool,
) -> None:
    from rich.console import Console

    from triptych.cli import plan_tables as tables
    from triptych.measure import traced
    from triptych.plan import choose, duration, estimate, place
    from triptych.recipe import dump_recipe

    placement = place(recipe, machine, stage)
    first_rows = _check(recipe, placement.requests)
    choices = {
        name: choose(recipe, name, machine, profile=profile, exact=exact, trace=traced)
        for name in placement.requests
        if name in recipe.trained and recipe.trained[name].train.auto
    }
    settled = {name: choice.best.settings.on(recipe.trained[name]) for name, choice in choices.items()}
    settled_recipe = recipe.model_copy(update={"stages": {**recipe.stages, **settled}})
    batches = first_rows.largest_batches(settled_recipe)
    predicted = estimate(
        settled_recipe, machine=machine, stage=stage, exact=exact, trace=traced, profile=profile, batches=batches
    )
    rows = {name: _rows(recipe.stages[name]) for name in predicted.stages}
    lasts = duration(recipe, predicted, placement, rows, price)
    if as_json:
        found = {
            "recipe": recipe.model_dump(mode="json"),
            "placement": placement.as_dict(),
            "estimate": predicted.as_dict(),
            "duration": lasts.as_dict(),
            "batches": {name: asdict(batch) for name, batch in batches.items()},
        }
        chosen = {name: choice.as_dict() for name, choice in choices.items()}
        typer.echo(json.dumps(found | ({"choices": chosen} if chosen else {}), indent=2))
        return
    typer.echo(dump_recipe(recipe))
    console = Console()
    console.print(tables.placement_table(placement))
    console.print(tables.memory_table(predicted, batches))
    if choices:
        console.print(tables.choice_table(choices))
    console.print(tables.totals_table(predicted, measured=profile.rates is not None or machine.gpu is not None))
    console.print(tables.duration_table(lasts))


def _rows(stage: "StageBase") -> int | None:
    """Number of rows that a stage passes over; None where one of its tables is not known."""
    from triptych.data.sources import quick_count

    counts = [None if source is None else quick_count(source) for source in stage.passes_over()]
    return None if None in counts else sum(filter(None, counts))


def _check(recipe: "Recipe", names: Iterable[str]) -> "FirstRows":
    """Refuse what a run of these stages would refuse. Files that are not here are named, if this machine is planned."""
    from triptych.stages.preflight import check_plan

    planned_here = recipe.machine == "local" and not os.environ.get("RAY_ADDRESS")
    return check_plan(recipe, names, partial(typer.echo, err=True) if planned_here else lambda _: None)


def _grid(
    recipe: "Recipe", only: str | None, machine: "Machine", profile: "MachineProfile", plot: Path | None, as_json: bool
) -> None:
    """Show the grid of each stage over the settings that the recipe leaves to auto, or else over all settings."""
    from rich.console import Console

    from triptych.cli.plan_tables import grid_table
    from triptych.plan import options
    from triptych.plan.plot import draw
    from triptych.plan.settings import ALL

    names = _trained(recipe, machine, only)
    if plot is not None and len(names) > 1:
        raise UserError(f"--plot draws one stage: give --stage; allowed: {', '.join(names)}")
    found = {}
    for name in names:
        vary = None if recipe.trained[name].train.auto else ALL
        found[name] = options(recipe, name, machine, profile=profile, vary=vary)
    if plot is not None:
        plot.write_text(draw(found[names[0]], f"{recipe.name}: stages.{names[0]} on {machine}"), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({name: [option.as_dict() for option in grid] for name, grid in found.items()}, indent=2))
        return
    for name, grid in found.items():
        Console().print(grid_table(name, grid))


def _probe(recipe: "Recipe", only: str | None, machine: "Machine", profile: "MachineProfile", as_json: bool) -> None:
    from triptych.measure.probe import Try, probe

    def tell(tried: Try) -> None:
        outcome = f"{tried.tokens_per_second:,.0f} tokens/s" if tried.fits else "out of memory"
        typer.echo(f"micro_tokens {tried.micro_tokens}: {outcome}", err=True)

    with redirect_stdout(sys.stderr):
        found = {
            name: probe(recipe, name, machine, profile=profile, tell=tell, worker_modules=WORKER_MODULES)
            for name in _trained(recipe, machine, only)
        }
    if as_json:
        typer.echo(json.dumps({name: probed.as_dict() for name, probed in found.items()}, indent=2))
        return
    for name, probed in found.items():
        before = " (found before)" if probed.cached else ""
        typer.echo(f"stages.{name}: micro_tokens {probed.micro_tokens}{before}")


def _trained(recipe: "Recipe", machine: "Machine", only: str | None) -> list[str]:
    """Names of the placed stages that have a learner. UserError: there is none."""
    from triptych.plan import place

    names = [name for name in place(recipe, machine, only).requests if name in recipe.trained]
    if not names:
        allowed = ", ".join(recipe.trained) or "none: no stage of the recipe has one"
        raise UserError(f"--stage {only} has no learner, so no memory to plan; allowed: {allowed}")
    return names


def _explain(name: str, runs: str, as_json: bool) -> None:
    from rich.console import Console

    from triptych.cli.plan_tables import oom_table
    from triptych.observe.oom import diagnose_oom
    from triptych.observe.runs import find_run

    diagnoses = diagnose_oom(find_run(runs, name))
    if as_json:
        typer.echo(json.dumps([diagnosis.as_dict() for diagnosis in diagnoses], indent=2))
        return
    Console().print(oom_table(diagnoses))
    for diagnosis in diagnoses:
        if diagnosis.error is not None:
            typer.echo(f"stages.{diagnosis.stage} ended with: {diagnosis.error}")


def _profile(recipe: "Recipe", measure: bool) -> "MachineProfile":
    """Measured rates of the machine, and memory records of earlier runs if the recipe's registry exists."""
    from triptych.plan import MachineProfile
    from triptych.plan.calibration import memory_records
    from triptych.registry import Registry, registry_url

    rates = _rates(recipe, measure)
    try:
        return MachineProfile(rates, memory_records(Registry(registry_url(recipe), create=False).calibrations()))
    except UserError:
        return MachineProfile(rates)


def _rates(recipe: "Recipe", measure: bool) -> "Rates | None":
    """Rates of this machine if the recipe is planned for it; None if they were never measured."""
    from triptych.plan.rates import kept_rates

    if recipe.machine != "local" or os.environ.get("RAY_ADDRESS"):
        if measure:
            raise UserError("--measure is for this machine: `machine: local`, and no RAY_ADDRESS")
        return None
    if measure:
        from triptych.measure.machine_speed import measure_apart

        typer.echo("measuring this machine's speed: half a minute", err=True)
        return measure_apart()
    return kept_rates()


def _machine(recipe: "Recipe") -> "Machine":
    from triptych.plan import cluster, machine

    if recipe.machine != "local" or not os.environ.get("RAY_ADDRESS"):
        return machine(recipe.machine)

    import ray

    from triptych.cluster.ray import connect

    with connect():
        return cluster(ray.nodes(), os.environ["RAY_ADDRESS"])
