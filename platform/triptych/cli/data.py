"""`triptych data`: look at rows before training on them, or make them from tasks."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.data_tasks import reasoning_gym

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.data.checked import ChatCheck
    from triptych.data.rows import RowKind, SourceRows
    from triptych.recipe.data import Source

app = typer.Typer(help="Look at rows before training on them, or make them from tasks.", no_args_is_help=True)
app.command("reasoning-gym")(reasoning_gym)

BINS = 8
SHOWN = 5
LABELS = 20


class ControlOption(StrEnum):
    """What becomes of chats whose text holds control tokens."""

    refuse = "refuse"
    escape = "escape"


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="FILE", help="A file or folder of rows, or hf://owner/name.")],
    kind: Annotated[str, typer.Option(help="Kind of the stage that the rows are for, or of the rows: `texts`, ...")],
    base: Annotated[str | None, typer.Option(help="Base model whose tokenizer measures the rows.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="Chat template, text or file; with --base.")] = None,
    control_tokens: Annotated[
        ControlOption, typer.Option(help="Chats whose text holds control tokens: refuse or escape; with --base.")
    ] = ControlOption.refuse,
    split: Annotated[str, typer.Option(help="Split of an hf:// data set or of a folder.")] = "train",
    config: Annotated[str | None, typer.Option(help="Configuration of an hf:// data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of an hf:// data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Use only so many rows, drawn at random.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="Our name = the file's name; may be repeated.")] = None,
    max_bad_rows: Annotated[int, typer.Option(min=0, help="More malformed rows than this: exit 1.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count the rows, say which shape they have, show malformed ones with their lines, and how long the rows are.

    Lengths are tokens of a whole chat or text (of the longer chat of a pair) where --base is given, else words.
    """
    source = _source(
        path=path,
        split=split,
        config=config,
        revision=revision,
        limit=limit,
        sample=sample,
        columns=_columns(column or []),
        max_bad_rows=sys.maxsize,
    )
    report = _report(source, _row_kind(kind), _check(base, chat_template, control_tokens) if base else None)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    if report["bad"] > max_bad_rows:
        raise typer.Exit(1)


def _report(source: "Source", kind: "RowKind", check: "ChatCheck | None") -> dict[str, Any]:
    """What the source holds. UserError: it cannot be read, or has no usable row."""
    from triptych.data.files import counted
    from triptych.data.sources import found_shapes, load_rows

    rows: SourceRows[Any] = load_rows(source, kind, check)
    found = found_shapes(source, kind)
    report = {
        "path": source.file,
        "kind": kind,
        "rows": len(rows.items),
        "shapes": [{"shape": name, "why": why, "rows": count} for (name, why), count in found.shapes],
        "unread": found.unread,
        "labels": _labels(rows.items),
        "digest": rows.digest,
        "bad": len(rows.bad),
        "counted_by": counted(source.file),
        "first_bad": [{"line": row.line, "reason": row.reason} for row in rows.bad[:SHOWN]],
        "unit": "tokens" if check else "words",
        "lengths": _summary(_tokens(rows.items, check.tokenizer) if check else [_words(row) for row in rows.items]),
    }
    return report | ({"control_tokens": check.found} if check else {})


def _row_kind(name: str) -> "RowKind":
    """The kind of rows that a stage's kind or the rows' own name means."""
    from triptych.data.sources import PARSERS
    from triptych.recipe import KINDS
    from triptych.recipe.stage import TrainedStage

    stages = {kind: model.rows for kind, model in KINDS.items() if issubclass(model, TrainedStage) and model.rows}
    found = next((kind for kind in PARSERS if kind == stages.get(name, name)), None)
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join([*stages, *PARSERS])}", param_hint="--kind")
    return found


def _source(**fields: Any) -> "Source":
    from pydantic import ValidationError

    from triptych.errors import UserError
    from triptych.recipe.data import Source

    try:
        return Source(**fields)
    except ValidationError as error:
        raise UserError("; ".join(str(one["ctx"]["error"]) for one in error.errors())) from None


def _labels(rows: Sequence[Any]) -> dict[str, int]:
    """Rows of each class, words of each tag; empty for other kinds."""
    from triptych.data.rows import TaggedRow, TextRow

    texts = Counter(row.label for row in rows if isinstance(row, TextRow))
    tags = Counter(tag for row in rows if isinstance(row, TaggedRow) for tag in row.tags)
    return dict((texts or tags).most_common())


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    from triptych.errors import UserError

    columns = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(ours and theirs for ours, theirs in columns.items()):
        raise UserError("--column is written OUR_NAME=NAME_IN_THE_FILE, as in --column prompt=question")
    return columns


def _check(base: str, chat_template: str | None, control: ControlOption) -> "ChatCheck":
    """The check of chats by the tokenizer and template of a base."""
    from pydantic import ValidationError

    from triptych.data.checked import ChatCheck
    from triptych.errors import UserError
    from triptych.models.base import model_tokenizer, resolve_base
    from triptych.recipe.model import Model

    try:
        model = Model(base=base, chat_template=chat_template)
    except ValidationError as error:
        raise UserError(f"--chat-template: {error.errors()[0]['msg']}") from error
    return ChatCheck(model_tokenizer(resolve_base(model), model), control.value)


