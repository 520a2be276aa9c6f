"""Models of their own that engines run beside a stage: what they must share with its base, and their pools."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import UserError
from triptych.models.base import fingerprint, plain_tokenizer, resolve_base
from triptych.models.families import check_sampled
from triptych.models.sizes import model_sizes
from triptych.recipe import Recipe
from triptych.recipe.model import Model
from triptych.recipe.rollout import EngineModel
from triptych.recipe.spec import dotted

if TYPE_CHECKING:
    from triptych.rollout.pool import RolloutPool
    from triptych.stages.context import StageContext


def check_engine_models(recipe: Recipe, names: Iterable[str], find: Callable[[Model], Path | None]) -> None:
    """Refuse models whose probabilities of a stage's tokens would mean nothing, as far as `find` has their folders.

    Raises:
        UserError: there is no such model, its tokens or end tokens are others than the base's, or its context is too
            short; the field, the first difference and what is allowed are named.
    """
    for name in names:
        stage = recipe.stages[name]
        for one in stage.engine_models:
            place = dotted(("stages", name, *one.field))
            folder, base = found_model(one, place, find), find(recipe.model)
            if folder is None or base is None:
                continue
            check_sampled(json.loads((folder / "config.json").read_text(encoding="utf-8")), one.engines, place)
            _check_length(one, place)
            _check_tokens(one, place, folder, base, recipe)


def found_model(one: EngineModel, place: str, find: Callable[[Model], Path | None] = resolve_base) -> Path | None:
    """The model's folder. UserError, which names its field: there is no such model."""
    try:
        return find(one.model)
    except UserError as error:
        raise UserError(str(error).replace("model.base", f"{place}.base", 1)) from error


def start_engine_model(ctx: "StageContext[Any]", one: EngineModel) -> "RolloutPool":
    """A pool that runs the model; it takes sequences as long as those of the stage."""
    from triptych.rollout.pool import RolloutPool

    folder = found_model(one, dotted(("stages", ctx.name, *one.field)))
    return RolloutPool.start(
        model_dir=str(folder),
        dtype=one.model.dtype,
        rollout=one.engines.model_copy(update={"sync": "merged"}),
        lora_r=1,
        max_model_len=one.context + 1,  # an engine samples one token behind those that it judges
        stop_token_ids=[],
        base=one.model,
        field=dotted((*one.field, "engines")),
    )


def fingerprints(ctx: "StageContext[Any]") -> dict[str, str]:
    """Field of each such model -> its fingerprint, for the stage's inputs."""
    found = {}
    for one in ctx.stage.engine_models:
        folder = found_model(one, dotted(("stages", ctx.name, *one.field)))
        assert folder is not None
        found[dotted(one.field)] = fingerprint(folder)
    return found


def _check_length(one: EngineModel, place: str) -> None:
    longest = model_sizes(one.model).max_length
    if longest is not None and one.context + 1 > longest:
        raise UserError(
            f"{place}.base: {one.model.base} takes {longest} tokens, and {one.context_field} is {one.context}; "
            f"allowed: up to {longest - 1} with this {one.name}"
        )


def _check_tokens(one: EngineModel, place: str, folder: Path, base: Path, recipe: Recipe) -> None:
    """UserError where the two models do not read and end the same tokens."""
    own, other = plain_tokenizer(base, trust_remote_code=recipe.model.trust_remote_code), plain_tokenizer(folder)
    allowed = f"allowed: a {one.name} with the tokenizer of {recipe.model.base}"
    if reason := _first_difference(own.get_vocab(), other.get_vocab()):
        raise UserError(f"{place}.base: {one.model.base} has another vocabulary: {reason}; {allowed}")
    if own.eos_token_id != other.eos_token_id:
        raise UserError(
            f"{place}.base: {one.model.base} ends answers by {other.eos_token!r}, and {recipe.model.base} by "
            f"{own.eos_token!r}; {allowed}"
        )
    rows, needed = model_sizes(one.model).vocab, model_sizes(recipe.model).vocab
    if rows < needed:
        raise UserError(
            f"{place}.base: {one.model.base} gives {rows} tokens a probability, and {recipe.model.base} may draw "
            f"{needed}; allowed: at least as many"
        )


def _first_difference(own: dict[str, int], other: dict[str, int]) -> str | None:
    """The difference at the lowest id; None where the maps from token to id are equal."""
    if own == other:
        return None
    ours, theirs = ({number: token for token, number in one.items()} for one in (own, other))
    number = min(number for number in ours.keys() | theirs.keys() if ours.get(number) != theirs.get(number))
    return f"id {number} is {_shown(theirs.get(number))}, and {_shown(ours.get(number))} in the base"


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)
