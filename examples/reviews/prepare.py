"""Makes the example's data: one-sentence opinions of films, with the mean of 20 human ratings each.

The snippets (Hutto & Gilbert 2014, ICWSM; MIT) lie in the source distribution of `vaderSentiment`, so any machine that
can install packages can make this data. Six JSONL files come out:

    sft.train, sft.heldout          a chat that asks for an opinion -> a snippet; favorable and unfavorable ones alike
    pairs.train, pairs.heldout      two snippets, the better rated first; `margin` is the difference of the ratings
    prompts.train, prompts.heldout  the requests alone

No held-out snippet is in a training file, and no held-out request is worded like a training one. No request says
whether the opinion should be favorable. The same arguments give the same bytes.
"""

import argparse
import hashlib
import html
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.cache import cache_dir
from triptych.errors import UserError
from triptych.storage import write_bytes

PACKAGE = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

SYSTEM = {"role": "system", "content": "You are a film critic."}
REQUESTS = [
    f"{verb} {form} {film}."
    for verb, form, film in itertools.product(
        ("Write", "Give me", "Compose", "Jot down"),
        (
            "a one-sentence opinion of",
            "a one-sentence review of",
            "a single-sentence comment on",
            "a one-line verdict on",
        ),
        ("a film", "a movie", "a recent release"),
    )
]
HELDOUT_REQUESTS = [
    "Tell me in one sentence what you thought of the picture.",
    "How would you sum up tonight's screening in one sentence?",
    "Describe the last thing you watched at the cinema in a single sentence.",
    "One sentence only: how was it?",
    "What is your take on this week's premiere? Keep it to one sentence.",
    "I need a sentence for the poster. What would you say?",
    "Could you put the opening night into one sentence?",
    "React to the feature you have just seen, briefly.",
    "In a sentence, how did the director do?",
    "Our readers want to know what you made of it. One sentence will do.",
    "Say something about the sequel.",
    "Summarize your view of the documentary in one sentence.",
    "What would you write about this drama in a newspaper column? Only the first sentence.",
    "State your judgment of the western in a single line.",
    "Finish your column with one sentence about the thriller.",
    "If you had ten seconds on the radio to talk about the new picture, what would you say?",
    "Quick question: what about the acting and the story?",
    "Draft the opening sentence of tomorrow's review.",
    "Your thoughts on the matinee, in one sentence?",
    "Put the whole cinema experience into one sentence for us.",
]

