"""Checks of a recipe before anything starts: refusals that stages would come to, perhaps after hours of others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from triptych.data.checked import ChatCheck
from triptych.data.encode import encode_prompts
from triptych.data.end_tokens import end_tokens
from triptych.data.rows import DataRow, RowKind
from triptych.data.sources import PARSERS, absent_path, check_first_rows
from triptych.errors import UserError
from triptych.measure.base_check import check_base
from triptych.models.base import base_here, model_tokenizer, resolve_base
from triptych.models.families import check_sampled
from triptych.models.identity import tokenizer_files
from triptych.models.sizes import read_config
from triptych.recipe import Recipe, Source
from triptych.recipe.spec import dotted
from triptych.stages.engine_models import check_engine_models
from triptych.stages.first_rows import FirstRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Warn = Callable[[str], None]
"""Shows a line about what was not checked."""
PLANNED, STARTED = 1000, 100_000
"""Rows of each table that are checked for a plan, and before a run."""


def check_plan(recipe: Recipe, names: Iterable[str], warn: Warn) -> FirstRows:
    """Refuse what a run of these stages would refuse of base, tokenizer and rows, as far as they are on this machine.

    Rows are rendered as the run renders them; those that stages train on are the result. `warn` is told which files
    are not here.

    Raises:
        UserError: what the run would say.
    """
    chosen = _computing(recipe, names)
    check_base(recipe, chosen)
    check_engines(recipe, chosen)
    check_engine_models(recipe, chosen, base_here)
    check_libraries(recipe, chosen)
    if any("@" in reference.ref for name in chosen for reference in recipe.stages[name].references()):
        _check_versions(recipe, chosen, warn)
    sources = {_place(recipe, n, split): s for n in chosen for split, s in recipe.stages[n].splits().items()}
    absent = {place: path for place, source in sources.items() if (path := absent_path(source))}
    for place, path in absent.items():
        warn(f"{place}: {path} is not here, so its rows are not checked")
    # To load a tokenizer takes seconds, which without rows show nothing.
    folder = base_here(recipe.model) if len(absent) < len(sources) else None
    known = folder if folder is not None and tokenizer_files(folder) else None
    tokenizer = None if known is None else model_tokenizer(known, recipe.model)
    trained = {name: recipe.trained[name].shape().rows_per_update for name in chosen if name in recipe.trained}
    most = max(PLANNED, *trained.values()) if trained else PLANNED
    checked = _checked(recipe, chosen, known, tokenizer, most, here=False)
    return FirstRows({name: rows for name, split, rows in checked if split == "train"}, tokenizer, most)


def _check_versions(recipe: Recipe, names: Iterable[str], warn: Warn) -> None:
    from triptych.stages.versions import check_versions  # loads torch, which a plan without versions does not need

    folder = base_here(recipe.model)
    whole = folder if folder is not None and any(folder.glob("*.safetensors")) else None
    check_versions(recipe, list(names), whole, warn)


def check_run(recipe: Recipe, names: Iterable[str], folder: Path) -> None:
    """As `check_plan`, of the base in `folder` and of more rows.

    Raises:
        UserError: the same, and for a path of this machine where nothing is.
    """
    chosen = _computing(recipe, names)
    check_base(recipe, chosen)
    check_engines(recipe, chosen)
    check_engine_models(recipe, chosen, resolve_base)
    check_libraries(recipe, chosen)
    check_rows(recipe, chosen, folder, STARTED, here=True)


def check_engines(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse stages whose engines would not compute what is trained; see `check_sampled`."""
    for name in names:
        if engines := recipe.stages[name].engines:
            check_sampled(read_config(recipe.model), engines, f"stages.{name}.rollout")


def check_libraries(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse stages by what an optional library knows of them, or because it is not there; see `StageBase.checker`."""
    for name in names:
        if checker := recipe.stages[name].checker:
            resolve_name(checker)(recipe, name)


def check_rows(recipe: Recipe, names: Iterable[str], folder: Path | None, most: int, *, here: bool = False) -> None:
    """Refuse stages whose first `most` rows of each table a run would refuse.

    Args:
        recipe: the recipe.
        names: its stages that are checked.
        folder: of the base, by whose tokenizer rows are rendered; None: they are only parsed.
        most: rows of each table.
        here: whether a path of this machine where nothing is is refused.

    Raises:
        UserError: the stage, the file, and what is wrong.
    """
    tokenizer = None if folder is None else model_tokenizer(folder, recipe.model)
    for _ in _checked(recipe, names, folder, tokenizer, most, here=here):
        pass


def _checked(
    recipe: Recipe,
    names: Iterable[str],
    folder: Path | None,
    tokenizer: "PreTrainedTokenizerBase | None",
    most: int,
    *,
    here: bool,
) -> Iterator[tuple[str, str, Sequence[DataRow]]]:
    """Stage, table, and its rows that were checked."""
    for name in names:
        stage = recipe.stages[name]
        if stage.engines is not None and folder is not None and tokenizer is not None:
            end_tokens(folder, tokenizer)
        for split, source in stage.splits().items():
            try:
                longest, labels = stage.longest_prompt(split), stage.row_labels()
                rows = _check_source(source, stage.rows_of(split), tokenizer, longest, labels, most, here=here)
            except UserError as error:
                raise UserError(f"{_place(recipe, name, split)}: {str(error).removeprefix('data: ')}") from error
            yield name, split, rows


def _check_source(
    source: Source,
    rows_kind: str | None,
    tokenizer: "PreTrainedTokenizerBase | None",
    longest_prompt: int | None,
    labels: tuple[str, ...] | None,
    most: int,
    *,
    here: bool,
) -> Sequence[DataRow]:
    kind: RowKind | None = next((kind for kind in PARSERS if kind == rows_kind), None)
    if kind is None:
        return ()
    check = None if tokenizer is None else ChatCheck(tokenizer, source.control_tokens)
    rows = check_first_rows(source, kind, check, most=most, here=here, labels=labels)
    if longest_prompt is not None and tokenizer is not None and rows.rows:
        encode_prompts(rows.rows, tokenizer, longest_prompt, source.max_bad_rows - len(rows.bad))
    return rows.used


def _computing(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The stages that compute on the base."""
    return [name for name in names if recipe.stages[name].workers is not None]


def _place(recipe: Recipe, name: str, split: str) -> str:
    """The field of a stage's rows."""
    return dotted(("stages", name, *recipe.stages[name].split_field(split)))
