"""Makes the example's data: sums of three numbers, and chats that ask a calculator for them step by step.

    python examples/calculator/prepare.py [--out FOLDER] [--chats 240] [--questions 96]

Three JSONL files come out: `chats` (a question, two calls of the calculator with its replies, the answer behind
`####`), `questions.train` and `questions.heldout` (the question, and the right number as `answer`). No question is in
two of them. The same arguments give the same bytes.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data"
HELDOUT = 48
WORDINGS = ("What is ({a} + {b}) * {c}?", "Compute ({a} + {b}) * {c}.", "({a} + {b}) * {c} = ?")

Row = dict[str, Any]
Terms = tuple[int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--chats", type=int, default=240)
    parser.add_argument("--questions", type=int, default=96)
    options = parser.parse_args()
    every = [(a, b, c) for a in range(10, 50) for b in range(10, 50) for c in range(2, 10)]
    random.Random(0).shuffle(every)
    first, second = options.chats, options.chats + options.questions
    write(options.out / "chats.jsonl", list(map(chat, every[:first])))
    write(options.out / "questions.train.jsonl", list(map(question, every[first:second])))
    write(options.out / "questions.heldout.jsonl", list(map(question, every[second : second + HELDOUT])))


def asked(terms: Terms) -> str:
    a, b, c = terms
    return WORDINGS[(a + b + c) % len(WORDINGS)].format(a=a, b=b, c=c)


def question(terms: Terms) -> Row:
    """A prompt, and the number that `gsm8k` compares answers with."""
    a, b, c = terms
    return {"messages": [{"role": "user", "content": asked(terms)}], "answer": f"#### {(a + b) * c}"}


def chat(terms: Terms) -> Row:
    """Three turns of the assistant, each of which is learned."""
    a, b, c = terms
    said = (
        asked(terms),
        f"<calc>{a} + {b}</calc>",
        f"{a + b}",
        f"<calc>{a + b} * {c}</calc>",
        f"{(a + b) * c}",
        f"#### {(a + b) * c}",
    )
    roles = ("user", "assistant") * 3
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}


def write(file: Path, rows: list[Row]) -> None:
    """Write rows as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
