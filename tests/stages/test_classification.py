"""A classifier: the logits that transformers computes, measured as they should be, trained and registered."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from triptych import storage
from triptych.data.table import read_table
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.adapter import load_adapter
from triptych.models.base import load_causal_lm, load_tokenizer
from triptych.models.heads import ClassHead
from triptych.observe.progress import Progress
from triptych.recipe import Lora, Optimizer, RecipeError
from triptych.serve.capabilities import Capabilities
from triptych.stages.artifact import summary
from triptych.stages.context import StageContext
from triptych.stages.supervised import classification
from triptych.train.batch import Batch
from triptych.train.learner import Learner
from triptych.train.tasks.classification import TextClassification
from triptych.train.tasks.forward import sequence_scores

LABELS = ("bad", "good", "odd")
WORDS = {"bad": ("dull", "flat", "slow"), "good": ("warm", "funny", "lovely"), "odd": ("long", "music", "cast")}


def learner(folder: Path, head: ClassHead, adapter: Any = None) -> Learner:
    model = RoleModel(load_causal_lm(folder, torch.float32))
    config, weights = (adapter.method, adapter.weights) if adapter else (Lora(r=4), None)
    model.add("classifier", config, trainable=True, weights=weights, head=head)
    return Learner(model, {"classifier": Optimizer()}, {"classifier": 1})


def batches(folder: Path, texts: list[str], labels: list[int]) -> list[Batch]:
    """Two micro-batches, padded."""
    tokenizer = load_tokenizer(folder)
    rows = [
        {"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id], "label": label}
        for text, label in zip(texts, labels, strict=True)
    ]
    return [classification._batch(part, tokenizer.pad_token_id) for part in (rows[:3], rows[3:])]


def test_logits_are_those_of_transformers(tiny_model_dir: Path) -> None:
    head = ClassHead(128, 3)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3).eval()
    theirs.score.weight.data.copy_(head.weight)
    ours = learner(tiny_model_dir, head)
    for batch in batches(tiny_model_dir, ["A dull plot.", "Warm!", "It's long, flat.", "The cast is", "so"], [0] * 5):
        with torch.no_grad():
            expected = theirs(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        torch.testing.assert_close(ours.forward("classifier", sequence_scores, batch), expected, atol=1e-5, rtol=1e-5)


def test_metrics(tiny_model_dir: Path) -> None:
    """Accuracy and F1 over all micro-batches, from the counts of a confusion matrix."""
    ours = learner(tiny_model_dir, ClassHead(128, 3))
    labels = [0, 1, 2, 1, 0, 2, 2]
    made = batches(tiny_model_dir, ["A dull plot.", "Warm!", "It's", "The cast", "so", "so so", "music"], labels)
    logits = torch.cat([ours.forward("classifier", sequence_scores, batch) for batch in made])
    found = ours.evaluate(TextClassification("classifier", LABELS), made)
    truth, predicted = torch.tensor(labels), logits.argmax(dim=1)
    assert found.pop("loss") == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), abs=1e-6)
    assert found.pop("accuracy") == pytest.approx((truth == predicted).float().mean().item())
    for label in range(3):
        hits = int(((truth == label) & (predicted == label)).sum())
        named = int((truth == label).sum()) + int((predicted == label).sum())
        assert found.pop(f"f1_{LABELS[label]}") == pytest.approx(2 * hits / named)
    assert not found


def test_the_gradient_reaches_adapter_and_head(tiny_model_dir: Path) -> None:
    ours = learner(tiny_model_dir, ClassHead(128, 3))
    made = batches(tiny_model_dir, ["A dull plot.", "Warm!", "It's", "The cast"], [0, 1, 2, 1])
    metrics = ours.accumulate(TextClassification("classifier", LABELS), made)
    assert set(metrics) == {"loss", "accuracy"}, "a step's rows say nothing of rare classes"
    gradients = ours.gradients("classifier")
    assert gradients["head.weight"].abs().max() > 0
    assert all(value.abs().max() > 0 for name, value in gradients.items() if "lora_B" in name)


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, Any]:
    """Texts whose class is plain from one word, in three classes, by name and by index."""
    rows = [
        {"text": f"Film {i}: {WORDS[label][i // 3 % 3]}, they said.", "label": label if i % 2 else LABELS.index(label)}
        for i in range(90)
        for label in [LABELS[i % 3]]
    ]
    rows[0]["text"] *= 20
    for split, part in (("train", rows), ("heldout", rows[30:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "kind": "classification",
        "labels": list(LABELS),
        "method": {"name": "lora", "r": 4, "alpha": 8},
        "data": {split: {"path": str(tmp_path / f"{split}.jsonl")} for split in ("train", "heldout")},
        "train": {
            "steps": 40,
            "optimizer": {"lr": 0.005},
            "batch": {"rows": 16, "micro_tokens": 512, "max_length": 64},
            "evaluate_every": 20,
        },
    }


@pytest.mark.slow
@pytest.mark.cluster
def test_train_and_register(
    make_context: Callable[[dict[str, Any]], StageContext[Any]],
    stage: dict[str, Any],
    tiny_model_dir: Path,
    ray_cluster: None,
) -> None:
    ctx = replace(make_context(stage), progress=Progress.start())
    version = classification.run(ctx)
    assert version.kind == "classifier"
    assert "names no classes" in str(Capabilities().why_not(version.kind, ctx.registry().facts(version.ref)))
    assert version.metrics["heldout_accuracy"] > 0.9
    assert version.metrics["heldout_macro_f1"] > 0.9
    assert {"heldout_loss", *(f"heldout_f1_{label}" for label in LABELS)} < set(version.metrics)
    done = summary(ctx.run, "only")
    assert done is not None
    assert done["data"]["train"] == {"rows": 90, "truncated": 1, "split": 0, "dropped": 0, "unlearnable": 0}
    assert classification.run(ctx) == version, "the second time from what is there"

    adapter = load_adapter(storage.local_copy(version.url), "classifier")
    assert adapter.labels == LABELS
    assert adapter.head is not None
    head = ClassHead(128, 3)
    head.load_state_dict(adapter.head)
    table = read_table(storage.join(ctx.folder, "data", "heldout"))
    rows = [{"input_ids": ids, "label": n} for ids, n in zip(table["input_ids"], table["label"], strict=True)]
    again = learner(tiny_model_dir, head, adapter).evaluate(
        TextClassification("classifier", LABELS), [classification._batch(rows, 0)]
    )
    assert again["loss"] == pytest.approx(version.metrics["heldout_loss"], abs=1e-4)
    assert again["accuracy"] == version.metrics["heldout_accuracy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["bad", "bad"]}, "each class once"),
        ({"labels": ["bad"]}, "labels"),
        ({"train": {"steps": 1, "batch": {"overlength": "split"}}}, "split is for chats"),
    ],
)
def test_recipes_that_make_no_sense(
    make_context: Callable[[dict[str, Any]], StageContext[Any]],
    stage: dict[str, Any],
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_context(stage | change)


def test_an_unknown_class_is_a_malformed_row(
    make_context: Callable[[dict[str, Any]], StageContext[Any]], stage: dict[str, Any]
) -> None:
    stage["labels"] = ["bad", "good"]
    with pytest.raises(UserError, match=r"malformed as texts(.|\n)*line 3: label: '2' is none of bad, good"):
        classification.run(make_context(stage))
