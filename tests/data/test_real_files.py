"""Files as their makers publish them: read from the path alone, or with the columns that the message names."""

import gzip
import json
import re
from pathlib import Path

import pytest

from triptych.data.rows import Message, PairRow, RowKind, SftRow
from triptych.data.sources import found_shapes, load_rows
from triptych.errors import UserError
from triptych.recipe.data import Source


def _shape(source: Source, kind: RowKind) -> str:
    return found_shapes(source, kind).shapes[0][0][0]


@pytest.mark.slow
def test_gsm8k_is_chats_and_prompts(shared_data: Path) -> None:
    source = Source(path=f"{shared_data}/gsm8k/train.jsonl")
    rows = load_rows(source, "sft")
    assert len(rows.items) == 7473
    assert [message.role for message in rows.items[0].messages] == ["user", "assistant"]
    assert rows.items[0].messages[1].content.endswith("#### 72")
    prompts = load_rows(source, "prompts").items
    assert prompts[0].messages == rows.items[0].messages[:1]
    assert prompts[0].fields == {"answer": rows.items[0].messages[1].content}
    assert _shape(source, "sft") == "question and answer"


def test_graded_answers_of_gsm8k_are_refused_with_their_columns(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"no 'prompt' and no 'response' .*the row has: 175b_finetuning") as error:
        load_rows(Source(path=f"{shared_data}/gsm8k/example_model_solutions.jsonl"), "sft")
    assert "perhaps columns: {prompt: question, response: ground_truth}" in str(error.value)


@pytest.mark.slow
def test_dialogues_of_hh_are_chats_and_pairs(shared_data: Path) -> None:
    """Four of its rows have a dialogue whose last turn is empty."""
    source = Source(path=f"{shared_data}/hh-harmless/test.jsonl.gz", max_bad_rows=4)
    chats, pairs = load_rows(source, "sft"), load_rows(source, "pairs")
    assert [row.line for row in pairs.bad] == [87, 517, 926, 1104]
    assert (len(chats.items), len(chats.bad), len(pairs.items)) == (2308, 4, 2308)
    messages = [message for row in chats.items for message in row.messages]
    assert sum("\n\nHuman:" in message.content for message in messages) == 1  # an assistant that plays both
    for chat, pair in zip(chats.items, pairs.items, strict=True):
        assert chat == SftRow((*pair.prompt, Message("assistant", pair.chosen)))
        assert [message.role for message in pair.prompt] == ["user", "assistant"] * (len(pair.prompt) // 2) + ["user"]
    with gzip.open(f"{shared_data}/hh-harmless/test.jsonl.gz") as file:
        first = json.loads(file.readline())
    assert first["rejected"].endswith(f"\n\nAssistant: {pairs.items[0].rejected}")
    assert _shape(source, "pairs") == "whole chats, chosen and rejected"
    with pytest.raises(UserError, match=r"4 of 2312 rows are malformed .*\n  line 87: "):
        load_rows(source.model_copy(update={"max_bad_rows": 0}), "pairs")


@pytest.mark.slow
def test_sst2_is_texts(shared_data: Path) -> None:
    source = Source(path=f"{shared_data}/sst2/train.tsv")
    rows = load_rows(source, "texts")
    assert len(rows.items) == 67349
    assert rows.items[0].text.startswith("hide new secretions")
    assert {row.label for row in rows.items} == {"0", "1"}


@pytest.mark.slow
def test_the_message_names_the_columns_of_chnsenticorp(shared_data: Path) -> None:
    source = Source(path=f"{shared_data}/chnsenticorp-hotel/ChnSentiCorp_htl_all.csv", max_bad_rows=1)
    with pytest.raises(UserError) as error:
        load_rows(source, "texts")
    proposed = re.search(r"perhaps columns: \{(\w+): (\w+)\}", str(error.value))
    assert proposed is not None
    source = source.model_copy(update={"columns": {proposed[1]: proposed[2]}})
    rows = load_rows(source, "texts")
    assert (len(rows.items), [row.reason for row in rows.bad]) == (7765, ["text: empty"])
    first = load_rows(source.model_copy(update={"limit": 500}), "texts").items
    drawn = load_rows(source.model_copy(update={"sample": 500}), "texts").items
    assert {row.label for row in first} == {"1"}, "the file is sorted by label"
    assert 300 < sum(row.label == "1" for row in drawn) < 380, "5322 of 7766 are 1"


@pytest.mark.slow
def test_msra_is_tagged_words(shared_data: Path) -> None:
    rows = load_rows(Source(path=f"{shared_data}/msra-ner/dh_msra.zip"), "tags").items
    assert rows[0].tokens[:5] == ("当", "希", "望", "工", "程")
    assert sum(len(row.tokens) for row in rows) == 2342480
    tags = {tag for row in rows for tag in row.tags}
    assert tags == {"O"} | {f"{place}-{kind}" for place in "BI" for kind in ("PER", "ORG", "LOC")}


@pytest.mark.slow
def test_alpaca_sharegpt_and_trl_files_made_of_them_are_the_same_rows(shared_data: Path, tmp_path: Path) -> None:
    rows = load_rows(Source(path=f"{shared_data}/gsm8k/test.jsonl"), "sft")
    chats = [[message.content for message in row.messages] for row in rows.items]
    alpaca = [{"instruction": asked, "input": "", "output": said} for asked, said in chats]
    talk = [{"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]} for a, b in chats]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca, indent=2))
    (tmp_path / "sharegpt.json").write_text(json.dumps(talk))
    for name in ("alpaca", "sharegpt"):
        assert load_rows(Source(path=f"{tmp_path}/{name}.json"), "sft").digest == rows.digest

    pairs = load_rows(Source(path=f"{shared_data}/hh-harmless/test.jsonl.gz", max_bad_rows=4), "pairs")
    lines = "".join(json.dumps(_trl(row)) + "\n" for row in pairs.items)
    (tmp_path / "trl.jsonl").write_text(lines)
    assert load_rows(Source(path=f"{tmp_path}/trl.jsonl"), "pairs").digest == pairs.digest


def _trl(row: PairRow) -> dict[str, list[dict[str, str]]]:
    prompt = [{"role": message.role, "content": message.content} for message in row.prompt]
    sides = {"chosen": row.chosen, "rejected": row.rejected}
    return {name: [*prompt, {"role": "assistant", "content": text}] for name, text in sides.items()}
