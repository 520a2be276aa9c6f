"""`triptych models`: the table of families of causal models, or what is known of one model."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from triptych.models.families import TriedFamily


def models(
    base: Annotated[str | None, typer.Argument(metavar="[BASE]", help="A base of recipes: show this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show which families of models were tried: trained packed or padded, by which methods, sampled, planned.

    Of a BASE only config.json is read: its family's line, its parameters and its context.
    """
    from triptych.models.families import tried_families

    tried = tried_families()
    if base is not None:
        facts = _facts(base, tried)
        typer.echo(json.dumps(facts, indent=2)) if as_json else _print_one(facts)
    elif as_json:
        typer.echo(json.dumps({name: _as_dict(family) for name, family in tried.items()}, indent=2))
    else:
        _print_table(tried)


def _facts(base: str, tried: Mapping[str, "TriedFamily"]) -> dict[str, Any]:
    from triptych.models.sizes import read_config, sizes_of
    from triptych.recipe import Model

    config = read_config(Model(base=base))
    kind = str(config.get("model_type"))
    sizes = sizes_of(config, base)
    known = _as_dict(tried[kind]) if kind in tried else None
    return {"base": base, "family": kind, "parameters": sizes.total, "context": sizes.max_length, "tried": known}


def _as_dict(family: "TriedFamily") -> dict[str, Any]:
    return {"trained": family.trained, **asdict(family)}


def _print_one(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what in ("base", "family", "parameters", "context"):
        table.add_row(what, f"{facts[what]:,}" if isinstance(facts[what], int) else str(facts[what]))
    tried = facts["tried"]
    if tried is None:
        table.add_row("tried", "no: a run packs or pads it by looking, and an engine says whether it takes it")
    else:
        table.add_row("trained", ", because ".join(filter(None, (tried["trained"], tried["padded_because"]))))
        table.add_row("not with", ", ".join(tried["refused_methods"]))
        table.add_row("engine", tried["engine"])
        table.add_row("engine with LoRA", tried["adapter"])
        table.add_row("planned", tried["plan"] or "yes")
    Console(highlight=False).print(table)


def _print_table(tried: Mapping[str, "TriedFamily"]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Families, as tried with tiny random models", box=None, padding=(0, 2, 0, 0))
    for column in ("family", "trained", "methods", "engine", "engine with LoRA", "planned"):
        table.add_column(column, overflow="fold", no_wrap=column == "family")
    reasons: dict[str, list[str]] = {}
    for name, family in tried.items():
        said = {"padded": family.padded_because, "engine": _unequal(family.engine), "planned": family.plan}
        said |= {"engine with LoRA": _unequal(family.adapter)}
        for what, reason in said.items():
            if reason:
                reasons.setdefault(f"{what}: {reason}", []).append(name)
        table.add_row(name, family.trained, *_cells(family))
    console.print(table)
    for reason, names in reasons.items():
        console.print(f"- {reason} ({', '.join(names)})", highlight=False, markup=False)
    console.print("\nOne model: triptych models BASE", highlight=False)


def _cells(family: "TriedFamily") -> list[str]:
    refused = len(family.refused_methods)
    return [
        f"all but {refused}" if refused else "all",
        "no" if _unequal(family.engine) else "equal",
        "no" if _unequal(family.adapter) else "equal",
        "no" if family.plan else "yes",
    ]


def _unequal(said: str) -> str | None:
    from triptych.models.families import EQUAL

    return None if said == EQUAL else said
