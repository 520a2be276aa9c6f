"""Labels cover exactly what the assistant writes, and training sees the tokens that sampling sees."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.data.encode import Encoded, TextExample, encode_pairs, encode_prompts, encode_sft, encode_texts
from triptych.data.rows import Message, PairRow, PromptRow, SftRow, TextRow
from triptych.errors import UserError
from triptych.models.base import load_tokenizer
from triptych.objectives import IGNORE

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
    assert encoded == Encoded([example])
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
    prompt = encode_prompts([PromptRow((SYSTEM, USER))], tokenizer, 512)[0].input_ids
    example = encode_sft([SftRow((SYSTEM, USER, Message("assistant", answer)))], tokenizer, 10_000).items[0]
    assert example.input_ids[: len(prompt)] == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORE}
    assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
    assert example.input_ids[len(prompt) :] == [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


@pytest.fixture
def long_chats(tokenizer: Any) -> tuple[list[SftRow], int]:
    """A short chat, one with a long answer, one whose prompt alone is too long; and a length that cuts both."""
    prompt = len(encode_prompts([PromptRow((USER,))], tokenizer, 512)[0].input_ids)
    rows = [
        SftRow((USER, Message("assistant", text))) for text in ("Dull.", "A warm and funny story about a family " * 9)
    ]
    rows.append(SftRow((Message("user", "What do you think of the ending? " * 30), Message("assistant", "Dull."))))
    return rows, prompt + 20


def test_long_chats_are_truncated(tokenizer: Any, long_chats: tuple[list[SftRow], int]) -> None:
    rows, length = long_chats
    encoded = encode_sft(rows, tokenizer, length)
    whole = encode_sft(rows, tokenizer, 10_000).items
    assert [item.input_ids for item in encoded.items] == [whole[0].input_ids, whole[1].input_ids[:length]]
    assert [item.labels for item in encoded.items] == [whole[0].labels, whole[1].labels[:length]]
    assert encoded == Encoded(encoded.items, truncated=1, unlearnable=1)


def test_long_chats_are_dropped(tokenizer: Any, long_chats: tuple[list[SftRow], int]) -> None:
    rows, length = long_chats
    encoded = encode_sft(rows, tokenizer, length, "drop")
    assert encoded == Encoded(encode_sft(rows[:1], tokenizer, length).items, dropped=2)


@pytest.mark.parametrize("length", [2, 7, 64])
def test_long_chats_are_split(tokenizer: Any, long_chats: tuple[list[SftRow], int], length: int) -> None:
    """Every token of an answer is predicted exactly once, whatever the length of the pieces."""
    rows, _ = long_chats
    for row in rows:
        whole = encode_sft([row], tokenizer, 10_000).items[0]
        encoded = encode_sft([row], tokenizer, length, "split")
        assert all(len(item.input_ids) == len(item.labels) <= length for item in encoded.items)
        predicted = [label for item in encoded.items for label in item.labels[1:] if label != IGNORE]
        assert predicted == [label for label in whole.labels[1:] if label != IGNORE]
        longer = len(whole.input_ids) > length
        assert (encoded.split, encoded.truncated, encoded.dropped) == (int(longer), 0, 0)
        windows = -(-(len(whole.input_ids) - 1) // (length - 1))
        assert len(encoded.items) + encoded.unlearnable == windows


def test_nothing_learnable_within_the_length(tokenizer: Any, long_chats: tuple[list[SftRow], int]) -> None:
    rows, length = long_chats
    assert encode_sft(rows, tokenizer, length - 20) == Encoded([], unlearnable=3)
    assert encode_sft(rows, tokenizer, 1, "split").items == []


def test_texts_end_with_the_end_token(tokenizer: Any) -> None:
    rows = [TextRow("A warm story.", "good"), TextRow("Dull.<|im_end|>", "bad"), TextRow("A dull plot. " * 20, "bad")]
    end = tokenizer.eos_token_id
    encoded = encode_texts(rows, tokenizer, 12, ("bad", "good"))
    first, second, third = encoded.items
    assert first == TextExample([*tokenizer("A warm story.")["input_ids"], end], 1)
    assert second == TextExample([*tokenizer("Dull.")["input_ids"], end], 0)
    assert third == TextExample([*tokenizer("A dull plot. " * 20)["input_ids"][:11], end], 0)
    assert encoded.truncated == 1
    assert encode_texts(rows, tokenizer, 12, ("bad", "good"), drop=True) == Encoded([first, second], dropped=1)
    assert encode_texts([], tokenizer, 12, ("bad", "good")).items == []
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        encode_texts(rows, tokenizer, 12, ("bad", "good"))


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
    assert encode_pairs(rows, tokenizer, 10) == Encoded([], dropped=2)


def test_prompts_end_where_the_assistant_begins(tokenizer: Any) -> None:
    rows = [PromptRow((SYSTEM, USER)), PromptRow((Message("user", "What do you think? " * 40),))]
    assert tokenizer.decode(encode_prompts(rows[:1], tokenizer, 128)[0].input_ids).endswith(
        "film.<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(UserError, match=r"1 of 2 prompts are longer than 128 tokens .*rows 2"):
        encode_prompts(rows, tokenizer, 128)
    assert len(encode_prompts(rows, tokenizer, 128, max_bad_rows=1)) == 1
    kept = [PromptRow(rows[1].messages, {"answer": "a"}), PromptRow(rows[0].messages, {"answer": "b"})]
    assert [prompt.fields for prompt in encode_prompts(kept, tokenizer, 128, max_bad_rows=1)] == [{"answer": "b"}]
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
