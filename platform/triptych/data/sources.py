"""Sources: rows of files, folders and data sets, parsed, sampled and mixed; read row by row."""

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from triptych.data.answers import parse_answered
from triptych.data.cells import one_line
from triptych.data.choices import parse_choice
from triptych.data.files import counted, quick_rows, records
from triptych.data.rankings import RankingRow, parse_ranking
from triptych.data.rated import paired
from triptych.data.rows import (
    AnsweredRow,
    BadRow,
    ChoiceRow,
    DataRow,
    PairRow,
    PromptRow,
    QuestionRow,
    RowKind,
    SftRow,
    SourceRows,
    TaggedRow,
    TextRow,
    UnpairedRow,
    parse_chats,
    parse_pairs_with_margin,
    parse_preferences,
    parse_prompt,
    parse_question,
    parse_tags,
    parse_text,
)
from triptych.data.sampling import RowGroups, sampled, shuffled, weighted
from triptych.data.shapes import shape_of, unread_columns
from triptych.data.unpaired import parse_unpaired
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipe.data import Origin, Source

log = logging.getLogger(__name__)

Parse = Callable[[dict[str, Any]], Sequence[DataRow]]
"""A function from a record to its rows, none where it is left out; it raises a ValueError that says what is wrong."""

RowCheck = Callable[[DataRow], DataRow]
"""A function from a row to the row as it is used; it raises a ValueError that says what is wrong."""

PARSERS: dict[RowKind, Parse] = {
    "sft": parse_chats,
    "pairs": parse_preferences,
    "pairs_with_margin": parse_pairs_with_margin,
    "prompts": lambda record: [parse_prompt(record)],
    "texts": lambda record: [parse_text(record)],
    "tags": lambda record: [parse_tags(record)],
    "questions": lambda record: [parse_question(record)],
    "choices": lambda record: [parse_choice(record)],
    "answers": lambda record: [parse_answered(record)],
    "unpaired": parse_unpaired,
    "rankings": lambda record: [parse_ranking(record)],
}
_LABELLED: dict[RowKind, Callable[[dict[str, Any], Sequence[str]], DataRow]] = {"texts": parse_text, "tags": parse_tags}
"""Parsers of rows whose classes or tags are among those that a stage names."""
ADDED: dict[str, Any] = {"tools": (), "learned": True, "extra": {}}
"""Fields that rows of earlier versions did not have: they leave a digest as it was where they say nothing."""
_RIVALS = {"prompt": ("messages",), "response": ("messages",), "chosen": ("answers",), "rejected": ("answers",)}
"""Columns that would be read in place of those that a source's `columns` names."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Survey:
    """Number, size and digest of a source's rows."""

    rows: int
    size: int
    """Bytes of the rows as JSON."""
    digest: str
    """sha256 of the rows, as in `SourceRows`."""


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """The first rows of a source."""

    rows: list[Any]
    """As files have them."""
    used: list[DataRow]
    """As a run has them: rated answers in pairs, parts of a mixture by weight; none where not all parts were read."""
    bad: list[BadRow]


@dataclass(frozen=True, slots=True)
class FoundShapes:
    """What rows look like in files."""

    shapes: list[tuple[tuple[str, str], int]]
    """Shapes, each with the columns that tell it, and how many rows have it."""
    unread: dict[str, int]
    """Rows that have a value in a column of which nothing is learned, by column; rewards read all of prompts."""


@overload
def load_rows(source: "Source", kind: Literal["sft"], check: RowCheck | None = None) -> SourceRows[SftRow]: ...
@overload
def load_rows(
    source: "Source", kind: Literal["pairs", "pairs_with_margin"], check: RowCheck | None = None
) -> SourceRows[PairRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["prompts"], check: RowCheck | None = None) -> SourceRows[PromptRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["texts"], check: RowCheck | None = None) -> SourceRows[TextRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["tags"], check: RowCheck | None = None) -> SourceRows[TaggedRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["answers"], check: RowCheck | None = None) -> SourceRows[AnsweredRow]: ...
@overload
def load_rows(
    source: "Source", kind: Literal["unpaired"], check: RowCheck | None = None
) -> SourceRows[UnpairedRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["rankings"], check: RowCheck | None = None) -> SourceRows[RankingRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["choices"], check: RowCheck | None = None) -> SourceRows[ChoiceRow]: ...
@overload
def load_rows(
    source: "Source", kind: Literal["questions"], check: RowCheck | None = None
) -> SourceRows[QuestionRow]: ...
def load_rows(source: "Source", kind: RowKind, check: RowCheck | None = None) -> SourceRows[Any]:
    """Read the source's rows as `kind`. A row of the file can be several pairs; `source.limit` counts the file's.

    Raises UserError for a source that cannot be read, one without a usable row, and one with more malformed rows than
    `source.max_bad_rows` (the message counts them and shows the first five). A row that `check` refuses is malformed.
    """
    bad: list[BadRow] = []
    parts = list(iterate_rows(source, _checked(kind, check), bad))
    _judge(source, kind, len(parts), bad)
    items = [row for rows in parts for row in rows]
    return SourceRows(items, _digest(items)[0], bad)


