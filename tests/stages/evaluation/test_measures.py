"""Numbers of each row, against plain transformers and what is worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.evaluation.conftest import measured_here, numbers, register
from tests.support.ranks import Ranks
from triptych.data.table import Table
from triptych.errors import UserError
from triptych.models.base import load_causal_lm
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation.answers import commit_answers, read_answers
from triptych.stages.evaluation.base import SetRows
from triptych.stages.evaluation.comparison import comparison, estimates, flat
from triptych.stages.evaluation.models import measured_models
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.models import tokenizer_of

WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow")
CHATS: list[dict[str, Any]] = [
    {"prompt": f"Film {i}?", "response": f"The film is {w} and {w}." * (1 + i % 2)} for i, w in enumerate(WORDS)
]
QUESTIONS: list[dict[str, Any]] = [
    {"question": "Which film?", "choices": ["The warm film.", "A dull plot"], "answer": 1},
    {
        "question": "What was lovely?",
        "choices": {"text": ["music", "cast", "acting"], "label": ["A", "B", "C"]},
        "answer": "C",
    },
    {"prompt": "And the end?", "choices": ["never ends", "listen"], "answer": "listen"},
]
Evaluate = Callable[..., StageContext[Any]]
Write = Callable[..., dict[str, str]]


def encoded(ctx: StageContext[Any]) -> dict[str, SetRows]:
    """What the driver does before the workers start."""
    models = measured_models(ctx)
    rows = {name: MEASURES[one.measure.name].encode(ctx, name, models) for name, one in ctx.stage.sets.items()}
    begin(ctx, {name: Table(one.columns, one.digest) for name, one in rows.items()}, {})
    return rows


def logprobs(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of each token of the answer, by transformers alone, one row at a time."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        found = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return found.gather(1, torch.tensor(answer)[:, None])[:, 0]


def rendered(ctx: StageContext[Any], row: dict[str, Any], answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a prompt and of an answer with the token that ends it, by the template's own text."""
    tokenizer = tokenizer_of(ctx)
    chat = [{"role": "user", "content": row.get("prompt") or row["question"]}]
    before = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    plain: Any = tokenizer
    first, second = plain([before, f"{answer}<|im_end|>"], add_special_tokens=False)["input_ids"]
    return first, second


def test_loss_is_transformers_own(evaluate: Evaluate, write_rows: Write, tmp_path: Path) -> None:
    sets = {"chats": {"data": write_rows("chats", CHATS), "measure": {"name": "loss"}}}
    compute = {"batch": {"micro_tokens": 128}}
    version, tuned = register(evaluate(["base"], sets), "tuned", tmp_path)
    ctx = evaluate([version.ref, "base"], sets, compute=compute)
    encoded(ctx)
    measured_here(ctx)
    with tuned.use("role"):
        for ref, model in ((version.ref, tuned.lm), ("base", load_causal_lm(ctx.base_dir, torch.float32))):
            own = [logprobs(model, *rendered(ctx, row, row["response"])) for row in CHATS]
            found = numbers(ctx, "chats", ref)
            assert found["tokens"] == [len(values) for values in own]
            assert found["nats"] == pytest.approx([-float(values.sum()) for values in own], rel=1e-4)
    figures = flat(ctx.stage, estimates(ctx))
    nats, tokens = (sum(numbers(ctx, "chats", "base")[name]) for name in ("nats", "tokens"))
    assert figures["chats.base.loss"] == pytest.approx(nats / tokens)
    assert figures["chats.tuned@1.perplexity"] != pytest.approx(figures["chats.base.perplexity"])
    beside = comparison(ctx.stage, measured_models(ctx), estimates(ctx))["sets"]["chats"]
    models = beside["figures"]["loss"]["models"]
    assert beside["rows"] == len(CHATS)
    assert "difference" not in models["tuned@1"]
    difference = models["base"]["value"] - models["tuned@1"]["value"]
    assert models["base"]["difference"]["value"] == pytest.approx(difference)


def test_a_choice_is_the_likeliest_answer(evaluate: Evaluate, write_rows: Write) -> None:
    ctx = evaluate(["base"], {"q": {"data": write_rows("q", QUESTIONS), "measure": {"name": "multiple_choice"}}})
    assert encoded(ctx)["q"].columns["right"] == [1, 2, 1]
    measured_here(ctx)
    model, found = load_causal_lm(ctx.base_dir, torch.float32), numbers(ctx, "q", "base")
    hits, hits_norm = [], []
    for row, right, values in zip(QUESTIONS, (1, 2, 1), found["logprobs"], strict=True):
        choices: Any = row["choices"]
        texts = choices["text"] if isinstance(choices, dict) else choices
        own = [float(logprobs(model, *rendered(ctx, row, text)).sum()) for text in texts]
        assert values == pytest.approx(own, rel=1e-4)
        normed = [value / len(text) for value, text in zip(own, texts, strict=True)]
        hits.append(own.index(max(own)) == right)
        hits_norm.append(normed.index(max(normed)) == right)
    figures = flat(ctx.stage, estimates(ctx))
    assert figures == {"q.base.accuracy": sum(hits) / 3, "q.base.accuracy_norm": sum(hits_norm) / 3}


