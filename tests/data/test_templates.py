"""Training sees the tokens that an engine is given and samples, whatever the tokenizer and its chat template."""

import random
from typing import Any

import pytest

from tests.support.tokenizers import TEMPLATES, TOKENIZERS, make_tokenizer
from triptych.data.encode import Example, encode_pairs, encode_prompts, encode_sft
from triptych.data.end_tokens import end_of_turn
from triptych.data.rows import Message, PairRow, PromptRow, SftRow
from triptych.objectives import IGNORE

ENDS = {
    "chatml": "<|im_end|>",
    "llama 3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi 3": "<|end|>",
    "qwen 3": "<|im_end|>",
    "tools": "<|im_end|>",
    "deepseek": "<|stop|>",
    "plain text": "</s>",
}
"""The token that ends a turn of each template."""
ANSWERS = (
    "Paris",
    "It is.",
    "\nParis",
    " 12",
    "a\n\nb",
    "so? ",
    "<think>\nWhy\n</think>\n\nIt",
    "é ü 中",
    "0.5",
    "'s",
    "...",
    "<|im_",
    "</s",
)
TURNS = ("Which city is it?", "Why is that so?\n", "  ", "1", "ok", "system", "Good morning,\n\ngood night. ")
CHATS = 12


def chats(template: str, count: int = CHATS, seed: int = 0) -> list[tuple[Message, ...]]:
    """Random chats that the template takes: one to three questions, each answered."""
    draw = random.Random(f"{template}/{seed}")
    made = []
    for _ in range(count):
        chat = [] if template == "gemma" or draw.random() < 0.5 else [Message("system", "You are a guide.")]
        for _ in range(draw.randint(1, 3)):
            question = "".join(draw.choices(TURNS, k=2))
            answer = "".join(draw.choices(ANSWERS, k=draw.randint(1, 2)))
            chat += [Message("user", f"Why{question}"), Message("assistant", answer)]
        made.append(tuple(chat))
    return made


def sampled_prompts(tokenizer: Any, chat: tuple[Message, ...]) -> list[list[int]]:
    """What an engine is given for each answer, as vLLM renders and tokenises it."""
    plain = [{"role": message.role, "content": message.content} for message in chat]
    return [
        tokenizer(
            tokenizer.apply_chat_template(plain[:index], tokenize=False, add_generation_prompt=True),
            add_special_tokens=False,
        )["input_ids"]
        for index, message in enumerate(chat)
        if message.role == "assistant"
    ]


def written(tokenizer: Any, chat: tuple[Message, ...], number: int, end: str) -> str:
    """The chat through its answer `number`, tokenised as one text: nothing is lost or added where it is cut."""
    index = [index for index, message in enumerate(chat) if message.role == "assistant"][number]
    plain = [{"role": message.role, "content": message.content} for message in chat[: index + 1]]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    before = tokenizer.apply_chat_template(plain[:-1], tokenize=False, add_generation_prompt=True)
    text = text[: text.index(end, len(before)) + len(end)]
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


def learned(examples: list[Example]) -> list[tuple[list[int], list[int]]]:
    """(tokens before, tokens learned) of every stretch that is learned, in the order of the chat."""
    found = []
    for example in examples:
        ids, labels = example.input_ids, example.labels
        assert all(label in (token, IGNORE) for token, label in zip(ids, labels, strict=True))
        starts = [i for i, label in enumerate(labels) if label != IGNORE and (i == 0 or labels[i - 1] == IGNORE)]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if labels[i] == IGNORE), len(ids))
            found.append((ids[:start], ids[start:end]))
    return found


def check(tokenizer_kind: str, template: str) -> None:
    tokenizer = make_tokenizer(tokenizer_kind, template)
    end = tokenizer.convert_tokens_to_ids(ENDS[template])
    assert end_of_turn(tokenizer) == end
    for chat in chats(template):
        prompts = sampled_prompts(tokenizer, chat)
        stretches = learned(encode_sft([SftRow(chat)], tokenizer, 100_000).items)
        assert [before for before, _ in stretches] == prompts
        for number, (before, answer) in enumerate(stretches):
            assert answer[-1] == end
            assert end not in answer[:-1]
            assert tokenizer.decode(before + answer) == written(tokenizer, chat, number, ENDS[template])
        whole = encode_prompts([PromptRow(chat[:-1])], tokenizer, 100_000)[0].input_ids
        assert whole == prompts[-1]
        pair = encode_pairs([PairRow(chat[:-1], chat[-1].content, "No.", None)], tokenizer, 100_000).items[0]
        assert (pair.chosen[: pair.start], pair.chosen[pair.start :]) == stretches[-1]
        assert pair.rejected[: pair.start] == prompts[-1]
        assert pair.rejected[-1] == end


FEW = [
    ("bytes", "chatml"),
    ("bytes, Llama 3's words", "qwen 3"),
    ("metaspace first", "phi 3"),
    ("metaspace always", "mistral"),
    ("prepended", "llama 3"),
    ("byte fallback", "plain text"),
    ("unigram, no words", "gemma"),
    ("wordpiece", "deepseek"),
]


@pytest.mark.parametrize(("kind", "template"), FEW)
def test_learned_answers_stand_behind_the_prompts_of_sampling(kind: str, template: str) -> None:
    check(kind, template)


@pytest.mark.exhaustive
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_learned_answers_stand_behind_the_prompts_of_sampling_everywhere(kind: str, template: str) -> None:
    check(kind, template)