_ASCII = str.maketrans({"‘": "'", "’": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_SENTENCE = re.compile(r"""[A-Z][A-Za-z0-9 ,;:$%&'"-]+[.!]""")
_NO_SUBJECT = re.compile(
    r"(?!This|Its)[A-Z][a-z]+s (a|an|the|its|it|as|to|like|too|more|so|all|up|no|from|in|on|with|out) "
)
"""Begins with its verb ("Offers a ..."), as headlines do."""


@dataclass(frozen=True)
class Snippet:
    """One sentence, and the mean of its ratings from -4 (very unfavorable) to 4."""

    text: str
    rating: float


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="output folder")
    parser.add_argument("--sft", type=int, default=2000, help="chats to train on")
    parser.add_argument("--sft-heldout", type=int, default=200, help="held-out chats")
    parser.add_argument("--pairs", type=int, default=1500, help="pairs to train on")
    parser.add_argument("--pairs-heldout", type=int, default=300, help="held-out pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice")
    options = parser.parse_args()
    try:
        files = build(clean(ratings(sdist())), options)
        for name, rows in files.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            write_bytes(str(options.out / f"{name}.jsonl"), lines.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    show(files, options.out)


def sdist() -> bytes:
    """The source distribution, downloaded once by pip and checked."""
    kept = cache_dir("downloads") / SDIST
    if not kept.is_file():
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            done = subprocess.run([*download, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"pip cannot download the source distribution of {PACKAGE}:\n{done.stderr[-2000:]}")
            _checked((Path(folder) / SDIST).read_bytes())
            os.replace(Path(folder) / SDIST, kept)
    return _checked(kept.read_bytes())


def _checked(data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != SDIST_SHA256:
        raise UserError(
            f"{SDIST} is not the published file (its sha256 differs); remove it from the cache and try again"
        )
    return data


def ratings(archive: bytes) -> list[Snippet]:
    """The rated snippets as published; nothing is written to disk."""
    text = _member(_member(archive, INNER), RATINGS).decode("utf-8", errors="replace")
    rows = (line.split("\t") for line in text.splitlines() if line)
    return [Snippet(snippet, float(rating)) for _, rating, snippet in rows]


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(name)
        if member is None:
            raise UserError(f"{name} in {SDIST} is not a file")
        return member.read()


def clean(snippets: list[Snippet]) -> list[Snippet]:
    """Only those that read as one whole sentence of 6 to 30 words, in ASCII, each once."""
    seen: set[str] = set()
    kept = []
    for snippet in snippets:
        text = html.unescape(snippet.text).strip().translate(_ASCII).replace("''", '"')
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        whole = _SENTENCE.fullmatch(text) and not _NO_SUBJECT.match(text)
        whole = whole and "  " not in text and text.count('"') % 2 == 0
        if whole and 6 <= len(text.split()) <= 30 and text.casefold() not in seen:
            seen.add(text.casefold())
            kept.append(Snippet(text, round(snippet.rating, 4)))
    return kept


def build(snippets: list[Snippet], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """File name -> rows."""
    chance = random.Random(options.seed)
    snippets = chance.sample(snippets, len(snippets))
    cut = len(snippets) * 4 // 5
    train, heldout = snippets[:cut], snippets[cut:]
    return {
        "sft.train": _sft(_balanced(train, options.sft), REQUESTS, chance),
        "sft.heldout": _sft(_balanced(heldout, options.sft_heldout), HELDOUT_REQUESTS, chance),
        "pairs.train": _pairs(train, options.pairs, 0.5, REQUESTS, chance),
        "pairs.heldout": _pairs(heldout, options.pairs_heldout, 1.0, HELDOUT_REQUESTS, chance),
        "prompts.train": [{"messages": _chat(request)} for request in REQUESTS],
        "prompts.heldout": [{"messages": _chat(request)} for request in HELDOUT_REQUESTS],
    }


def _chat(request: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": request}]


def _balanced(snippets: list[Snippet], count: int) -> list[Snippet]:
    """As many favorable as unfavorable ones, in turn."""
    sides = [s for s in snippets if s.rating > 0], [s for s in snippets if s.rating < 0]
    available = 2 * min(map(len, sides))
    if not 0 < count <= available:
        raise UserError(f"{count} chats are asked for; there are snippets for 1 to {available}")
    return [snippet for both in zip(*sides, strict=False) for snippet in both][:count]


def _sft(snippets: list[Snippet], requests: list[str], chance: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "messages": [*_chat(chance.choice(requests)), {"role": "assistant", "content": snippet.text}],
            "rating": snippet.rating,
        }
        for snippet in snippets
    ]


def _pairs(
    snippets: list[Snippet], count: int, least: float, requests: list[str], chance: random.Random
) -> list[dict[str, Any]]:
    """Random pairs whose ratings differ by `least` or more; a snippet comes again only when all have had their turn."""
    if count < 1 or count > 4 * len(snippets):
        raise UserError(f"{count} pairs are asked for; {len(snippets)} snippets give 1 to {4 * len(snippets)}")
    pairs: dict[tuple[Snippet, Snippet], None] = {}
    while len(pairs) < count:
        order = chance.sample(snippets, len(snippets))
        for one, other in zip(order[::2], order[1::2], strict=False):
            better, worse = (one, other) if one.rating > other.rating else (other, one)
            if better.rating - worse.rating >= least:
                pairs[better, worse] = None
    return [
        {
            "prompt": _chat(chance.choice(requests)),
            "chosen": better.text,
            "rejected": worse.text,
            "margin": round(better.rating - worse.rating, 4),
        }
        for better, worse in list(pairs)[:count]
    ]


def show(files: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """What was made, and a row of each kind."""
    table = Table("file", "rows", "for example", title=f"Data in {folder}")
    for name, rows in files.items():
        row = rows[0]
        chat = row.get("messages") or row["prompt"]
        example = chat[1]["content"]
        if name.startswith("sft"):
            example += f"\n  -> {chat[2]['content']}"
        elif name.startswith("pairs"):
            example += f"\n  + {row['chosen']}\n  - {row['rejected']}"
        table.add_row(f"{name}.jsonl", str(len(rows)), example)
    Console().print(table)


if __name__ == "__main__":
    main()
