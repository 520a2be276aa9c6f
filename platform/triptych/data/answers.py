"""Rows of prompts with right answers, and the comparison of written answers with them."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from triptych.data.cells import text
from triptych.data.rows import AnsweredRow, parse_prompt

_NUMBER = re.compile(r"(?<![\d.])(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def parse_answered(record: Mapping[str, Any]) -> AnsweredRow:
    """Parse `{prompt, answer}`, the prompt in any of its shapes; ValueError says what is wrong.

    `answer` is a text, a number, or a list of texts of which each is right.
    """
    if record.get("answer") is None:
        raise ValueError(f"no 'answer'; the row has: {', '.join(sorted(map(str, record))) or 'nothing'}")
    asked = parse_prompt({name: value for name, value in record.items() if name != "answer"})
    answers = right_answers(record["answer"])
    return AnsweredRow(asked.messages, {"answers": list(answers)}, asked.tools, answers)


def right_answers(value: Any) -> tuple[str, ...]:
    """The texts of a cell of right answers: a text, a number, or a list of such; else ValueError."""
    given = value if isinstance(value, list) else [value]
    if not given:
        raise ValueError("answer: an empty list")
    return tuple(_answer(one) for one in given)


def _answer(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return text(str(value) if number else value, "answer")


def last_number(written: str) -> Decimal | None:
    """The last number of a text, as `1,234.5` or `-3`; None where there is none."""
    found = _NUMBER.findall(written)
    return Decimal(found[-1].replace(",", "")) if found else None


def final_number(written: str) -> Decimal | None:
    """The number behind the last `####`, or the last number where there is no such mark; None where there is none.

    The mark is that of GSM8K (Cobbe et al. 2021, arXiv 2110.14168).
    """
    _, marked, behind = written.rpartition("####")
    if not marked:
        return last_number(written)
    found = _NUMBER.search(behind)
    return Decimal(found[0].replace(",", "")) if found else None


def same_number(written: str, right: str) -> bool:
    """True if both texts end on the same number."""
    found = last_number(written)
    return found is not None and found == last_number(right)


def same_text(written: str, right: str) -> bool:
    """True if the texts are equal but for case and white space."""
    return written.casefold().split() == right.casefold().split()


def found_by(pattern: str, written: str) -> str | None:
    """What a pattern finds last: its first group, if it has one; None where it finds nothing."""
    matches = list(re.finditer(pattern, written))
    if not matches:
        return None
    return matches[-1][1 if matches[-1].re.groups else 0]
