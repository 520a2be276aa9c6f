"""`triptych data check`: the report, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import UserError

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
    assert CliRunner().invoke(app, ["data", "check", "a.jsonl", "--kind", "dpo"]).exit_code == 2


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
