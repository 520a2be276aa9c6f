"""The benchmark of what algorithms learn in equal time: its recipes, cells, table and plot, on made-up figures."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from triptych.recipe import Evaluation, Recipe, load_recipe

if TYPE_CHECKING:
    from learning.cells import Cell

ROOT = Path(__file__).parents[2]
ALGORITHMS = ("ppo", "grpo", "rloo", "reinforce_pp", "dpo", "rrhf")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "bench")


def cell(name: str, judge: float, **more: Any) -> "Cell":
    from learning.cells import Cell

    machine = {"cpu": "A CPU", "cores": 2}
    figures: dict[str, Any] = {
        "judge_error": 0.03,
        "score": 0.5,
        "distinct2": 0.8,
        "answers": 320,
        "machine": machine,
        "start": "abc",
    }
    return Cell(name, judge, **(figures | more))


def loaded(recipe: dict[str, Any], folder: Path) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return load_recipe(file)


@pytest.mark.parametrize(
    ("algorithm", "steps", "texts"),
    [("ppo", 9, 576), ("grpo", 16, 1024), ("dpo", 56, 896), ("rrhf", 58, 928)],
)
def test_steps_are_those_that_the_pace_has_room_for(algorithm: str, steps: int, texts: int) -> None:
    from learning.settings import steps_of, texts_of

    assert steps_of(algorithm) == steps
    assert texts_of(algorithm, steps) == texts
    assert steps_of(algorithm, minutes=0.01) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_begin_at_one_start_and_answer_alike(algorithm: str, tmp_path: Path) -> None:
    from learning.recipes import learning, start
    from learning.settings import steps_of

    begun, recipe = loaded(start(), tmp_path), loaded(learning(algorithm, 2), tmp_path)
    learned, compare, first = recipe.trained["learned"], recipe.stages["compare"], begun.stages["compare"]
    assert isinstance(compare, Evaluation)
    assert isinstance(first, Evaluation)
    registered = {one.ref for stage in recipe.stages.values() for one in stage.references()} - {"learned"}
    assert registered <= {"learning-start-sft@1", "learning-start-reward@1"}
    assert "learning-start-sft@1" in {one.ref for one in learned.references()}
    assert recipe.seed == 2
    assert learned.train.total_steps(640) == steps_of(algorithm)
    assert learned.train.optimizer.schedule == "constant"
    assert compare.rollout == first.rollout
    assert compare.sets["films"].data == first.sets["films"].data


def test_runs_of_other_lengths_have_other_names() -> None:
    from learning.recipes import learning, pacing

    recipes = [learning("reinforce_pp", 0), learning("reinforce_pp", 0, 2.5), pacing("reinforce_pp", 3)]
    names = [recipe["name"] for recipe in recipes]
    assert names == ["learning-reinforce-pp-0", "learning-reinforce-pp-0-2.5min", "learning-pace-reinforce-pp"]
    assert [recipe["stages"]["learned"]["train"]["steps"] for recipe in recipes] == [17, 7, 3]


def test_a_cell_is_what_its_run_recorded(tmp_path: Path) -> None:
    from learning.measure import measured

    films, learned = tmp_path / "stages" / "compare" / "artifact", tmp_path / "stages" / "learned"
    for folder in (films, learned / "metrics", learned / "rollouts"):
        folder.mkdir(parents=True)
    rows = [{"answer": ["great", "the film"], "score": 1.0}, {"answer": ["a film", "terrible"], "score": 0.0}]
    pq.write_table(pa.Table.from_pylist(rows), films / "films.parquet")
    parents = {"learning-start-sft@1": "0123456789abcdef", "learning-start-reward@1": "fedcba"}
    (learned / "state.json").write_text(json.dumps({"parents": parents}))
    for step, answers in enumerate([["bad", "bad"], ["good", "good"]], 1):
        parts = {"seconds_sample": 2.0, "seconds_update": 1.0, "seconds_checkpoint": 50.0}
        row = {"step": step, "reward": 0.1 * step, "kl": 0.5 * step, **parts}
        (learned / "metrics" / f"step-{step:08d}.jsonl").write_text(json.dumps(row) + "\n")
        pq.write_table(pa.table({"response": answers}), learned / "rollouts" / f"step-{step:08d}.parquet")

    found = measured("ppo-1", tmp_path, 6.0, code="c", machine={})
    assert (found.algorithm, found.steps, found.answers, found.start) == ("ppo", 2, 4, "0123456789ab")
    assert (found.score, found.distinct2) == (0.5, 1.0)
    assert found.judge == pytest.approx((0.6249 - 0.4767) / 4)
    assert found.judge_error == pytest.approx(0.2252, abs=1e-3)
    assert (found.seconds, found.ends) == (6.0, [3.0, 6.0])
    assert (found.rewards, found.kls) == ([0.1, 0.2], [0.5, 1.0])
    assert found.judges == pytest.approx([-0.5423, 0.4404])


def test_a_cell_that_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from learning import run
    from learning.cells import read, write

    ran: list[str] = []
    monkeypatch.setattr(run, "run", lambda recipe: ran.append(recipe["name"]))
    monkeypatch.setattr(run, "code_version", lambda: "c")
    monkeypatch.setattr(run, "measured", lambda name, folder, minutes, **origin: cell(name, 0.3))
    out = tmp_path / "results" / "cells.json"
    for name in ("ppo-0", "dpo-0", "ppo-0"):
        run.fill(name, {"name": name}, 6.0, out)
    assert ran == ["ppo-0", "dpo-0"]
    assert read(out) == {name: cell(name, 0.3) for name in ("ppo-0", "dpo-0")}
    write(out, {"start": cell("start", 0.1)})
    monkeypatch.setattr(run, "folder_of", lambda recipe: tmp_path / "none")
    run.fill("start", {"name": "learning-start"}, 6.0, out)
    assert ran[2:] == ["learning-start"], "other cells need what it registers"


def test_cells_of_other_minutes_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from learning import run
    from learning.cells import write

    out = tmp_path / "cells.json"
    write(out, {"ppo-0": cell("ppo-0", 0.3)})
    monkeypatch.setattr(sys, "argv", ["run", "--minutes", "12", "--out", str(out)])
    with pytest.raises(SystemExit) as refused:
        run.main()
    assert refused.value.code == 2
    assert run.file_of(6.0) != run.file_of(12.0)


def test_the_table_has_a_row_of_each_algorithm_that_was_measured() -> None:
    from learning.table import rows_of

    cells = [cell("start", 0.1), cell("dpo-0", 0.2, steps=39, seconds=300.0)]
    cells += [
        cell(f"ppo-{seed}", 0.2 + 0.1 * seed, steps=4, seconds=330.0 + seed, kls=[0.0, 2.0 + seed]) for seed in range(3)
    ]
    rows = rows_of({one.name: one for one in cells})
    assert rows == [
        ["SFT", "1", "0.100 ± 0.030", "–", "–", "0.50", "0.800", "–", "–", "–", "–"],
        ["PPO", "3", "0.300 ± 0.058", "0.100", "+0.200 ± 0.065", "0.50", "0.800", "3.00", "4", "256", "330 - 332"],
        ["DPO", "1", "0.200 ± 0.030", "–", "+0.100 ± 0.042", "0.50", "0.800", "–", "39", "624", "300 - 300"],
    ]


def test_seeds_that_agree_by_chance_are_no_surer_than_their_answers() -> None:
    from learning.table import error_of

    assert error_of([cell(f"ppo-{seed}", 0.3) for seed in range(3)]) == pytest.approx(0.03 / 3**0.5)


def test_the_plot_has_a_point_a_seed_and_a_line_an_algorithm_that_samples() -> None:
    from learning.plot import drawn, way

    ppo = [cell(f"ppo-{seed}", 0.2 + 0.1 * seed, judges=[0.1 * seed, 0.3, 0.4]) for seed in range(3)]
    cells = {one.name: one for one in [cell("start", 0.1), cell("dpo-0", 0.2), *ppo]}
    at, judged = zip(*way("ppo", ppo).points, strict=True)
    assert list(at) == pytest.approx([0.0, 0.635, 1.27])
    assert list(judged) == pytest.approx([0.1, 0.3, 0.4])
    image = ElementTree.fromstring(drawn(cells))
    assert len(list(image.iter(f"{SVG}circle"))) == 5
    assert len(list(image.iter(f"{SVG}polyline"))) == 1
    names = [node.text for node in image.iter(f"{SVG}text")]
    assert {"SFT", "PPO", "DPO"} < set(names)
    assert "GRPO" not in names


def test_a_command_that_fails_shows_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from command import triptych

    program = tmp_path / "triptych"
    program.write_text('#!/bin/sh\necho "no such $1"\nexit 2\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=r"(?s)triptych plan x: exit code 2\nno such plan"):
        triptych("plan", "x", log=tmp_path / "logs" / "plan.log")
