"""Pairs of answers that files rate one by one: those to the same prompt whose ratings differ."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from triptych.data.cells import finite
from triptych.data.rows import RANKED, BadRow, DataRow, PairRow, RatedRow
from triptych.errors import UserError


def paired(rows: Iterator[Sequence[DataRow]], name: str, bad: Sequence[BadRow]) -> Iterator[Sequence[DataRow]]:
    """The rows, and behind them the pairs of the rated answers among them, prompt by prompt.

    Every two answers to a prompt whose ratings differ are a pair, as of ranked answers. Rated answers are held until
    the last row is read, for any row may answer any prompt.

    Args:
        rows: of the source, in its order.
        name: of the source.
        bad: the malformed rows that were met, which the message of what is refused names.

    Raises:
        UserError: there are rated answers and no prompt has two whose ratings differ, or one has too many.
    """
    by_prompt: dict[str, list[RatedRow]] = defaultdict(list)
    for group in rows:
        rated = [row for row in group if isinstance(row, RatedRow)]
        for row in rated:
            by_prompt[_prompt(row)].append(row)
        if not rated:
            yield group
    pairs = (_pairs(answers, name) for answers in by_prompt.values())
    yield from _some([group for group in pairs if group], len(by_prompt), name, bad)


def _prompt(row: RatedRow) -> str:
    return json.dumps([asdict(message) for message in row.chat.messages[:-1]] + [row.chat.tools], default=repr)


def _some(groups: list[list[PairRow]], prompts: int, name: str, bad: Sequence[BadRow]) -> list[list[PairRow]]:
    if prompts and not groups:
        lost = f"; {len(bad)} rows are malformed, the first is {bad[0].line}: {bad[0].reason}" if bad else ""
        raise UserError(
            f"{name}: {prompts} prompts with rated answers, and none has two whose ratings differ, so there is nothing "
            f"to prefer; SFT can learn those that are rated true{lost}"
        )
    return groups


def _pairs(rows: list[RatedRow], name: str) -> list[PairRow]:
    """The pairs of answers to one prompt."""
    unlike = {(row.chat.messages[-1].content, row.rating.score): row for row in rows}
    if len(unlike) > RANKED:
        asked = rows[0].chat.messages[-2].content[:60]
        raise UserError(f"{name}: {len(unlike)} answers to {asked!r} make too many pairs; allowed: {RANKED}")
    ranked = sorted(unlike.values(), key=lambda row: -row.rating.score)
    return [
        pair
        for better, worse in itertools.combinations(ranked, 2)
        if better.rating.score > worse.rating.score and (pair := _pair(better, worse)) is not None
    ]


def _pair(better: RatedRow, worse: RatedRow) -> PairRow | None:
    """The pair; None where both say the same: one text with two ratings prefers nothing."""
    *prompt, chosen = better.chat.messages
    rejected = worse.chat.messages[-1]
    if chosen.content == rejected.content:
        return None
    measured = better.rating.measured and worse.rating.measured
    margin = finite(better.rating.score - worse.rating.score, "score") if measured else None
    return PairRow(tuple(prompt), chosen.content, rejected.content, margin, better.chat.tools)
