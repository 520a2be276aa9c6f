"""`triptych methods`: the table of parameter-efficient methods, or everything about one of them."""

import difflib
import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from triptych.errors import UserError

_STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")
_EXAMPLES: dict[str, dict[str, Any]] = {"freeze": {"layers": 2}}
"""Settings to show for methods that have none by default."""
_WIDE = 140
"""Columns of a terminal from which the table has room for columns of whole sentences."""

MethodFacts = dict[str, Any]


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show all that is known of this one.")] = None,
    model: Annotated[str, typer.Option(help="Base that shares are counted on.")] = "smollm2-135m-instruct",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what each method trains by default, how it is served, and with which strategies and stages it works."""
    from triptych.models.sizes import model_sizes
    from triptych.recipe import Model

    names = _chosen(name)
    sizes = model_sizes(Model(base=model))
    found = {name: _facts(name, sizes) for name in names}
    if as_json:
        typer.echo(json.dumps(found if name is None else found[name], indent=2))
    elif name is None:
        _print_table(model, found)
    else:
        _print_one(name, model, found[name])


def _chosen(name: str | None) -> list[str]:
    from triptych.methods import METHODS
    from triptych.recipe.method import PRESETS

    names = [*METHODS, *PRESETS]
    if name is None or name in names:
        return names if name is None else [name]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"there is no method {name!r}; {hint}allowed: {', '.join(names)}")


def _facts(name: str, sizes: Any) -> MethodFacts:
    from triptych.methods import METHODS, trained
    from triptych.recipe.method import PRESETS, parts_of

    config: Any = METHODS[name].config if name in METHODS else PRESETS[name]
    method: Any = config(**_EXAMPLES.get(name, {}))
    entries = [METHODS[part.name] for part in parts_of(method)]
    facts: MethodFacts = {
        "parts": [part.name for part in parts_of(method)],
        "about": " ".join(inspect.cleandoc(config.__doc__ or "").split()),
        "trains": "; ".join(entry.trains for entry in entries),
        "parameters": None,
        "share": None,
        "learning_rates": [max(e.learning_rates[0] for e in entries), min(e.learning_rates[1] for e in entries)],
        "merges": all(entry.merges for entry in entries),
        "served": "; ".join(dict.fromkeys(entry.served for entry in entries)),
        "needs": "; ".join(dict.fromkeys(entry.needs for entry in entries if entry.needs)),
        "paper": entries[0].paper if name in METHODS else config.paper,
    }
    cannot = _refusals(method)
    try:
        facts["parameters"] = sum(tensors.numel for tensors in trained(method, sizes))
        facts["share"] = facts["parameters"] / sizes.total
    except UserError as error:
        cannot["this model"] = str(error)
    return facts | {"cannot": cannot}


def _refusals(method: Any) -> dict[str, str]:
    """Strategy, quantized base or stage that the method does not work with -> reason."""
    from triptych.recipe.refusals import as_policy, beside_head, on_quantized, under_strategy

    reasons = {strategy: under_strategy(method, strategy) for strategy in _STRATEGIES}
    reasons |= {"quantized base": on_quantized(method, "int8"), "ppo": as_policy(method)}
    reasons["classification"] = beside_head(method, "classification")
    return {place: reason for place, reason in reasons.items() if reason}


def _print_table(model: str, found: Mapping[str, MethodFacts]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    wide = console.width >= _WIDE
    table = Table(title=f"Methods; shares of {model}, with default settings", box=None, padding=(0, 2, 0, 0))
    for column in ("method", "share", "learning rates"):
        table.add_column(column, justify="right" if column == "share" else "left", no_wrap=True)
    for column in ("merges", "served", "not with", "trains") if wide else ("served", "not with"):
        table.add_column(column, overflow="fold")
    for name, facts in found.items():
        places = ", ".join(facts["cannot"])
        if wide:
            rest = ["yes" if facts["merges"] else "no", facts["served"], places, facts["trains"]]
        else:
            rest = [facts["served"].partition(",")[0], places]
        table.add_row(name, _share(facts), _rates(facts), *rest)
    console.print(table)
    for reason, names in _reasons(found).items():
        console.print(f"- not with {reason} ({', '.join(names)})", highlight=False)
    console.print("\nAll that is known of one: triptych methods NAME", highlight=False)


def _reasons(found: Mapping[str, MethodFacts]) -> dict[str, list[str]]:
    """Reason, without the method's name -> methods that it applies to."""
    reasons: dict[str, list[str]] = {}
    for name, facts in found.items():
        for place, reason in facts["cannot"].items():
            said = reason.partition("; allowed")[0].removeprefix("method.name: ")
            predicate = next((said.removeprefix(f"{part} ") for part in facts["parts"] if said.startswith(part)), said)
            reasons.setdefault(f"{place}: {predicate}", []).append(name)
    return reasons


def _print_one(name: str, model: str, facts: MethodFacts) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "method": name + (f" ({' + '.join(facts['parts'])})" if facts["parts"] != [name] else ""),
        "about": facts["about"],
        "trains": facts["trains"],
        "share": f"{_share(facts)} of {model}, with default settings",
        "learning rates": _rates(facts),
        "merges": "yes" if facts["merges"] else "no",
        "served": facts["served"],
        "needs": facts["needs"],
        "paper": facts["paper"],
    }
    rows |= {f"not with {place}": reason for place, reason in facts["cannot"].items()}
    for what, value in rows.items():
        if value:
            table.add_row(what, value)
    Console(highlight=False).print(table)


def _share(facts: MethodFacts) -> str:
    return "-" if facts["share"] is None else f"{facts['share']:.3%}"


def _rates(facts: MethodFacts) -> str:
    low, high = facts["learning_rates"]
    return f"{low:g} - {high:g}"
