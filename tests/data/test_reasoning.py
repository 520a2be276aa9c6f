"""Rows and scores of reasoning-gym's tasks."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.data.reasoning import score, task_rows
from triptych.data.sources import load_rows
from triptych.errors import UserError
from triptych.recipe.data import Source

SHORT = {"min_word_len": 3, "max_word_len": 3}


def generate(out: Path, *options: str, task: str = "spell_backward") -> tuple[int, str, Exception | None]:
    told = ("--train", "30", "--heldout", "10", *options)
    ended = CliRunner().invoke(app, ["data", "reasoning-gym", task, "--out", str(out), *told])
    return ended.exit_code, ended.stdout, ended.exception if isinstance(ended.exception, UserError) else None


def test_a_row_is_the_librarys_entry_with_a_prompt() -> None:
    [row] = task_rows("spell_backward", SHORT, train=1, heldout=0, seed=0, request="Write only the word.").train
    word = row["metadata"]["word"]
    assert row["question"] == f"Spell this word backward (example: sun -> nus): {word}"
    assert row["prompt"] == row["question"] + "\nWrite only the word."
    assert row["answer"] == word[::-1]
    assert row["metadata"]["source_dataset"] == "spell_backward"
    assert row["config"] == SHORT


def test_rows_are_the_same_for_the_same_seed_alone() -> None:
    first, again, other = (task_rows("leg_counting", {}, train=8, heldout=4, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.train != other.train


def test_no_question_is_asked_twice_though_the_task_repeats_some() -> None:
    rows = task_rows("gcd", {"min_value": 2, "max_value": 9}, train=40, heldout=10, seed=0)
    asked = [row["question"] for row in (*rows.heldout, *rows.train)]
    assert (len(rows.train), len(rows.heldout), len(set(asked))) == (40, 10, 50)


def test_heldout_rows_stay_as_they_are_with_more_rows_to_train_on() -> None:
    few, many = (task_rows("chain_sum", {}, train=train, heldout=5, seed=0) for train in (5, 20))
    assert few.heldout == many.heldout
    assert many.train[:5] == few.train


def test_too_few_different_questions_are_refused() -> None:
    with pytest.raises(UserError, match=r"^gcd: 8 different questions among 80, and 20 rows are wanted"):
        task_rows("gcd", {"min_value": 2, "max_value": 4}, train=15, heldout=5, seed=0)


@pytest.mark.parametrize(
    ("task", "config", "said"),
    [
        ("leg_countin", {}, r"^no task 'leg_countin' in reasoning-gym; did you mean `leg_counting`"),
        ("composite", {}, "^no task 'composite'"),
        ("leg_counting", {"max_animal": 2}, "^leg_counting: no setting 'max_animal'; did you mean `max_animals`"),
        ("leg_counting", {"min_animals": 5, "max_animals": 2}, "^leg_counting: max_animals must be >= min_animals"),
        ("arc_agi", {}, "^arc_agi: entries read from JSON score otherwise"),
    ],
)
def test_what_a_task_does_not_take_is_refused(task: str, config: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        task_rows(task, config, train=2, heldout=0, seed=0)


def test_what_stands_between_the_tags_is_scored_or_the_whole_text() -> None:
    """The library's default rule: 1 if equal, else the share of the text that is the answer."""
    row = {"question": "?", "answer": "Roger", "metadata": {"source_dataset": "letter_counting"}}
    assert score("Roger", row) == 1.0
    assert score("It is Roger.", row) == pytest.approx(5 / 12)
    assert score("Anthony or <answer> Roger </answer>, I think", row) == 1.0
    assert score("Roger <answer>Anthony</answer>", row) == 0.0
    assert score("", row) == 0.0


def test_numbers_are_compared_by_a_tasks_own_rule() -> None:
    row = {"question": "12 = ?", "answer": "12", "metadata": {"source_dataset": "chain_sum"}}
    assert [score(text, row) for text in ("12", "+12.0", "13", "= 12")] == [1.0, 1.0, 0.0, 0.5]


def test_a_tasks_settings_reach_its_rule() -> None:
    row = {"question": "?", "answer": "0.3333", "metadata": {"source_dataset": "decimal_arithmetic"}}
    strict, loose = (
        {**row, "config": {"max_num_decimal_places": places, "min_num_decimal_places": 1}} for places in (4, 2)
    )
    assert (score("0.3349", strict), score("0.3349", loose)) == (0.0, 1.0)


@pytest.mark.parametrize("row", [{}, {"question": "?", "answer": "1", "metadata": {}}, {"metadata": "chain_sum"}])
def test_a_row_that_is_none_of_a_tasks_has_no_score(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        score("1", row)


def test_files_are_prompts_and_answered_rows(tmp_path: Path) -> None:
    code, said, _ = generate(tmp_path, "--set", "min_word_len=3", "--set", "max_word_len=3", "--request", "One word.")
    assert (code, said.count("rows")) == (0, 2)
    rows = {name: list(map(json.loads, (tmp_path / f"{name}.jsonl").open())) for name in ("train", "heldout")}
    assert (len(rows["train"]), len(rows["heldout"])) == (30, 10)
    assert not {row["question"] for row in rows["train"]} & {row["question"] for row in rows["heldout"]}
    prompts = load_rows(Source(path=str(tmp_path / "train.jsonl")), "prompts").items
    assert prompts[0].messages[-1].content == rows["train"][0]["prompt"]
    assert dict(prompts[0].fields)["metadata"] == rows["train"][0]["metadata"]
    answered = load_rows(Source(path=str(tmp_path / "heldout.jsonl")), "answers").items
    assert answered[0].answers == (rows["heldout"][0]["answer"],)


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    assert generate(tmp_path)[0] == 0
    assert "is there already" in str(generate(tmp_path)[2])


@pytest.mark.parametrize(("option", "said"), [("max_word_len", "NAME=VALUE"), ("seed=1", "allowed: --seed")])
def test_a_setting_has_a_name_and_a_value(tmp_path: Path, option: str, said: str) -> None:
    assert said in str(generate(tmp_path, "--set", option)[2])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"install it by pip install 'triptych\[reasoning\]'$"):
        task_rows("leg_counting", {}, train=1, heldout=0, seed=0)
