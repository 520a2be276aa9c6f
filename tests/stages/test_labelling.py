"""Tags of words and answers to questions: trained, measured on whole held-out sets, and registered."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from triptych import storage
from triptych.errors import UserError
from triptych.models.adapter import load_adapter
from triptych.observe.progress import Progress
from triptych.observe.report.page import tiles
from triptych.observe.runs import StageView
from triptych.recipe import RecipeError
from triptych.stages.artifact import summary
from triptych.stages.context import StageContext
from triptych.stages.supervised import question_answering, token_classification
from triptych.stages.supervised.loop import Rows
from triptych.train.learner import Learner

LABELS = ("O", "B-PER", "I-PER", "B-FILM", "B-ODD")
NAMES = ("Anna Bond", "Carl", "Dora Moon")
WORDS = ("warm", "dull", "funny", "flat")

Make = Callable[[dict[str, Any]], StageContext[Any]]


def tagged(number: int) -> dict[str, Any]:
    name, word = NAMES[number % 3].split(), WORDS[number % 4]
    tokens = [*name, "finds", f"Film{number % 5}", word, "."]
    tags = ["B-PER", *["I-PER"] * (len(name) - 1), "O", "B-FILM", "O", "O"]
    return {"tokens": tokens, "tags": tags if number % 2 else [LABELS.index(tag) for tag in tags]}


def asked(number: int) -> dict[str, Any]:
    answer = f"very {WORDS[number % 4]}"
    context = f"Film {number % 5} is {answer}, they said."
    return {
        "question": "How is it?",
        "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }


def stage(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    for split, part in (("train", rows), ("heldout", rows[20:])):
        (folder / f"{kind}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "kind": kind,
        "method": {"name": "lora", "r": 4, "alpha": 8},
        "data": {split: {"path": str(folder / f"{kind}-{split}.jsonl")} for split in ("train", "heldout")},
        "train": {
            "steps": 40,
            "optimizer": {"lr": 0.005},
            "batch": {"rows": 16, "micro_tokens": 512, "max_length": 96},
            "evaluate_every": 20,
        },
    } | fields


@pytest.fixture
def tagging(tmp_path: Path) -> dict[str, Any]:
    rows = [tagged(number) for number in range(60)]
    rows[0] = {"tokens": ["so"] * 200, "tags": ["O"] * 200}
    made = stage(tmp_path, "token_classification", rows, labels=list(LABELS))
    made["train"]["early_stopping"] = {"metric": "macro_f1", "mode": "max"}
    return made


@pytest.fixture
def answering(tmp_path: Path) -> dict[str, Any]:
    made = stage(tmp_path, "question_answering", [asked(number) for number in range(60)])
    made["train"].pop("evaluate_every")
    return made


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.exhaustive
def test_train_and_register(
    make_context: Make, tagging: dict[str, Any], answering: dict[str, Any], ray_cluster: None
) -> None:
    ctx = replace(make_context(tagging), progress=Progress.start())
    version = token_classification.run(ctx)
    assert version.kind == "classifier"
    parts = {f"{name}{kind}" for name in ("precision", "recall", "f1") for kind in ("", "_PER", "_FILM")}
    assert {f"heldout_{name}" for name in ("loss", "accuracy", "macro_f1", *parts)} == set(version.metrics)
    assert version.metrics["heldout_f1"] > 0.9
    macro = (version.metrics["heldout_f1_PER"] + version.metrics["heldout_f1_FILM"]) / 2
    assert version.metrics["heldout_macro_f1"] == pytest.approx(macro), "of the types that there are"
    done = summary(ctx.run, "only")
    assert done is not None
    assert done["data"]["train"] == {"rows": 60, "truncated": 1, "split": 0, "dropped": 0, "unlearnable": 0}
    adapter = load_adapter(storage.local_copy(version.url), "classifier")
    assert adapter.labels == LABELS
    shown = {tile.label for tile in tiles(StageView("only", {"kind": "token_classification"}, ctx.folder))}
    assert {"Held-out F1", "Held-out macro F1", "Held-out f1 PER", "Held-out accuracy"} < shown

    base = make_context(answering)
    ctx = replace(base, run=f"{base.run}-answers", progress=Progress.start())
    version = question_answering.run(ctx)
    assert set(version.metrics) == {"heldout_loss", "heldout_exact_match", "heldout_f1"}
    assert version.metrics["heldout_exact_match"] > 0.9
    assert version.metrics["heldout_f1"] >= version.metrics["heldout_exact_match"]
    assert load_adapter(storage.local_copy(version.url), "classifier").labels == ("start", "end")


def test_every_rank_judges_its_own_rows() -> None:
    rows = Rows(
        [[list(range(1, 3 + number % 5))] for number in range(11)], lambda some: {"ids": torch.zeros(len(some))}
    )
    model = SimpleNamespace(packing=True)
    ranks = [SimpleNamespace(model=model, group=SimpleNamespace(size=2, rank=rank)) for rank in range(2)]
    judged = [
        row
        for learner in ranks
        for batch in question_answering.numbered(rows).micro_batches(range(11), 8, cast(Learner, learner))
        if batch is not None
        for row in batch["row"].tolist()
    ]
    assert sorted(judged) == list(range(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["O", "O"]}, "each class once"),
        ({"labels": ["O", "B-PER", "PER"]}, "PER beside tags of entities"),
        ({"train": {"steps": 1, "batch": {"overlength": "split"}}}, "split is for chats"),
    ],
)
def test_recipes_that_make_no_sense(
    make_context: Make, tagging: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_context(tagging | change)


def test_tags_need_not_mark_entities(make_context: Make, tagging: dict[str, Any]) -> None:
    assert make_context(tagging).stage.mark_entities
    plain = tagging["train"] | {"early_stopping": {"metric": "accuracy", "mode": "max"}}
    assert not make_context(tagging | {"labels": ["NN", "VB", "O"], "train": plain}).stage.mark_entities


def test_malformed_rows_are_named_and_counted(
    make_context: Make, tagging: dict[str, Any], answering: dict[str, Any]
) -> None:
    tagging["labels"] = ["O", "B-FILM"]
    with pytest.raises(UserError, match=r"60 rows are malformed as tags(.|\n)*line 2: tags\[0\]: 'B-PER' is none of"):
        token_classification.run(make_context(tagging))
    with Path(answering["data"]["train"]["path"]).open("a") as file:
        file.write(json.dumps(asked(0) | {"answers": {"text": [], "answer_start": []}}) + "\n")
    with pytest.raises(UserError, match=r"1 of 61 rows are malformed as questions(.|\n)*line 61: answers: none"):
        question_answering.run(make_context(answering))
