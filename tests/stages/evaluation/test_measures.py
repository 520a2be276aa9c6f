"""Numbers of each row, against plain transformers and what is worked out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.evaluation.conftest import measured_here, numbers, register
from triptych.data.table import Table
from triptych.errors import UserError
from triptych.models.base import load_causal_lm
from triptych.stages.context import StageContext, begin
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
    beside = comparison(ctx.stage, estimates(ctx))["sets"]["chats"]
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