def _tokens(rows: list[Any], tokenizer: Any) -> list[int]:
    from triptych.data.encode import encode_choices, encode_pairs, encode_prompts, encode_sft, encode_texts
    from triptych.data.labelled import encode_questions, encode_tags
    from triptych.data.rankings import RankingRow, encode_rankings
    from triptych.data.rows import ChoiceRow, PairRow, QuestionRow, SftRow, TaggedRow, TextRow, UnpairedRow
    from triptych.data.unpaired import encode_unpaired

    if isinstance(rows[0], RankingRow):
        return [max(example.lengths) for example in encode_rankings(rows, tokenizer, sys.maxsize).items]
    if isinstance(rows[0], SftRow):
        return [len(example.input_ids) for example in encode_sft(rows, tokenizer, sys.maxsize).items]
    if isinstance(rows[0], PairRow):
        pairs = encode_pairs(rows, tokenizer, sys.maxsize).items
        return [max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    if isinstance(rows[0], UnpairedRow):
        return [len(example.input_ids) for example in encode_unpaired(rows, tokenizer, sys.maxsize).items]
    if isinstance(rows[0], TextRow):
        labels = list({row.label for row in rows})
        return [len(text.input_ids) for text in encode_texts(rows, tokenizer, sys.maxsize, labels).items]
    if isinstance(rows[0], TaggedRow):
        tags = list({tag for row in rows for tag in row.tags})
        return [len(words.input_ids) for words in encode_tags(rows, tokenizer, sys.maxsize, tags).items]
    if isinstance(rows[0], QuestionRow):
        return [len(question.input_ids) for question in encode_questions(rows, tokenizer, sys.maxsize).items]
    if isinstance(rows[0], ChoiceRow):
        asked = encode_choices(rows, tokenizer, sys.maxsize).items
        return [len(row.prompt) + max(map(len, row.choices)) for row in asked]
    return [len(prompt.input_ids) for prompt in encode_prompts(rows, tokenizer, sys.maxsize)]


def _words(row: Any) -> int:
    from triptych.data.rows import PairRow, QuestionRow, TaggedRow, TextRow, UnpairedRow

    if isinstance(row, UnpairedRow):
        row = row.chat
    if isinstance(row, TextRow):
        return len(row.text.split())
    if isinstance(row, TaggedRow):
        return len(row.tokens)
    if isinstance(row, QuestionRow):
        return len(row.question.split()) + len(row.context.split())
    if isinstance(row, PairRow):
        answer = max(row.chosen, row.rejected, key=lambda text: len(text.split()))
        return sum(len(message.content.split()) for message in row.prompt) + len(answer.split())
    return sum(len(message.content.split()) for message in row.messages)


def _summary(lengths: list[int]) -> dict[str, Any]:
    """Least, median, 95th percentile, greatest, and a histogram of equal bins (both ends included)."""
    ordered = sorted(lengths)
    width = (ordered[-1] - ordered[0]) // BINS + 1
    starts = range(ordered[0], ordered[-1] + 1, width)
    return {
        "min": ordered[0],
        "median": median(ordered),
        "p95": ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
        "max": ordered[-1],
        "histogram": [
            {"from": start, "to": start + width - 1, "rows": sum(start <= n < start + width for n in ordered)}
            for start in starts
        ],
    }


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    bad = f"[red]{report['bad']} malformed[/red]" if report["bad"] else "none malformed"
    console.print(f"{escape(report['path'])}: {report['rows']} rows as {report['kind']}, {bad}", soft_wrap=True)
    for row in report["first_bad"]:
        console.print(f"  {report['counted_by']} {row['line']}: {escape(row['reason'])}", soft_wrap=True)
    if report["bad"] > SHOWN:
        console.print(f"  and {report['bad'] - SHOWN} more")
    if report.get("control_tokens"):
        console.print(f"{report['control_tokens']} rows with control tokens in their text")
    for shape in report["shapes"]:
        console.print(f"shape: {shape['shape']} ({escape(shape['why'])}), {shape['rows']} rows", soft_wrap=True)
    if report["unread"]:
        console.print(f"not read: {escape(', '.join(map(str, report['unread'])))}", soft_wrap=True)
    if report["labels"]:
        console.print(f"labels: {escape(_most(report['labels']))}", soft_wrap=True)
    console.print(f"sha256 {report['digest']}", soft_wrap=True)
    _show_lengths(console, report["lengths"], report["unit"])


def _most(labels: dict[str, int]) -> str:
    """The commonest labels with their numbers."""
    shown = ", ".join(f"{name} {count}" for name, count in list(labels.items())[:LABELS])
    return f"{shown}, and {len(labels) - LABELS} more" if len(labels) > LABELS else shown


def _show_lengths(console: "Console", lengths: dict[str, Any], unit: str) -> None:
    from rich.table import Table

    console.print(
        f"{unit} a row: {lengths['min']} to {lengths['max']}, median {lengths['median']:g}, "
        f"95% at most {lengths['p95']}"
    )
    table = Table(unit, "rows", "", box=None)
    most = max(bin_["rows"] for bin_ in lengths["histogram"])
    for bin_ in lengths["histogram"]:
        bar = "█" * -(-40 * bin_["rows"] // most)
        table.add_row(f"{bin_['from']}-{bin_['to']}", str(bin_["rows"]), bar)
    console.print(table)
