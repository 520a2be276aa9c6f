"""`auto` in the place of a value that the plan can choose, before a recipe is checked."""

import copy
from typing import Any, get_args

from triptych.recipe.training import AutoSetting


def name_auto(data: Any) -> Any:
    """A recipe's plain data with each setting of value `auto` moved to the list `auto` of its `train`.

    The strategy's `auto` is a value like any other.
    """
    data = copy.deepcopy(data)
    stages = data.get("stages") if isinstance(data, dict) else None
    for stage in stages.values() if isinstance(stages, dict) else ():
        if not isinstance(stage, dict):
            continue
        holder = stage.get("train")
        if isinstance(holder, dict):
            _take(holder)
    return data


def _take(holder: dict[str, Any]) -> None:
    chosen = [name for name in get_args(AutoSetting) for place in _places(holder) if place.get(name) == "auto"]
    for place in _places(holder):
        for name in chosen:
            if place.get(name) == "auto":
                del place[name]
    if chosen:
        holder["auto"] = [*(holder.get("auto") or ()), *chosen]


def _places(holder: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a stage's `train` that settings stand in."""
    below = (holder.get(name) for name in ("batch", "memory"))
    return [place for place in below if isinstance(place, dict)]
