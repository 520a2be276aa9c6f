"""Tags stand where a causal model has seen the whole word; answers where it has seen the whole context."""

import json
from pathlib import Path
from typing import Any

import pytest

from triptych.data.labelled import encode_questions, encode_tags
from triptych.data.rows import QuestionRow, TaggedRow, parse_question, parse_tags
from triptych.models.base import load_tokenizer

LABELS = ("O", "B-PER", "I-PER")
WORDS = TaggedRow(("Lovely", "Cast", "listens", "!"), ("B-PER", "I-PER", "O", "O"))
CONTEXT = "The film is dull. The music is lovely, the cast flat."


def question(text: str, context: str = CONTEXT) -> QuestionRow:
    return QuestionRow("What?", context, (text,), (context.index(text),))


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(tiny_model_dir)


def test_a_tag_stands_at_the_last_token_of_its_word(tokenizer: Any) -> None:
    [item] = encode_tags([WORDS], tokenizer, 64, LABELS).items
    assert tokenizer.decode(item.input_ids) == "Lovely Cast listens !"
    ends = [place + 1 for place, tag in enumerate(item.tags) if tag != -100]
    assert [tokenizer.decode(item.input_ids[:end]) for end in ends] == [
        "Lovely",
        "Lovely Cast",
        "Lovely Cast listens",
        "Lovely Cast listens !",
    ]
    assert [tag for tag in item.tags if tag != -100] == [1, 2, 0, 0]
    assert len(item.tags) == len(item.input_ids) > 4, "some word has several tokens"


def test_no_token_belongs_to_two_characters(tokenizer: Any) -> None:
    row = TaggedRow(tuple("在北京a了"), ("O", "B-PER", "I-PER", "O", "O"))
    [item] = encode_tags([row], tokenizer, 64, LABELS, "").items
    assert tokenizer.decode(item.input_ids) == "在北京a了"
    assert sum(tag != -100 for tag in item.tags) == 5


def test_rows_are_cut_behind_a_whole_word_and_counted(tokenizer: Any) -> None:
    [whole] = encode_tags([WORDS], tokenizer, 64, LABELS).items
    tagged = [place for place, tag in enumerate(whole.tags) if tag != -100]
    most = tagged[2]  # one token short of the third word
    cut = encode_tags([WORDS, WORDS], tokenizer, most, LABELS)
    assert cut.truncated == 2
    assert cut.items[0].input_ids == whole.input_ids[: tagged[1] + 1]
    assert cut.items[0].tags[-1] == 2
    assert encode_tags([WORDS], tokenizer, most, LABELS, drop=True).dropped == 1
    assert encode_tags([WORDS], tokenizer, tagged[0], LABELS).unlearnable == 1
    assert encode_tags([], tokenizer, most, LABELS).items == []


@pytest.mark.parametrize("answer", ["dull", "The music", "lovely, the cast", "flat."])
def test_an_answer_is_found_in_the_second_context(tokenizer: Any, answer: str) -> None:
    [item] = encode_questions([question(f"{answer}")], tokenizer, 512).items
    assert tokenizer.decode(item.input_ids) == f"{CONTEXT}\n\nWhat?\n\n{CONTEXT}"
    context = item.input_ids[item.context_start :]
    assert tokenizer.decode(context) == CONTEXT
    assert tokenizer.decode(context[item.start : item.end + 1]).strip() == answer
    assert CONTEXT[item.offsets[2 * item.start] : item.offsets[2 * item.end + 1]].strip() == answer
    assert json.loads(item.answers) == [answer]


def test_characters_of_several_tokens_are_answers_too(tokenizer: Any) -> None:
    context = "我在北京看电影。"
    [item] = encode_questions([question("北京", context)], tokenizer, 512).items
    tokens = item.input_ids[item.context_start :]
    assert tokenizer.decode(tokens[item.start : item.end + 1]) == "北京"
    assert context[item.offsets[2 * item.start] : item.offsets[2 * item.end + 1]] == "北京"


def test_long_contexts_are_cut_and_rows_without_their_answer_left_out(tokenizer: Any) -> None:
    rows = [question("dull"), question("flat")]
    early, _ = encode_questions(rows, tokenizer, 512).items
    most = len(early.input_ids) - 4  # two tokens of each context
    found = encode_questions(rows, tokenizer, most)
    assert (len(found.items), found.truncated, found.unlearnable) == (1, 1, 1)
    assert len(found.items[0].input_ids) <= most
    assert found.items[0].start == early.start
    assert encode_questions(rows, tokenizer, most, drop=True).dropped == 2
    assert encode_questions(rows, tokenizer, 3).unlearnable == 2
    both = QuestionRow("What?", CONTEXT, ("flat", "dull"), (CONTEXT.index("flat"), CONTEXT.index("dull")))
    assert encode_questions([both], tokenizer, most).items[0].start == early.start, "the answer that is left"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a", "b"], "tags": ["O", "B-ORG"]}, r"tags\[1\]: 'B-ORG' is none of O, B-PER, I-PER"),
        ({"tokens": [], "tags": []}, "an empty list"),
        ({"tokens": ["a", " "], "tags": [0, 1]}, r"tokens\[1\]: empty"),
        ({"tokens": "a b", "tags": ["O"]}, "neither a list nor JSON"),
        ({"tokens": ["a"]}, "no 'tags'"),
    ],
)
def test_malformed_tags(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_tags(record, LABELS)


def test_tags_by_name_by_index_and_from_a_csv_cell() -> None:
    row = TaggedRow(("a", "b"), ("O", "I-PER"))
    assert parse_tags({"tokens": ["a", "b"], "tags": ["O", "I-PER"]}, LABELS) == row
    assert parse_tags({"tokens": '["a", "b"]', "tags": "[0, 2]"}, LABELS) == row


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": [], "answer_start": []}, "unanswerable"),
        ({"text": ["dull"], "answer_start": [3]}, "does not stand at 3"),
        ({"text": ["dull"], "answer_start": [1, 2]}, "1 texts and 2 starts"),
        ({"text": ["dull"], "answer_start": [-1]}, "not a whole number"),
        ({"text": ["dull"]}, "not a mapping"),
        ("dull", "neither a mapping nor JSON"),
        (None, "no 'answers'"),
    ],
)
def test_malformed_questions(answers: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_question({"question": "What?", "context": CONTEXT, "answers": answers})
    good = {"text": ["dull"], "answer_start": [12]}
    assert parse_question({"question": "What?", "context": CONTEXT, "answers": json.dumps(good)}) == question("dull")
