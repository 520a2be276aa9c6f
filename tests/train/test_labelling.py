"""Heads that read single positions: transformers' logits, whole-set metrics, gradients that no cut changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, AutoModelForTokenClassification

from tests.support.gradient_cases import TOLERANCE, assert_equal, gradients, make_learner, make_model, rows
from triptych.data.text_scores import answer_scores
from triptych.models.heads import ClassHead
from triptych.objectives.spans import EntityCounts
from triptych.stages.supervised.question_answering import batch_of_questions
from triptych.stages.supervised.token_classification import batch_of_tags
from triptych.train.batch import Batch
from triptych.train.learner import Learner
from triptych.train.tasks.question_answering import SpanSelection, best_spans, context_scores
from triptych.train.tasks.token_classification import TokenTagging

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
TAGGING = TokenTagging("critic", TAGS, mark_entities=True)
ROWS = 8


def learner(folder: Path, classes: int, dtype: torch.dtype = torch.float32) -> Learner:
    """The role `critic`, with a head of classes in place of a scalar one."""
    model = make_model(folder, dtype, roles=("critic",))
    model.heads["critic"] = ClassHead(model.hidden_size, classes).to(dtype)
    return make_learner(model)


def tagged(some: list[int]) -> Batch:
    """Rows of unequal lengths, of which some tokens end no word."""
    made = [[*prompt, *answer] for prompt, answer in rows(ROWS)]
    tags = [[-100 if (row + place) % 3 == 0 else (row + 5 * place) % 4 for place in range(16)] for row in range(ROWS)]
    return batch_of_tags([{"input_ids": made[row], "tags": tags[row][: len(made[row])]} for row in some], pad=0)


def asked(some: list[int]) -> Batch:
    """Rows whose second context has as many tokens as their answer in `rows`."""
    made: list[dict[str, Any]] = []
    for row in some:
        prompt, context = rows(ROWS)[row]
        start = row % len(context)
        numbers = {"context_start": len(prompt), "start": start, "end": min(start + 1, len(context) - 1)}
        made.append({"input_ids": [*prompt, *context]} | numbers)
    return batch_of_questions(made, pad=0) | {"row": torch.tensor(some)}


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["tags", "questions"])
def test_the_gradient_does_not_depend_on_micro_batches(
    tiny_model_dir: Path, kind: str, dtype: torch.dtype, parts: int
) -> None:
    objective, batch = (TAGGING, tagged) if kind == "tags" else (SpanSelection("critic", 30), asked)
    ours = learner(tiny_model_dir, 4 if kind == "tags" else 2, dtype)
    whole = gradients(ours, objective, [batch(list(range(ROWS)))])
    size = ROWS // parts
    cut = [batch(list(range(start, start + size))) for start in range(0, ROWS, size)]
    assert_equal(gradients(ours, objective, [*cut, None]), whole, TOLERANCE[dtype])
    assert all(value.abs().max() > 0 for value in whole.values())


def test_tags_as_transformers_gives_them(tiny_model_dir: Path) -> None:
    """Loss, accuracy and entities of all micro-batches are those of transformers' logits on the whole set."""
    ours = learner(tiny_model_dir, len(TAGS))
    lora_off(ours)
    theirs = AutoModelForTokenClassification.from_pretrained(tiny_model_dir, num_labels=len(TAGS)).eval()
    theirs.score.weight.data.copy_(ours.model.heads["critic"].weight)
    theirs.score.bias.data.zero_()
    batch = tagged(list(range(ROWS)))
    with torch.no_grad():
        logits = theirs(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
    found = ours.evaluate(TAGGING, [tagged([0, 3, 4]), tagged([1]), tagged([2, 5, 6, 7])])
    assert "f1" not in ours.accumulate(TAGGING, [batch]), "a step's rows say nothing of rare types"

    tags = batch["tags"]
    read = tags != -100
    assert found.pop("loss") == pytest.approx(torch.nn.functional.cross_entropy(logits[read], tags[read]).item(), 1e-5)
    assert found.pop("accuracy") == pytest.approx((logits.argmax(2) == tags)[read].float().mean().item())
    counts = EntityCounts()
    for row in range(ROWS):
        sides = (tags[row][read[row]], logits[row][read[row]].argmax(1))
        counts.add(*([TAGS[tag] for tag in side.tolist()] for side in sides))
    expected = {name: part / whole if whole else 0.0 for name, (part, whole) in counts.quotients().items()}
    assert {"f1", "recall_PER", "precision_LOC"} < expected.keys()
    assert found == pytest.approx(expected)


def test_borders_as_transformers_gives_them(tiny_model_dir: Path) -> None:
    """Scores of the context alone, the loss, and the judged text of the best span."""
    ours = learner(tiny_model_dir, 2)
    lora_off(ours)
    theirs = AutoModelForQuestionAnswering.from_config(AutoConfig.from_pretrained(tiny_model_dir)).eval()
    theirs.transformer = AutoModel.from_pretrained(tiny_model_dir)  # it looks for its weights by another prefix
    theirs.qa_outputs.weight.data.copy_(ours.model.heads["critic"].weight)
    theirs.qa_outputs.bias.data.zero_()
    batch, words = asked(list(range(ROWS))), ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    with torch.no_grad():
        output = theirs(input_ids=batch["ids"], attention_mask=batch["mask"])
    scores = ours.forward("critic", context_scores, batch)
    losses, exact, f1 = [], 0.0, 0.0
    for row in range(ROWS):
        low, high = int(batch["context_start"][row]), int(batch["mask"][row].sum())
        start, end = output.start_logits[row, low:high], output.end_logits[row, low:high]
        expected = torch.stack([start, end], dim=1)
        torch.testing.assert_close(scores[row, : high - low], expected, atol=1e-5, rtol=1e-5)
        assert scores[row, high - low :].isinf().all()
        pairs = [(i, j) for i in range(high - low) for j in range(i, min(i + 2, high - low))]
        first, last = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        scored = answer_scores(" ".join(words[first : last + 1]), ["two three"])
        exact, f1 = exact + scored[0], f1 + scored[1]
        for logits, name in ((start, "start"), (end, "end")):
            losses.append(torch.nn.functional.cross_entropy(logits, batch[name][row]))

    def judge(row: int, first: int, last: int) -> tuple[float, float]:
        return answer_scores(" ".join(words[first : last + 1]), ["two three"])

    found = ours.evaluate(SpanSelection("critic", 2, judge), [asked([0, 1, 5]), asked([2, 3, 4, 6, 7])])
    assert f1 > 0
    expected_metrics = {"loss": torch.stack(losses).mean().item(), "exact_match": exact / ROWS, "f1": f1 / ROWS}
    assert found == pytest.approx(expected_metrics, rel=1e-5)


def test_a_span_ends_behind_its_start_and_is_not_too_long() -> None:
    scores = torch.full((1, 6, 2), -1.0)
    scores[0, 4, 0] = scores[0, 1, 1] = 9.0  # ends before it starts
    scores[0, 0, 0], scores[0, 5, 1] = 8.0, 7.0  # six tokens
    assert best_spans(scores, 6) == [(0, 1)]
    scores[0, 1, 1] = 0.0
    assert best_spans(scores, 6) == [(4, 5)]
    scores[0, 4, 0] = -1.0
    assert best_spans(scores, 6) == [(0, 5)]
    assert best_spans(scores, 5) == [(0, 1)]


def lora_off(ours: Learner) -> None:
    with torch.no_grad():
        for name, parameter in ours.model.parameters_of("critic").items():
            if "lora_B" in name:
                parameter.zero_()
