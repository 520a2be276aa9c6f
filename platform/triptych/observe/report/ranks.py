"""Pictures of the ranks that AdaLoRA gave to a model's modules."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from triptych.errors import RunError
from triptych.observe.report.svg import bars, cells
from triptych.observe.runs import StageView

_MOST = 512
_MODULE = re.compile(r"(.*?)\.?layers\.(\d+)\.(?:.*\.)?([^.]+)")


@dataclass(frozen=True)
class RanksView:
    """Two pictures as SVG."""

    histogram: str
    """Number of modules by rank."""
    layers: str
    """Rank of each kind of module in each layer."""
    note: str


def view(stage: StageView) -> RanksView | None:
    """The pictures of a stage; None if ranks were not adapted. RunError if their file is damaged."""
    found = stage.ranks
    if found is None:
        return None
    try:
        ranks = [rank for one in found.values() for rank in one.values()]
        if not ranks or not all(isinstance(rank, int) and 0 <= rank <= _MOST for rank in ranks):
            raise ValueError(f"ranks are whole numbers from 0 to {_MOST}")
        counts = Counter(ranks)
        steps = range(max(ranks) + 1)
        histogram = bars(
            "Modules by rank",
            [rank - 0.5 for rank in (*steps, len(steps))],
            [counts[rank] for rank in steps],
            [f"rank {rank}" for rank in steps],
        )
        note = f"{len(ranks)} modules, mean rank {sum(ranks) / len(ranks):.2f}, {counts[0]} without any"
        return RanksView(histogram, cells("Rank by module and layer", _by_layer(next(iter(found.values())))), note)
    except (AttributeError, TypeError, ValueError) as error:
        raise RunError(f"{stage.url}/ranks.json is damaged: {error!r}") from error


def _by_layer(ranks: dict[str, Any]) -> dict[str, dict[int, int]]:
    """Kind of module -> layer -> rank."""
    found: dict[str, dict[int, int]] = {}
    for name, rank in ranks.items():
        if match := _MODULE.fullmatch(name):
            found.setdefault(match[3], {})[int(match[2])] = rank
    return found
