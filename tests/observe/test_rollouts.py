"""Sampled answers of a run, read back group by group."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.errors import UserError
from triptych.observe.rollouts import SampledAnswer, read_groups, read_heldout, sampling_stage, steps_of
from triptych.observe.runs import RunView, read_run

RECIPE = "name: reviews\nmodel: {base: tiny}\nstages:\n  sft: {kind: sft}\n  rl: {kind: rl}\n  more: {kind: rl}\n"


def row(group: int, response: str, score: float | None, **other: Any) -> dict[str, Any]:
    own = {"lease": f"0/{group}/{response}", "group": group, "prompt": f"prompt {group}", "response": response}
    return own | {"score": score, "finish_reason": "stop", "versions": [3, 3], "response_ids": [1, 2]} | other


def write(run: Path, stage: str, step: int, rows: list[dict[str, Any]]) -> None:
    folder = run / "stages" / stage / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"step-{step:08d}.parquet")


@pytest.fixture
def run(tmp_path: Path) -> RunView:
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    write(folder, "rl", 1, [row(0, "early", 0.0)])
    rows = [row(0, "bad", -1.0), row(1, "best", 2.0), row(0, "middling", 0.5), row(1, "good", 1.0)]
    write(folder, "rl", 12, [*rows, row(2, "lost", math.nan, versions=[], finish_reason="length")])
    return read_run(str(folder))


def test_groups_come_best_first_and_answers_best_first(run: RunView) -> None:
    step, groups = read_groups(sampling_stage(run, None), None)
    assert step == 12
    assert [group.prompt for group in groups] == ["prompt 1", "prompt 0", "prompt 2"]
    assert [answer.text for answer in groups[1].answers] == ["middling", "bad"]
    assert (groups[1].mean, groups[1].spread) == (-0.25, 1.5)
    assert groups[0].answers[0] == SampledAnswer("best", 2.0, 2, "stop", 3)


def test_an_answer_without_a_score_stands_last(run: RunView) -> None:
    _, groups = read_groups(sampling_stage(run, "rl"), 12)
    assert math.isnan(groups[-1].answers[0].score)
    assert groups[-1].answers[0].version == -1
    write(Path(run.url), "rl", 13, [row(0, "none", None), row(0, "some", 1.0)])
    _, later = read_groups(sampling_stage(run, "rl"), 13)
    assert [answer.text for answer in later[0].answers] == ["some", "none"]


def test_a_step_that_is_not_there_is_refused_with_those_that_are(run: RunView) -> None:
    stage = sampling_stage(run, None)
    assert steps_of(stage) == [1, 12]
    with pytest.raises(UserError, match="--step 2: stage rl has answers of the steps 1 to 12"):
        read_groups(stage, 2)


def test_a_stage_is_asked_for_where_several_have_sampled(run: RunView) -> None:
    with pytest.raises(UserError, match="--stage: no stage 'sft' has sampled; allowed: rl"):
        sampling_stage(run, "sft")
    write(Path(run.url), "more", 1, [row(0, "a", 1.0)])
    with pytest.raises(UserError, match="name one of its stages by --stage; allowed: rl, more"):
        sampling_stage(run, None)


def test_a_run_without_answers_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="no stage has sampled yet"):
        sampling_stage(read_run(str(tmp_path)), None)


def test_a_group_is_plain_data(run: RunView) -> None:
    _, groups = read_groups(sampling_stage(run, "rl"), 1)
    answer = {"text": "early", "score": 0.0, "tokens": 2, "finish_reason": "stop", "version": 3}
    assert json.loads(json.dumps(groups[0].as_dict())) == {"prompt": "prompt 0", "mean": 0.0, "answers": [answer]}


OF_TWO = [(0, "wrong", 0.0), (1, "right", 1.0)]


def answered(run: RunView, label: str, rows: list[dict[str, Any]]) -> None:
    folder = Path(run.url) / "stages" / "rl" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_held_out_answers_come_best_first_by_set_and_evaluation(run: RunView) -> None:
    told = {"tokens": 4, "finish_reason": "length", "version": 12}
    rows = [{"group": g, "prompt": "same?", "response": said, "reward": score} | told for g, said, score in OF_TWO]
    for label in ("before", "step-00000010", "after"):
        answered(run, f"{label}.sums", rows)
    answered(run, "before", [{"prompt": "old?", "response": "so", "reward": None, "judge": 0.5}])
    stage = sampling_stage(run, "rl")
    label, groups = read_heldout(stage, "sums", None)
    assert label == "after"
    assert [group.answers for group in groups] == [
        (SampledAnswer("right", 1.0, 4, "length", 12),),
        (SampledAnswer("wrong", 0.0, 4, "length", 12),),
    ], "two rows of the data with one prompt are two groups"
    assert [read_heldout(stage, "sums", step)[0] for step in (0, 10)] == ["before", "step-00000010"]
    label, [group] = read_heldout(stage, "heldout", None)
    assert (label, group.prompt, group.answers[0].version) == ("before", "old?", -1)
    with pytest.raises(UserError, match="--step 5: sums was answered before, step-00000010, after"):
        read_heldout(stage, "sums", 5)
    with pytest.raises(UserError, match=r"--heldout: stage rl has no answers of 'tales'; allowed: .*sums"):
        read_heldout(stage, "tales", None)


def test_an_evaluation_before_the_first_step_is_there_to_see(run: RunView) -> None:
    folder = Path(run.url) / "stages" / "more" / "samples"
    folder.mkdir(parents=True)
    (folder / "before.jsonl").write_text(json.dumps({"prompt": "so?", "response": "yes", "reward": 1.0}) + "\n")
    stage = sampling_stage(run, "more")
    assert read_heldout(stage, "heldout", None)[0] == "before"
    with pytest.raises(UserError, match="stage more took no step yet; `--heldout` shows its held-out answers"):
        read_groups(stage, None)
