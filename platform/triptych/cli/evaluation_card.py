"""What evaluations measured of a version, as its model card shows it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from triptych.artifact_kinds import EVALUATION
from triptych.observe.evaluations import FIGURES, cell, rows_of
from triptych.registry import AdapterVersion, Registry
from triptych.registry.card import EvaluationResults


def measured(registry: Registry, version: AdapterVersion) -> tuple[EvaluationResults, ...]:
    """The figures of every evaluation that measured a version, the earliest evaluation first."""
    made = [one for one in registry.descendants(version.ref) if one.kind == EVALUATION]
    found = {one.ref: json.loads((registry.fetch(one.ref) / FIGURES).read_text(encoding="utf-8")) for one in made}
    return tuple(
        EvaluationResults(ref, tuple(_results(version, ref, figures)), "\n".join(_table(version, figures)) + "\n")
        for ref, figures in found.items()
        if version.ref in figures["versions"].values()
    )


def _table(version: AdapterVersion, figures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a table: this version beside the model that others were compared with."""
    first = figures["models"][0]
    yield "Figures with 95 % intervals; the last column is the difference from the first model on the same rows."
    yield ""
    yield f"| set | rows | figure | {figures['versions'].get(first, first)} | {version.ref} | difference |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, found in figures["sets"].items():
        for metric, one in found["figures"].items():
            own = one["models"].get(_name(version, figures))
            shown = (cell(one["models"].get(first)), cell(own), cell((own or {}).get("difference"), sign="+"))
            yield f"| {name} | {rows_of(found, one)} | {metric} | {' | '.join(shown)} |"


def _results(version: AdapterVersion, ref: str, figures: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Entries of the hub's `model-index`, one a set."""
    for name, found in figures["sets"].items():
        own = {metric: one["models"].get(_name(version, figures)) for metric, one in found["figures"].items()}
        metrics = [
            {"type": metric, "value": one["value"], "args": {"interval_95": [one["low"], one["high"]]}}
            for metric, one in own.items()
            if one is not None
        ]
        yield {"task": {"type": found["measure"]}, "dataset": {"name": name, "type": ref}, "metrics": metrics}


def _name(version: AdapterVersion, figures: Mapping[str, Any]) -> str:
    """The name that an evaluation has for a version."""
    return next(name for name, ref in figures["versions"].items() if ref == version.ref)
