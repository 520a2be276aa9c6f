"""Model cards: what a version was made from, and what evaluations measured of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from triptych.observe.evaluations import FIGURES, cell
from triptych.registry import AdapterVersion, Registry

Evaluations = Mapping[str, Mapping[str, Any]]
"""Ref of an evaluation -> its figures."""


def evaluations_of(registry: Registry, version: AdapterVersion) -> dict[str, dict[str, Any]]:
    """Figures of every evaluation that measured a version, by the evaluation's ref."""
    made = [one for one in registry.descendants(version.ref) if one.kind == "evaluation"]
    found = {one.ref: json.loads((registry.fetch(one.ref) / FIGURES).read_text(encoding="utf-8")) for one in made}
    return {ref: figures for ref, figures in found.items() if version.ref in figures["versions"].values()}


def model_card(version: AdapterVersion, evaluations: Evaluations) -> str:
    """A version's card in the form of the Hugging Face hub: facts and results for programs, then a text with tables."""
    results = [result for ref, figures in evaluations.items() for result in _results(version, ref, figures)]
    facts: dict[str, Any] = {"base_model": version.base, "tags": ["triptych", version.kind]}
    if results:
        facts["model-index"] = [{"name": version.ref, "results": results}]
    parents = version.lineage.get("parents") or []
    lines = [
        f"# {version.ref}",
        "",
        f"A {version.kind.replace('_', ' ')} on `{version.base}`, sha256 `{version.sha256}`.",
    ]
    lines += ["", f"Made from {', '.join(f'`{ref}`' for ref in parents)}."] if parents else []
    for ref, figures in evaluations.items():
        lines += ["", f"## {ref}", "", *_table(version, figures)]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join(lines) + "\n"


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
            yield f"| {name} | {found['rows']} | {metric} | {' | '.join(shown)} |"


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