def survey(source: "Source", kind: str, parse: Parse) -> Survey:
    """Read the source once, keeping no row. Raises as `load_rows` does; `kind` is how its message names the rows."""
    bad: list[BadRow] = []
    used = left = 0

    def counted_parse(record: dict[str, Any]) -> Sequence[DataRow]:
        nonlocal left
        rows = parse(record)
        left += not rows
        return rows

    def rows() -> Iterator[DataRow]:
        nonlocal used
        for part in iterate_rows(source, counted_parse, bad):
            used += 1
            yield from part

    digest, size, count = _digest(rows())
    _judge(source, kind, used, bad)
    if left:
        log.info("%s: %d rows with `label: false` are left out", source.name, left)
    return Survey(count, size, digest)


def check_first_rows(
    source: "Source",
    kind: RowKind,
    check: RowCheck | None = None,
    *,
    most: int,
    here: bool = False,
    labels: Sequence[str] | None = None,
) -> CheckedRows:
    """Refuse a source whose first `most` rows make a run refuse it, as `load_rows` does; those rows.

    What is not on this disk passes, but with `here` a path of this machine where there is nothing is refused. Classes
    and tags must be among `labels`, if these are given.
    """
    parse = _checked(kind, check, labels)
    bad: list[BadRow] = []
    origins = [origin for _, origin in source.origins()]
    parts = [
        (origin, list(itertools.islice(_usable(origin, parse, bad, most=most), origin.limit)))
        for origin in origins
        if origin.stage is None and _is_read(origin, here=here) and (source.mix is None or source.limit is None)
    ]
    if len(bad) > source.max_bad_rows:
        _judge(source, kind, sum(len(groups) for _, groups in parts), bad)
    rows = [row for _, groups in parts for group in groups for row in group]
    return CheckedRows(rows, _mixture(parts) if len(parts) == len(origins) else [], bad)


def _mixture(parts: Iterable[tuple["Origin", Sequence[Sequence[DataRow]]]]) -> list[DataRow]:
    """Rows as a run has them: of rated answers the pairs, and parts by weight. None where a part has no pair."""
    mixed: list[DataRow] = []
    for number, (origin, groups) in enumerate(parts):
        try:
            rows = list(paired(iter(groups), origin.file, []))
        except UserError:  # other rows of the file may answer the same prompts
            return []
        seed = number if origin.seed is None else origin.seed
        mixed += [row for group in weighted(iter(rows), getattr(origin, "weight", 1), seed) for row in group]
    return mixed


def absent_path(source: "Source") -> str | None:
    """The first path of a source that is one of this machine, and leads to nothing; None if there is none."""
    paths = [origin.file for _, origin in source.origins() if origin.stage is None]
    return next((path for path in paths if "://" not in path and not Path(path).exists()), None)


def _is_read(origin: "Origin", *, here: bool) -> bool:
    return Path(origin.file).exists() or (here and "://" not in origin.file)


def _checked(kind: RowKind, check: RowCheck | None, labels: Sequence[str] | None = None) -> Parse:
    parse = parser_of(kind, labels)
    return parse if check is None else lambda record: [check(row) for row in parse(record)]


def parser_of(kind: RowKind, labels: Sequence[str] | None = None) -> Parse:
    """The parser of a kind of rows, picklable for those with labels; `labels`: what a row's own must be among."""
    if labels is None or kind not in _LABELLED:
        return PARSERS[kind]
    return partial(_labelled, parse=_LABELLED[kind], labels=labels)


def _labelled(
    record: dict[str, Any], *, parse: Callable[[dict[str, Any], Sequence[str]], DataRow], labels: Sequence[str]
) -> list[DataRow]:
    return [parse(record, labels)]


