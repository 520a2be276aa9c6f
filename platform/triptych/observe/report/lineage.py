"""Lineage of a run's adapters as inline SVG: one box for each version, arrows from its parents."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from triptych.observe.runs import RunView, StageView

_BOX, _TALL, _GAP_X, _GAP_Y = 210, 50, 56, 16


@dataclass(frozen=True)
class LineageNode:
    """A model or adapter version of the picture. `own`: made by this run."""

    key: str
    title: str
    note: str
    parents: tuple[str, ...]
    own: bool


def nodes(run: RunView) -> list[LineageNode]:
    """The base, what was taken from the registry, and what the stages made; parents before children."""
    base = str((run.recipe.get("model") or {}).get("base", "base"))
    made = {_version(stage): stage for stage in run.stages if stage.state is not None}
    parents = {version: _parents(stage, base) for version, stage in made.items()}
    outside = [ref for refs in parents.values() for ref in refs if ref not in made and ref != base]
    found = [LineageNode(base, base, "base model", (), own=False)]
    found += [LineageNode(ref, ref, "from the registry", (base,), own=False) for ref in dict.fromkeys(outside)]
    found += [
        LineageNode(version, version, f"stage {stage.name}", parents[version], own=True)
        for version, stage in made.items()
    ]
    return sorted(found, key=lambda node: _depth(node.key, {n.key: n.parents for n in found}))


def draw(found: Sequence[LineageNode]) -> str:
    """Draw the nodes as an `<svg>`, in columns by distance from the base."""
    edges = {node.key: node.parents for node in found}
    columns: dict[int, list[LineageNode]] = {}
    for node in found:
        columns.setdefault(_depth(node.key, edges), []).append(node)
    tallest = max(len(column) for column in columns.values())
    height = tallest * (_TALL + _GAP_Y) - _GAP_Y + 2
    at: dict[str, tuple[float, float]] = {}
    for column, members in columns.items():
        top = (height - len(members) * (_TALL + _GAP_Y) + _GAP_Y) / 2
        for row, node in enumerate(members):
            at[node.key] = (1 + column * (_BOX + _GAP_X), top + row * (_TALL + _GAP_Y))
    width = len(columns) * (_BOX + _GAP_X) - _GAP_X + 2
    arrows = "".join(_arrow(at[parent], at[node.key]) for node in found for parent in node.parents if parent in at)
    boxes = "".join(_box(node, *at[node.key]) for node in found)
    size = f'width="{width}" height="{height:.0f}"'
    return f'<svg class="lineage" {size} role="img" aria-label="Lineage">{arrows}{boxes}</svg>'


def _box(node: LineageNode, left: float, top: float) -> str:
    title = node.title if len(node.title) <= 27 else node.title[:26] + "…"
    return (
        f'<g class="{"own" if node.own else "outside"}"><title>{escape(node.title)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{_BOX}" height="{_TALL}" rx="8"/>'
        f'<text class="name" x="{left + 12:.1f}" y="{top + 21:.1f}">{escape(title)}</text>'
        f'<text class="note" x="{left + 12:.1f}" y="{top + 38:.1f}">{escape(node.note)}</text></g>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + _BOX, start[1] + _TALL / 2, end[0], end[1] + _TALL / 2
    middle = (x1 + x2) / 2
    curve = f"M{x1:.1f},{y1:.1f} C{middle:.1f},{y1:.1f} {middle:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    return f'<path class="arrow" d="{curve}"/>'


def _version(stage: StageView) -> str:
    return str((stage.summary or {}).get("registered") or f"{stage.name} (not registered)")


def _parents(stage: StageView, base: str) -> tuple[str, ...]:
    refs = (stage.state or {}).get("parents") or {}
    return tuple(refs) or (base,)


def _depth(key: str, parents: dict[str, tuple[str, ...]], seen: frozenset[str] = frozenset()) -> int:
    above = [p for p in parents.get(key, ()) if p in parents and p not in seen]
    return 1 + max((_depth(parent, parents, seen | {key}) for parent in above), default=-1)
