"""`triptych methods`: the table of parameter-efficient methods."""

import json
from typing import Annotated, Any

import typer

from triptych.errors import UserError

_STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")
_EXAMPLES: dict[str, dict[str, Any]] = {"freeze": {"layers": 2}}
"""What stands for a method whose defaults train nothing."""


def methods(
    model: Annotated[str, typer.Option(help="Base that shares are counted on.")] = "smollm2-135m-instruct",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What each method trains, with its defaults, on which strategies, for which stages, and how it is served."""
    from triptych.methods import METHODS
    from triptych.models.sizes import model_sizes
    from triptych.recipe import Model

    sizes = model_sizes(Model(base=model))
    found = {name: _facts(name, sizes) for name in METHODS}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _print(model, found)


def _facts(name: str, sizes: Any) -> dict[str, Any]:
    from triptych.methods import METHODS
    from triptych.recipe.refusals import as_policy, in_stage, on_quantized, under_strategy

    entry = METHODS[name]
    method = entry.config(**_EXAMPLES.get(name, {}))
    facts: dict[str, Any] = {
        "trains": entry.trains,
        "parameters": None,
        "share": None,
        "learning_rates": list(entry.learning_rates),
        "merges": entry.merges,
        "served": entry.served,
        "needs": entry.needs,
        "paper": entry.paper,
    }
    cannot = {strategy: under_strategy(method, strategy) for strategy in _STRATEGIES}
    cannot |= {"quantized base": on_quantized(method, "int8"), "ppo": as_policy(method)}
    cannot["reward, classification"] = in_stage(method, "reward")
    try:
        facts["parameters"] = sum(tensors.numel for tensors in entry.tensors(method, sizes))
        facts["share"] = facts["parameters"] / sizes.total
    except UserError as error:
        cannot["this model"] = str(error)
    facts["cannot"] = {place: reason for place, reason in cannot.items() if reason}
    return facts


def _print(model: str, found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Methods; shares of {model}, with default settings")
    for column, align in (("method", "left"), ("trains", "left"), ("share", "right"), ("learning rates", "left")):
        table.add_column(column, justify=align, overflow="fold")  # type: ignore[arg-type]
    for column in ("merges", "not with", "served"):
        table.add_column(column, overflow="fold")
    for name, facts in found.items():
        share = "-" if facts["share"] is None else f"{facts['share']:.3%}"
        low, high = facts["learning_rates"]
        merges = "yes" if facts["merges"] else "no"
        table.add_row(
            name, facts["trains"], share, f"{low:g} - {high:g}", merges, ", ".join(facts["cannot"]), facts["served"]
        )
    console = Console()
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, facts in found.items():
        for place, reason in facts["cannot"].items():
            reasons.setdefault(f"{place}: {reason.partition('; allowed')[0]}", []).append(name)
    for reason in reasons:
        console.print(f"- {reason}", highlight=False)
