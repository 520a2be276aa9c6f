"""Labels cover exactly what the assistant writes, and training sees the tokens that sampling sees."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.data.encode import IGNORE, encode_pairs, encode_prompts, encode_sft
from triptych.data.rows import Message, PairRow, PromptRow, SftRow
from triptych.errors import UserError
from triptych.models.base import load_tokenizer

SYSTEM = Message("system", "You are a film critic.")
USER = Message("user", "Write a one-sentence opinion of a film.")


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def _learned(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    """The stretches of learned tokens, as text."""
    texts, stretch = [], []
    for token, label in zip([*ids, -1], [*labels, IGNORE], strict=True):
        assert label in (token, IGNORE)
        if label != IGNORE:
            stretch.append(token)
        elif stretch:
            texts.append(tokenizer.decode(stretch))
            stretch = []
    return texts


def test_every_answer_is_learned_with_its_end_token_and_nothing_else(tokenizer: Any) -> None:
    row = SftRow(
        (
            SYSTEM,
            USER,
            Message("assistant", "A dull plot."),
            Message("user", "Why?"),
            Message("assistant", "It's long."),
        )
    )
    encoded = encode_sft([row], tokenizer, 512)
    example = encoded.items[0]
    assert (encoded.truncated, encoded.dropped) == (0, 0)
    assert _learned(tokenizer, example.input_ids, example.labels) == ["A dull plot.<|im_end|>", "It's long.<|im_end|>"]
    assert tokenizer.decode(example.input_ids) == (
        "<|im_start|>system\nYou are a film critic.<|im_end|>\n"
        "<|im_start|>user\nWrite a one-sentence opinion of a film.<|im_end|>\n"
        "<|im_start|>assistant\nA dull plot.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nIt's long.<|im_end|>"
    )


def test_turns_after_the_last_answer_are_left_out(tokenizer: Any) -> None:
    chat = (USER, Message("assistant", "Dull."))
    whole = encode_sft([SftRow((*chat, Message("user", "Why?")))], tokenizer, 512)
    assert whole == encode_sft([SftRow(chat)], tokenizer, 512)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(min_size=1).filter(lambda text: text.strip() and "<|" not in text))
def test_training_sees_what_sampling_sees(tokenizer: Any, answer: str) -> None:
    """Prompt tokens first, then the answer's own, also where the answer's beginning would merge into the prompt."""
    answer = answer.encode("utf-8", "ignore").decode() or "x"
    prompt = encode_prompts([PromptRow((SYSTEM, USER))], tokenizer, 512)[0]
    example = encode_sft([SftRow((SYSTEM, USER, Message("assistant", answer)))], tokenizer, 10_000).items[0]
    assert example.input_ids[: len(prompt)] == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORE}
    assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
    assert example.input_ids[len(prompt) :] == [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


def test_long_chats_are_cut_and_hopeless_ones_dropped(tokenizer: Any) -> None:
    prompt = len(encode_prompts([PromptRow((USER,))], tokenizer, 512)[0])
    rows = [
        SftRow((USER, Message("assistant", text))) for text in ("Dull.", "A warm and funny story about a family " * 9)
    ]
    rows.append(SftRow((Message("user", "What do you think of the ending? " * 30), Message("assistant", "Dull."))))
    encoded = encode_sft(rows, tokenizer, prompt + 20)
    assert (len(encoded.items), encoded.truncated, encoded.dropped) == (2, 1, 1)
    assert len(encoded.items[1].input_ids) == len(encoded.items[1].labels) == prompt + 20
    with pytest.raises(UserError, match=f"none of 3 rows.*max_length={prompt}"):
        encode_sft(rows, tokenizer, prompt)


def test_pairs_are_whole_chats_or_dropped(tokenizer: Any) -> None:
    rows = [
        PairRow((SYSTEM, USER), "A warm story.", "Dull.", 1.5),
        PairRow((SYSTEM, USER), "A warm story.", "A dull plot " * 40, None),
    ]
    encoded = encode_pairs(rows, tokenizer, 128)
    assert (len(encoded.items), encoded.truncated, encoded.dropped) == (1, 0, 1)
    pair = encoded.items[0]
    assert pair.margin == 1.5
    assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.eos_token_id
    assert pair.chosen[: pair.start] == pair.rejected[: pair.start]
    assert tokenizer.decode(pair.chosen[pair.start :]) == "A warm story.<|im_end|>"
    assert tokenizer.decode(pair.rejected[pair.start :]) == "Dull.<|im_end|>"
    for ids, answer in ((pair.chosen, "A warm story."), (pair.rejected, "Dull.")):
        assert (
            ids == encode_sft([SftRow((SYSTEM, USER, Message("assistant", answer)))], tokenizer, 128).items[0].input_ids
        )
    with pytest.raises(UserError, match="none of 2 pairs"):
        encode_pairs(rows, tokenizer, 10)


def test_prompts_end_where_the_assistant_begins(tokenizer: Any) -> None:
    rows = [PromptRow((SYSTEM, USER)), PromptRow((Message("user", "What do you think? " * 40),))]
    assert tokenizer.decode(encode_prompts(rows[:1], tokenizer, 128)[0]).endswith(
        "film.<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(UserError, match=r"1 of 2 prompts are longer than 128 tokens .*rows 2"):
        encode_prompts(rows, tokenizer, 128)
    assert len(encode_prompts(rows, tokenizer, 128, max_bad_rows=1)) == 1
    with pytest.raises(UserError, match="none of 2 prompts"):
        encode_prompts(rows, tokenizer, 4, max_bad_rows=9)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "rewrites earlier turns",
        ),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "without a special token"),
        ("{{ raise_exception('no system turn, please') }}", "refuses a chat of the turns system, user.*no system turn"),
    ],
)
def test_templates_that_cannot_be_learned_from(tokenizer: Any, template: str, reason: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=reason):
        encode_sft([SftRow((SYSTEM, USER, Message("assistant", "Dull.")))], tokenizer, 128)
