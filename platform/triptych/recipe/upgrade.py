"""Recipes of the form before `kind: rl`, read as what they say now."""

import copy
from collections.abc import Iterator
from typing import Any

from triptych.recipe.spec import Path

OLD_KIND = "ppo"
MOVED: dict[Path, Path] = {
    ("steps",): ("train", "steps"),
    ("policy_optimizer",): ("train", "optimizer"),
    ("micro_tokens",): ("train", "batch", "micro_tokens"),
    ("ppo", "epochs"): ("train", "batch", "epochs"),
    ("ppo", "minibatches"): ("train", "batch", "minibatches"),
    ("memory",): ("train", "memory"),
    ("workers",): ("train", "workers"),
    ("checkpoint_every",): ("train", "checkpoint_every"),
    ("evaluate_every",): ("train", "evaluate_every"),
    ("auto",): ("train", "auto"),
    ("prompts_per_step",): ("rollout", "prompts_per_step"),
    ("samples_per_prompt",): ("rollout", "samples_per_prompt"),
    ("max_prompt_tokens",): ("rollout", "max_prompt_tokens"),
    ("reward",): ("rewards", 0, "stage"),
    ("value_optimizer",): ("algorithm", "critic", "optimizer"),
    ("ppo", "kl"): ("kl",),
    ("ppo", "importance"): ("importance",),
    ("ppo", "reward_clip"): ("reward_clip",),
    ("ppo", "missing_eos_penalty"): ("missing_eos_penalty",),
    ("ppo",): ("algorithm",),
}
"""Path below a stage of kind `ppo` -> path below the same stage of kind `rl`. The longest that fits counts."""

EVALUATED = {"max_new_tokens": 48, "temperature": 1.0, "top_p": 1.0}
"""Sampling of held-out answers, as far as the old form does not say; today's takes that of the rollouts."""


def moved_path(path: Path) -> Path:
    """The place of today's form that a path below an old stage leads to."""
    for length in range(len(path), 0, -1):
        if path[:length] in MOVED:
            return (*MOVED[path[:length]], *path[length:])
    return path


def old_path(path: Path) -> Path:
    """The place of the old form that a path below today's stage was written at."""
    if path == ("algorithm", "name"):
        return ("kind",)
    for old, new in sorted(MOVED.items(), key=lambda item: -len(item[1])):
        if path[: len(new)] == new:
            return (*old, *path[len(new) :])
    return path


def is_old(stage: Any) -> bool:
    """True if a stage's plain data have the old form."""
    return isinstance(stage, dict) and stage.get("kind") == OLD_KIND


def upgraded_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a stage of kind `ppo` as kind `rl`; keys that neither form has stay where they are.

    Raises:
        ValueError: a value is given at its old and at its new place, or a value and a mapping at one place.
    """
    found: dict[str, Any] = {"kind": "rl"}
    for path, value in _written(stage):
        if path == ("reward",):
            _put(found, ("rewards",), [{"name": "model", "stage": value}])
        elif path != ("kind",):
            _put(found, moved_path(path), copy.deepcopy(value))
    if isinstance(given := found.get("evaluation", {}), dict):
        found["evaluation"] = EVALUATED | given
    return found


def upgraded(data: Any) -> Any:
    """A recipe's plain data in today's form. ValueError: as `upgraded_stage`, with the stage's name before it."""
    if not isinstance(data, dict) or not isinstance(data.get("stages"), dict):
        return data
    stages = dict(data["stages"])
    for name, stage in stages.items():
        if is_old(stage):
            try:
                stages[name] = upgraded_stage(stage)
            except ValueError as error:
                raise ValueError(f"stages.{name}.{error}") from None
    return {**data, "stages": stages}


def _written(stage: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    for key, value in stage.items():
        if key == OLD_KIND and isinstance(value, dict):
            yield from (((key, below), item) for below, item in value.items())
        else:
            yield (key,), value


def _put(found: dict[str, Any], path: Path, value: Any) -> None:
    """Write a value at a path; a mapping is merged with the one that is there."""
    if isinstance(value, dict):
        for key, item in value.items():
            _put(found, (*path, key), item)
        if value:
            return
    place = found
    for step in path[:-1]:
        place = place.setdefault(str(step), {})
        if not isinstance(place, dict):
            raise ValueError(f"{step}: is given as a value and as a mapping; allowed: one of them")
    last = str(path[-1])
    if isinstance(place.get(last), dict) and value in ({}, None):
        return
    if last in place:
        raise ValueError(
            f"{'.'.join(map(str, path))}: is given at its place of before and at its place of today; allowed: one"
        )
    place[last] = value