@pytest.mark.slow
def test_a_classifier_names_classes_in_its_own_order(evaluate: Evaluate, write_rows: Write, tmp_path: Path) -> None:
    texts = [{"text": f"The film is {word}.", "label": ("good", "bad")[i % 2]} for i, word in enumerate(WORDS)]
    sets = {"texts": {"data": write_rows("texts", texts), "measure": {"name": "classification"}}}
    start = evaluate(["any@1"], sets)
    first, model = register(start, "first", tmp_path, "classifier", ("good", "bad"))
    second, _ = register(start, "other-order", tmp_path, "classifier", ("bad", "good"))
    ctx = evaluate([first.ref, second.ref], sets)
    encoded(ctx)
    measured_here(ctx)
    said = []
    with model.use("role"), torch.no_grad():
        for row in texts:
            ids = [*tokenizer_of(ctx)(row["text"])["input_ids"], tokenizer_of(ctx).eos_token_id]
            hidden = model.lm.model(torch.tensor([ids])).last_hidden_state[0, -1]
            said.append(("good", "bad")[int((model.heads["role"].weight @ hidden).argmax())])
    assert numbers(ctx, "texts", first.ref)["named"] == said
    right = sum(a == row["label"] for a, row in zip(said, texts, strict=True))
    assert flat(ctx.stage, estimates(ctx))["texts.first@1.accuracy"] == right / len(texts)
    strange, _ = register(start, "strange-one", tmp_path, "classifier", ("good", "odd"))
    with pytest.raises(UserError, match=r"stages\.only\.models\.1: strange-one@1 names the classes good, odd; allowed"):
        encoded(evaluate([first.ref, strange.ref], sets))
    odd = write_rows("odd", [{"text": "So.", "label": "awful"}])
    unknown = evaluate([first.ref], {"texts": {"data": odd, "measure": {"name": "classification"}}})
    with pytest.raises(UserError, match=r"'awful' is none of good, bad"):
        encoded(unknown)


SUMS = [
    {"question": "2 + 2?", "answer": "It is 2 + 2 = 4.\n#### 4"},
    {"question": "10 * 100?", "answer": 1000},
    {"question": "3 - 5?", "answer": ["-2", "minus two, -2"]},
]


