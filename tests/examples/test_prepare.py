"""The example's data: real snippets, cleaned, and nothing held out leaks into training."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from triptych.data import load_rows
from triptych.recipe.data import Source

SCRIPT = Path(__file__).parents[2] / "examples" / "reviews" / "prepare.py"


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reviews_prepare", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_cleaning_keeps_whole_sentences(prepare: ModuleType) -> None:
    keep = ["A café drama that’s both “warm” and funny.", "It's not great, but T&amp;A fans will like it!"]
    drop = [
        "Effective but too tepid biopic",
        "no charm, no laughs, no fun, no reason to watch.",
        "It is dull from start to end. Yes, dull.",
        "Has its moments, but it's pretty far from a treasure",
        "Offers a clear eyed chronicle of a female friendship.",
        "The plot sags    and the acting sags with it.",
        "Too short.",
        "(Swimfan) falls victim to sloppy plotting and bad acting.",
        "A café drama that’s both “warm” and funny.",
    ]
    kept = prepare.clean([prepare.Snippet(text, 1.0) for text in keep + drop])
    assert [snippet.text for snippet in kept] == [
        'A cafe drama that\'s both "warm" and funny.',
        "It's not great, but T&A fans will like it!",
    ]


def test_requests_are_many_distinct_and_neutral(prepare: ModuleType) -> None:
    from triptych.data.text_scores import vader_scores

    assert len(set(prepare.REQUESTS)) >= 40
    assert len(set(prepare.HELDOUT_REQUESTS)) == 20
    assert not set(prepare.REQUESTS) & set(prepare.HELDOUT_REQUESTS)
    assert not any(form in held for held in prepare.HELDOUT_REQUESTS for form in ("one-sentence", "verdict on"))
    opinions = {"good", "bad", "great", "terrible", "love", "hate", "positive", "negative", "praise", "favorable"}
    for request in prepare.REQUESTS + prepare.HELDOUT_REQUESTS:
        assert not opinions & set(request.lower().replace(".", "").split())
        assert abs(vader_scores([request])[0]) < 0.2


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("ascii").splitlines()]


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, SCRIPT, "--out", tmp_path / folder]) for folder in ("one", "two")]
    assert [process.wait(120) for process in both] == [0, 0]
    one, two = tmp_path / "one", tmp_path / "two"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(
        f"{kind}.{part}.jsonl" for kind in ("sft", "pairs", "prompts") for part in ("train", "heldout")
    )
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names), "the same bytes again"

    sft = {part: _read(one, f"sft.{part}") for part in ("train", "heldout")}
    pairs = {part: _read(one, f"pairs.{part}") for part in ("train", "heldout")}
    assert (len(sft["train"]), len(pairs["train"]), len(pairs["heldout"])) == (2000, 1500, 300)
    assert sum(row["rating"] > 0 for row in sft["train"]) == sum(row["rating"] < 0 for row in sft["train"]) == 1000
    assert min(row["margin"] for row in pairs["heldout"]) >= 1
    assert min(row["margin"] for row in pairs["train"]) >= 0.5

    used = {
        part: {row["messages"][-1]["content"] for row in sft[part]}
        | {row[side] for row in pairs[part] for side in ("chosen", "rejected")}
        for part in ("train", "heldout")
    }
    assert not used["train"] & used["heldout"]
    asked = {
        part: {row["messages"][1]["content"] for row in sft[part] + _read(one, f"prompts.{part}")}
        | {row["prompt"][1]["content"] for row in pairs[part]}
        for part in ("train", "heldout")
    }
    assert not asked["train"] & asked["heldout"]
    for kind in ("sft", "pairs", "prompts"):
        for part in ("train", "heldout"):
            assert load_rows(Source(path=f"{one}/{kind}.{part}.jsonl"), kind).bad == []


@pytest.mark.slow
def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--sft", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "1000000 chats are asked for" in done.stderr
    assert not (tmp_path / "out").exists()
