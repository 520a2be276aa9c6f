"""Rows of every stage kind, made from the questions of gsm8k: as long and as unlike each other as real ones."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training import GSM8K

TRAIN, HELDOUT = 256, 12
"""Rows of each file."""
Row = Mapping[str, Any]


def write_data(folder: Path) -> None:
    """`KIND.train.jsonl` and `KIND.heldout.jsonl` in the folder, for each of `MADE`; always the same."""
    lines = GSM8K.read_text(encoding="utf-8").splitlines()[: TRAIN + HELDOUT]
    rows, drawn = [json.loads(line) for line in lines], random.Random(0)
    for name, make in MADE.items():
        made = [json.dumps(make(row, drawn.choice(rows))) for row in rows]
        (folder / f"{name}.train.jsonl").write_text("\n".join(made[:TRAIN]) + "\n", encoding="utf-8")
        (folder / f"{name}.heldout.jsonl").write_text("\n".join(made[TRAIN:]) + "\n", encoding="utf-8")


def _sft(row: Row, _: Row) -> Row:
    return {"prompt": row["question"], "response": row["answer"]}


def _pairs(row: Row, other: Row) -> Row:
    return {"prompt": row["question"], "chosen": row["answer"], "rejected": other["answer"] + " or so"}


def _prompts(row: Row, _: Row) -> Row:
    return {"prompt": row["question"]}


def _texts(row: Row, _: Row) -> Row:
    return {"text": row["question"], "label": "large" if len(_number(row)) > 2 else "small"}


def _tags(row: Row, _: Row) -> Row:
    tokens = row["question"].split()
    return {"tokens": tokens, "tags": ["NUM" if any(map(str.isdigit, token)) else "WORD" for token in tokens]}


def _questions(row: Row, _: Row) -> Row:
    answer = _number(row)
    places = {"text": [answer], "answer_start": [row["answer"].rindex(answer)]}
    return {"question": row["question"], "context": row["answer"], "answers": places}


def _number(row: Row) -> str:
    return str(row["answer"].rpartition("#### ")[2])


MADE: dict[str, Callable[[Row, Row], Row]] = {
    "sft": _sft,
    "pairs": _pairs,
    "prompts": _prompts,
    "texts": _texts,
    "tags": _tags,
    "questions": _questions,
}
"""What a stage learns from -> a row of it, from a row of gsm8k and another one."""