def answered(ctx: StageContext[Any], name: str, ref: str, texts: list[list[str]], cut: float = 0.0) -> None:
    """Commit answers, as if engines had written them."""
    tokenizer: Any = tokenizer_of(ctx)
    ids = [[[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in some] for some in texts]
    columns: dict[str, list[Any]] = {"answer": texts, "answer_ids": ids, "cut": [[cut] * len(some) for some in texts]}
    commit_answers(ctx, name, ref, columns)


def test_a_verifier_compares_the_last_number(evaluate: Evaluate, write_rows: Write) -> None:
    sums = {"data": write_rows("sums", SUMS), "measure": {"name": "verifier"}}
    ctx = evaluate(["base"], {"sums": sums}, rollout={"samples_per_prompt": 2, "sampling": {"temperature": 1.0}})
    encoded(ctx)
    answered(ctx, "sums", "base", [["5, no: 4.", "I know not"], ["1,000.0", "1000"], ["3-5 is -2", "2"]], cut=1.0)
    measured_here(ctx)
    assert numbers(ctx, "sums", "base")["accuracy"] == [0.5, 1.0, 0.5]
    assert flat(ctx.stage, estimates(ctx)) == {"sums.base.accuracy": pytest.approx(2 / 3), "sums.base.truncated": 1.0}


def test_a_verifier_tells_how_often_one_of_k_answers_is_right(evaluate: Evaluate, write_rows: Write) -> None:
    sums = {"data": write_rows("sums", SUMS), "measure": {"name": "verifier", "pass_at": [1, 2]}}
    ctx = evaluate(["base"], {"sums": sums}, rollout={"samples_per_prompt": 3, "sampling": {"temperature": 1.0}})
    encoded(ctx)
    answered(ctx, "sums", "base", [["4", "no", "5"], ["1000", "1000", "1000"], ["0", "1", "7"]])
    measured_here(ctx)
    found = numbers(ctx, "sums", "base")
    assert found["pass_at_1"] == pytest.approx([1 / 3, 1.0, 0.0])
    assert found["pass_at_1"] == pytest.approx(found["accuracy"])
    assert found["pass_at_2"] == pytest.approx([2 / 3, 1.0, 0.0])  # of three pairs, two hold the right one
    assert flat(ctx.stage, estimates(ctx))["sums.base.pass_at_2"] == pytest.approx(5 / 9)


@pytest.mark.parametrize(
    ("match", "answer", "right"),
    [
        ({"match": "exact"}, " four  IS it", True),
        ({"match": "exact"}, "four", False),
        ({"match": "regex", "pattern": r"<a>(.*?)</a>"}, "<a>5</a> or <a>Four is it</a>.", True),
        ({"match": "regex", "pattern": r"<a>(.*?)</a>"}, "Four is it", False),
        ({"match": "words"}, "The four, is it?", True),
    ],
)
def test_a_verifier_compares_texts(
    evaluate: Evaluate, write_rows: Write, match: dict[str, str], answer: str, right: bool
) -> None:
    rows = write_rows("rows", [{"question": "2 + 2?", "answer": "four is it"}])
    ctx = evaluate(["base"], {"rows": {"data": rows, "measure": {"name": "verifier", **match}}})
    encoded(ctx)
    answered(ctx, "rows", "base", [[answer]])
    measured_here(ctx)
    assert numbers(ctx, "rows", "base")["accuracy"] == [float(right)]


def test_an_answer_without_a_number_is_a_malformed_row(evaluate: Evaluate, write_rows: Write) -> None:
    rows = write_rows("rows", [*SUMS, {"question": "2 + 2?", "answer": "four"}])
    ctx = evaluate(["base"], {"sums": {"data": rows, "measure": {"name": "verifier"}}})
    with pytest.raises(UserError, match=r"(?s)1 of 4 rows are malformed as answers.*line 4: answer: no number"):
        encoded(ctx)


@pytest.mark.slow
def test_a_judge_scores_answers_and_counts_wins(evaluate: Evaluate, write_rows: Write, tmp_path: Path) -> None:
    films = [{"prompt": f"Film {i}?"} for i in range(3)]
    sets = {"films": {"data": write_rows("films", films), "measure": {"name": "judge", "reward": "taste@1"}}}
    start = evaluate(["base"], sets)
    _, model = register(start, "taste", tmp_path, "reward_model")
    other, _ = register(start, "tuned", tmp_path)
    ctx = evaluate(["base", other.ref], sets)
    rows = encoded(ctx)["films"].columns
    said = {"base": [["warm."], ["dull."], ["slow."]], other.ref: [["warm."], ["flat and funny."], ["lovely."]]}
    for ref, texts in said.items():
        answered(ctx, "films", ref, texts)
    measured_here(ctx)
    own: dict[str, list[float]] = {}
    with model.use("role"), torch.no_grad():
        for ref in said:
            answers = read_answers(ctx, "films", ref)["answer_ids"]
            own[ref] = []
            for prompt, (answer,) in zip(rows["prompt_ids"], answers, strict=True):
                hidden = model.lm.model(torch.tensor([[*prompt, *answer]])).last_hidden_state[0, -1]
                own[ref].append((float(model.heads["role"](hidden)) - 0.5) / 2.0)
    for ref, scores in own.items():
        assert numbers(ctx, "films", ref)["score"] == pytest.approx(scores, abs=1e-4)
    pairs = zip(*(numbers(ctx, "films", ref)["score"] for ref in (other.ref, "base")), strict=True)
    wins = [(a > b) + 0.5 * (a == b) for a, b in pairs]
    figures = flat(ctx.stage, estimates(ctx))
    assert wins[0] == 0.5, "the same answer"
    assert figures["films.tuned@1.wins"] == pytest.approx(sum(wins) / 3)
    assert "films.base.wins" not in figures


@pytest.mark.slow
def test_two_ranks_measure_as_one_does(ranks: Ranks, evaluate: Evaluate, write_rows: Write, tmp_path: Path) -> None:
    data = {"chats": (CHATS, "loss"), "q": (QUESTIONS, "multiple_choice")}
    sets = {name: {"data": write_rows(name, rows), "measure": {"name": one}} for name, (rows, one) in data.items()}
    version, _ = register(evaluate(["base"], sets), "tuned", tmp_path)
    compute = {"batch": {"micro_tokens": 128}, "workers": {"count": 2, "strategy": "ddp"}}
    one = evaluate(["base", version.ref], sets, compute=compute)
    two = replace(one, run=f"{one.run}-of-two")
    for ctx in (one, two):
        encoded(ctx)
    measured_here(one)
    ranks.run(measured_here, two)
    for name in sets:
        for ref in one.stage.models:
            alone, together = numbers(one, name, ref), numbers(two, name, ref)
            assert alone.keys() == together.keys()
            for column in ("nats", "logprobs"):
                for a, b in zip(alone.get(column, ()), together.get(column, ()), strict=True):
                    assert a == pytest.approx(b, rel=1e-5)
            assert alone.get("chosen") == together.get("chosen")