def found_shapes(source: "Source", kind: RowKind) -> FoundShapes:
    """The shapes that the used rows have in the files, and the columns that they have beside it."""
    found: Counter[tuple[str, str]] = Counter()
    unread: Counter[str] = Counter()
    renamed = {theirs for _, origin in source.origins() for theirs in origin.columns.values()}

    def parse(record: dict[str, Any]) -> Sequence[DataRow]:
        rows = PARSERS[kind](record)
        shape = shape_of(record, kind)
        if rows:
            found[(shape.name, shape.why) if shape else ("", "")] += 1
        else:
            found["left out", "label: false"] += 1
        if shape is not None and kind != "prompts":
            unread.update(name for name in unread_columns(record, shape) if name not in renamed)
        return rows

    for _ in iterate_rows(source, parse, []):
        pass
    return FoundShapes(found.most_common(), dict(unread))


def quick_count(source: "Source") -> int | None:
    """Number of rows that a source of local files gives; None where one is elsewhere, or a stage's output.

    Malformed rows count, and answers with scores count once however many pairs they make.
    """
    total = 0.0
    for _, origin in source.origins():
        rows = None if origin.stage is not None else quick_rows(origin.file, origin.split)
        if rows is None:
            return None
        total += min(rows, origin.limit or origin.sample or rows) * getattr(origin, "weight", 1)
    return min(int(total), source.limit or source.sample or int(total))


def iterate_rows(source: "Source", parse: Parse, bad: list[BadRow]) -> Iterator[Sequence[DataRow]]:
    """The rows of each usable row of the files that the source takes; malformed ones go to `bad`."""
    if source.mix is None:
        return _chosen(paired(_usable(source, parse, bad), source.file, bad), source)
    return _chosen(_mixed(source, parse, bad), source)


def _mixed(source: "Source", parse: Parse, bad: list[BadRow]) -> RowGroups:
    for number, part in enumerate(source.mix or ()):
        rows = _chosen(paired(_usable(part, parse, bad, f"{part.file}: "), part.file, bad), part)
        yield from weighted(rows, part.weight, number if part.seed is None else part.seed)


def _chosen(rows: RowGroups, origin: "Origin") -> RowGroups:
    seed = origin.seed or 0
    if origin.sample is not None:
        rows = sampled(rows, origin.sample, seed)
    if origin.shuffle:
        rows = shuffled(rows, seed)
    for number, row in enumerate(rows, start=1):
        yield row
        if number == origin.limit:
            break


def _usable(origin: "Origin", parse: Parse, bad: list[BadRow], where: str = "", most: int | None = None) -> RowGroups:
    for line, record in itertools.islice(records(origin), most):
        try:
            if isinstance(record, ValueError):
                raise record
            rows = parse(_renamed(record, origin.columns))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            bad.append(BadRow(line, where + one_line(reason)))
            continue
        if rows:
            yield rows


def _digest(rows: Iterable[DataRow]) -> tuple[str, int, int]:
    """The sha256 of the rows as JSON lines, their bytes, and their number."""
    digest = hashlib.sha256()
    size = count = 0
    for row in rows:
        line = json.dumps(_learned(row), sort_keys=True, default=_given).encode() + b"\n"
        digest.update(line)
        size += len(line)
        count += 1
    return digest.hexdigest(), size, count


def _learned(row: DataRow) -> dict[str, Any]:
    """The row without what only rewards read of it, so that a new column of a file does not end a run."""
    return {name: value for name, value in _given(row).items() if name != "fields"}


def _given(value: Any) -> dict[str, Any]:
    """A row's or message's fields; one that a later version added counts where it is not what it is by default."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: item for name, item in found.items() if name not in ADDED or item != ADDED[name]}


def _judge(source: "Source", kind: str, good: int, bad: list[BadRow]) -> None:
    word = counted(next(origin.file for _, origin in source.origins()))
    shown = "".join(f"\n  {word} {row.line}: {row.reason}" for row in bad[:_SHOWN])
    if len(bad) > _SHOWN:
        shown += f"\n  and {len(bad) - _SHOWN} more"
    if len(bad) > source.max_bad_rows:
        raise UserError(
            f"{source.name}: {len(bad)} of {good + len(bad)} rows are malformed as {kind} "
            f"(max_bad_rows allows {source.max_bad_rows}):{shown}"
        )
    if good == 0:
        raise UserError(f"{source.name}: no usable row" + (f"; all {len(bad)} are malformed:{shown}" if bad else ""))


def _renamed(record: Any, columns: dict[str, str]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} in place of an object")
    for ours, theirs in columns.items():
        if theirs not in record:
            has = ", ".join(map(str, record))
            raise ValueError(f"no {theirs!r}, which `columns` names for {ours!r}; the row has: {has}")
    rivals = {name for ours in columns for name in _RIVALS.get(ours, ()) if name not in columns}
    kept = {name: value for name, value in record.items() if name not in rivals} if rivals else record
    return kept | {ours: record[theirs] for ours, theirs in columns.items()}
