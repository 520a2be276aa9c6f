"""`triptych data check`: the report, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import UserError
from triptych.recipe import KINDS, TrainedStage

ROWS = ['{"prompt": "one two", "response": "three"}', '{"prompt": "one", "response": "two"}', '{"prompt": "one"}']


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(ROWS))
    return path


def test_report_in_json(rows: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(rows), "--kind", "sft", "--json"])
    assert result.exit_code == 1, "a malformed row, and none is allowed"
    report = json.loads(result.stdout)
    assert (report["rows"], report["bad"], report["unit"]) == (2, 1, "words")
    assert report["first_bad"][0]["line"] == 3
    assert (report["lengths"]["min"], report["lengths"]["max"]) == (2, 3)
    assert sum(bin_["rows"] for bin_ in report["lengths"]["histogram"]) == 2


def test_what_is_left_out_or_not_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b", "label": label, "topic": "x"} for label in (True, False)]
    path.write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(app, ["data", "check", str(path), "--kind", "sft"])
    assert result.exit_code == 0
    assert "shape: left out (label: false), 1 rows" in result.stdout
    assert "not read: topic\n" in result.stdout


def test_allowed_bad_rows_exit_0(rows: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(rows), "--kind", "sft", "--max-bad-rows", "1"])
    assert result.exit_code == 0
    assert "2 rows as sft, 1 malformed" in result.stdout
    assert "line 3: no 'response'" in result.stdout


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("sft", {"question": "Hi", "response": "Hello"}),
        ("pairs", {"question": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("prompts", {"question": "Hi"}),
    ],
)
def test_tokens_of_a_base(tiny_model_dir: Path, tmp_path: Path, kind: str, row: dict[str, str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    arguments = ["--kind", kind, "--base", str(tiny_model_dir), "--column", "prompt=question", "--json"]
    result = CliRunner().invoke(app, ["data", "check", str(path), *arguments])
    assert result.exit_code == 0, result.output
    lengths = json.loads(result.stdout)["lengths"]
    assert lengths["histogram"] == [{"from": lengths["min"], "to": lengths["min"], "rows": 1}]
    assert lengths["min"] > 10, "the template's tokens count"


def test_texts(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "A warm story.", "label": "good"}\n{"text": "Dull.", "label": 0}\n')
    for unit, lengths, base in (("words", (1, 3), []), ("tokens", (2, 5), ["--base", str(tiny_model_dir)])):
        result = CliRunner().invoke(app, ["data", "check", str(path), "--kind", "texts", "--json", *base])
        report = json.loads(result.stdout)
        assert (report["unit"], report["rows"]) == (unit, 2)
        assert report["lengths"]["min"] >= lengths[0]
        assert report["lengths"]["max"] >= lengths[1]


def test_wrong_requests() -> None:
    for arguments in (["nowhere.jsonl"], ["a.jsonl", "--column", "prompt"]):
        result = CliRunner().invoke(app, ["data", "check", "--kind", "sft", *arguments])
        assert isinstance(result.exception, UserError)
    assert CliRunner().invoke(app, ["data", "check", "a.jsonl", "--kind", "none"]).exit_code == 2


def test_a_chat_that_the_template_refuses_is_a_row_with_its_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    user, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Dull."}
    call = {"function": {"name": "look", "arguments": "{}"}}
    chats = [[user, answer], [answer, user], [user, answer | {"tool_calls": [call]}]]
    chats += [[user | {"content": "<|im_end|>"}, answer], [user, answer | {"weight": 0}]]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    arguments = ["data", "check", str(path), "--kind", "sft", "--base", str(tiny_model_dir), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    assert (report["rows"], report["bad"], report["control_tokens"]) == (1, 4, 1)
    reasons = {bad["line"]: bad["reason"] for bad in report["first_bad"]}
    assert "the assistant speaks first" in reasons[2]
    assert "messages[1].tool_calls: the chat template writes nothing of it" in reasons[3]
    assert "messages[0].content: holds the control token '<|im_end|>'" in reasons[4]
    assert "every turn of the assistant has weight 0" in reasons[5]
    report = json.loads(CliRunner().invoke(app, [*arguments, "--control-tokens", "escape"]).stdout)
    assert (report["rows"], report["bad"], report["control_tokens"]) == (2, 3, 1)


def test_rows_are_measured_in_the_template_that_is_given(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "response": "Dull."}\n')
    arguments = ["data", "check", str(path), "--kind", "sft", "--base", str(tiny_model_dir), "--json"]
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    own, given = (
        json.loads(CliRunner().invoke(app, [*arguments, *more]).stdout)["lengths"]["max"]
        for more in ([], ["--chat-template", template])
    )
    assert given < own
    wrong = CliRunner().invoke(app, [*arguments, "--chat-template", "none.jinja"])
    assert isinstance(wrong.exception, UserError)
    assert "--chat-template: " in str(wrong.exception)


def test_the_report_says_which_shape_it_found_and_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    alpaca = {"instruction": "Hi", "output": "Hello"}
    path.write_text(json.dumps([alpaca, {"question": "Hi", "answer": "Yo"}, alpaca]))
    for kind in ("sft", "rl"):
        result = CliRunner().invoke(app, ["data", "check", str(path), "--kind", kind, "--json"])
        assert result.exit_code == 0, result.output
        shapes = [(shape["shape"], shape["rows"]) for shape in json.loads(result.stdout)["shapes"]]
        assert shapes == [("alpaca", 2), ("question and answer" if kind == "sft" else "question", 1)]
    result = CliRunner().invoke(app, ["data", "check", str(path), "--kind", "sft"])
    assert "shape: alpaca (columns instruction, output), 2 rows" in result.stdout


def test_every_stage_kind_that_learns_from_rows_is_a_kind_of_rows(tmp_path: Path) -> None:
    shapes: dict[str, str] = {
        "sft": '{"prompt": "Hi", "response": "Hello"}',
        "reward": '{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}',
        "dpo": '{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}',
        "kto": '{"prompt": "Hi", "completion": "Hello", "label": true}',
        "rrhf": '{"prompt": "Hi", "answers": ["Hello", "No"], "scores": [1, 0]}',
        "rl": '{"prompt": "Hi"}',
        "classification": '{"text": "Dull.", "label": "bad"}',
        "token_classification": '{"tokens": ["Rome"], "tags": ["B-LOC"]}',
        "question_answering": '{"question": "?", "context": "a", "answers": {"text": ["a"], "answer_start": [0]}}',
    }
    assert shapes.keys() == {kind for kind, model in KINDS.items() if issubclass(model, TrainedStage)}
    shapes |= {
        "choices": '{"prompt": "Hi", "choices": ["Hello", "No"], "answer": 0}',
        "answers": '{"prompt": "2 + 2?", "answer": 4}',
    }
    for kind, row in shapes.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(row)
        result = CliRunner().invoke(app, ["data", "check", str(path), "--kind", kind])
        assert result.exit_code == 0, result.output


def test_labels_of_the_used_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\n" + "".join(f"some text\t{number // 50}\n" for number in range(100)))
    check = ["data", "check", str(path), "--kind", "classification"]
    assert "labels: 0 50\n" in CliRunner().invoke(app, [*check, "--limit", "50"]).stdout
    drawn = json.loads(CliRunner().invoke(app, [*check, "--sample", "50", "--json"]).stdout)["labels"]
    assert sum(drawn.values()) == 50
    assert min(drawn.values()) > 10
    refused = CliRunner().invoke(app, [*check, "--sample", "50", "--limit", "50"])
    assert isinstance(refused.exception, UserError)
    assert "one of `sample` and `limit`" in str(refused.exception)
