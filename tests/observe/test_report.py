"""The report: what it shows, what it escapes, and that a real browser renders it alone."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import RunError, UserError
from triptych.observe.report import write_report
from triptych.observe.report.page import render, tiles
from triptych.observe.report.samples import means, pairs, question
from triptych.observe.report.series import MAX_POINTS, Chart, Series, charts
from triptych.observe.report.svg import bars, cells, draw, hover_data, number, ticks
from triptych.observe.runs import read_run

MakeRun = Callable[[str], Path]


def test_report_lies_in_the_run_and_shows_everything(make_run: MakeRun) -> None:
    run = make_run("reviews")
    path = write_report(str(run))
    assert path == f"{run}/report.html"
    page = Path(path).read_text()
    for title in (
        "Loss",
        "Accuracy",
        "Reward",
        "KL to the reference",
        "Response length",
        "Entropy",
        "Clip fraction",
        "Throughput",
        "Where a step&#39;s time goes",
        "Engine against learner",
    ):
        assert f"<b>{title}</b>" in page
    assert "reviews-ppo@1" in page
    assert "max_new_tokens" not in page
    assert "method: {name: lora, r: 16, alpha: 32}" in page
    assert "+1.51 (+1.56 SD)" in page
    assert "A wonderful, moving and beautifully acted story of jazz" in page


@pytest.mark.slow
def test_a_reward_model_is_shown_on_held_out_pairs(make_run: MakeRun) -> None:
    run = make_run("reviews")
    page = render(read_run(str(run)))
    assert page.count('<rect class="bar"') == 20
    for fact in (
        "Expected calibration error <b>0.0314</b>",
        "<td>0.50 to 0.75</td><td>40</td><td>62.0 %</td><td>70.0 %</td>",
        ">Length alone: always the longer answer</th><td>53.5 %</td>",
        ">Accuracy on the 90 pairs whose chosen answer is the shorter</th><td>85.6 %</td>",
        ">Correlation of score and answer length</th><td>-0.21</td>",
        ">Scores of training answers</th><td>0.52 ± 2.25</td>",
        ">Accuracy of each member</th><td>90.0 %, 88.0 %</td>",
    ):
        assert fact in page
    assert "0.75 to 0.95" not in page  # no pairs, no numbers


@pytest.mark.parametrize(
    "change",
    [{"calibration": {}}, {"gaps": {"edges": ["<b>", 1], "counts": [1]}}, {"gaps": {"edges": [1, 1], "counts": [2]}}],
)
def test_a_damaged_reward_report_is_named(make_run: MakeRun, change: dict[str, Any]) -> None:
    run = make_run("reviews")
    path = run / "stages" / "reward" / "evaluations" / "reward.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=r"evaluations/reward\.json is damaged"):
        render(read_run(str(run)))


def _with_ranks(run: Path, ranks: Any) -> Path:
    (run / "stages" / "sft" / "ranks.json").write_text(json.dumps({"policy": ranks}))
    return run


def test_ranks_of_adalora_are_shown(make_run: MakeRun) -> None:
    """Two layers of two modules: ranks 0, 3, 3 and 5."""
    modules = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.<b>up_proj")]
    run = _with_ranks(make_run("reviews"), dict(zip(modules, (3, 0, 3, 5), strict=True)))
    page = render(read_run(str(run)))
    assert "4 modules, mean rank 2.75, 1 without any" in page
    for bar in ("rank 0: 1", "rank 1: 0", "rank 3: 2", "rank 5: 1"):
        assert f"<title>{bar}</title>" in page
    for cell in ("q_proj 0: 3", "q_proj 1: 3", "&lt;b&gt;up_proj 0: 0", "&lt;b&gt;up_proj 1: 5"):
        assert f"<title>{cell}</title>" in page
    assert "<b>up_proj" not in page
    assert "Ranks at the end" not in render(read_run(str(make_run("without"))))


@pytest.mark.parametrize("ranks", [{}, {"a": "b"}, {"a": -1}, {"a": 10**9}, [3], None])
def test_damaged_ranks_are_named(make_run: MakeRun, ranks: Any) -> None:
    with pytest.raises(RunError, match=r"ranks\.json is damaged"):
        render(read_run(str(_with_ranks(make_run("reviews"), ranks))))


@pytest.mark.parametrize(("layers", "kinds"), [(1, 1), (30, 7), (126, 7)])
def test_cells_stay_inside_the_picture(layers: int, kinds: int) -> None:
    picture = cells("T", {f"kind {kind}": dict.fromkeys(range(layers), 4) for kind in range(kinds)})
    found = re.findall(r'x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"', picture)
    assert len(found) == layers * kinds
    for rect in found:
        x, y, width, height = map(float, rect)
        assert 0 <= x < x + width <= 380
        assert 0 <= y < y + height <= 190


def test_bars_stay_inside_the_picture() -> None:
    for edges, counts in (([-1.0, 0.0, 1.0], [3, 0]), ([-1e-9, 0, 1e-9], [0, 0]), ([-1e9, 0, 1e9], [1, 1e6])):
        for rect in re.findall(r'x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"', bars("T", edges, counts)):
            x, y, width, height = map(float, rect)
            assert 0 <= x < x + width <= 380
            assert 0 <= y <= y + height <= 190
            assert height >= 0


def test_text_of_the_run_cannot_become_markup(make_run: MakeRun) -> None:
    page = render(read_run(str(make_run("reviews"))))
    assert "&lt;script&gt;document.title" in page
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 1


def test_hostile_metric_names_and_recipe_are_escaped(make_run: MakeRun) -> None:
    run = make_run("reviews")
    hostile = "</script><b id='x'>\""
    segment = run / "stages" / "sft" / "metrics" / "step-00000099.jsonl"
    segment.write_text(json.dumps({"step": 99, hostile: 1.0, f"seconds_{hostile}": 2.0}) + "\n")
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + f"# {hostile}\n")
    page = render(read_run(str(run)))
    assert "<b id=" not in page
    assert page.count("</script>") == 1


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in {"src", "href", "action", "data", "poster", "srcset"}
            and not (value or "").startswith(("#", "data:"))
        ]


def test_nothing_is_loaded_from_elsewhere(make_run: MakeRun) -> None:
    page = render(read_run(str(make_run("reviews"))))
    links = _Links()
    links.feed(page)
    assert links.outside == []
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", page)


def test_unfinished_and_empty_stages_have_a_place(make_run: MakeRun) -> None:
    run = make_run("reviews")
    shutil.rmtree(run / "stages" / "ppo")
    (run / "stages" / "reward" / "summary.json").unlink()
    page = render(read_run(str(run)))
    assert "waiting" in page
    assert "begun" in page
    assert "No steps yet." in page
    assert "reward (not registered)" in page


def test_not_a_run_and_damaged_runs(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="not a run"):
        write_report(str(tmp_path / "nothing"))
    run = make_run("reviews")
    (run / "stages" / "sft" / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        write_report(str(run))
    assert not (run / "report.html").exists()


def test_runs_in_an_object_store(make_run: MakeRun) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(make_run("reviews")), "/runs/reviews", recursive=True)
    assert write_report("memory://runs/reviews") == "memory://runs/reviews/report.html"
    assert b"reviews-ppo@1" in memory.cat_file("/runs/reviews/report.html")


def test_tiles_compare_with_before(make_run: MakeRun) -> None:
    stages = {stage.name: stage for stage in read_run(str(make_run("reviews"))).stages}
    found = {tile.label: tile for tile in tiles(stages["ppo"])}
    assert found["Independent judge"].before == "0.12"
    assert found["Independent judge"].change == "+0.54"
    assert found["KL, nats a response"].before is None
    assert tiles(stages["reward"])[0].label == "Held-out accuracy"


def test_samples_are_paired_by_prompt() -> None:
    before = [{"prompt": p, "response": f"{p}{i}", "reward": i} for p in "ab" for i in range(2)]
    after = [{"prompt": p, "response": p.upper(), "reward": 3, "judge": 0.5} for p in "bc"]
    found, prompts = pairs({"before": before, "after": after})
    assert prompts == 3
    assert [(p.prompt, p.before and p.before["response"], p.after and p.after["response"]) for p in found] == [
        ("a", "a0", None),
        ("b", "b0", "B"),
        ("c", None, "C"),
    ]
    assert means(before) == {"reward": 0.5}
    assert means(after) == {"reward": 3, "judge": 0.5}


def test_question_is_the_last_user_turn() -> None:
    assert question("system\nBe kind.\nuser\nFirst?\nassistant\nYes.\nuser\nAnd\nthen?\nassistant") == "And\nthen?"
    assert question("user\nHi\nassistant\n") == "Hi"
    assert question(" Once upon a time") == "Once upon a time"


def test_charts_skip_what_is_no_number_and_keep_what_is_unknown() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "mystery": 1.0, "note": "x", "flag": True},
        {"step": 2, "loss": math.nan, "mystery": None},
        {"step": 3, "loss": 1.0, "heldout_loss": 1.5},
    ]
    first, later = charts(rows)
    assert [(s.name, s.points) for s in first[0].series] == [("train", [(1, 2.0), (3, 1.0)]), ("held out", [(3, 1.5)])]
    assert [chart.title for chart in later] == ["Mystery"]


def test_long_series_are_averaged() -> None:
    rows = [{"step": step, "loss": float(step)} for step in range(1, 10_001)]
    points = charts(rows)[0][0].series[0].points
    assert MAX_POINTS / 2 < len(points) <= MAX_POINTS
    assert points[-1][0] == 10_000
    assert points[0] == (25, 13)


@pytest.mark.slow
@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e7), count=st.integers(3, 8))
def test_ticks_are_within_and_about_as_many(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count)
    slack = span * 1e-6
    assert all(low - slack <= tick <= low + span + slack for tick in found)
    assert int(count / 1.6) <= len(found) <= 2 * count + 1  # a size is at most sqrt(2.5) from the ideal one


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.5, "1.5"), (0.123456, "0.1235"), (4e-4, "4e-4"), (12345, "12.35k"), (2.5e6, "2.5e6"), (-3, "-3")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("kind", ["line", "band", "stack"])
@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 5.0), (2, 5.0)], [(1, -1e-9), (7, 1e9)]])
def test_any_points_stay_inside_the_picture(kind: str, points: list[tuple[float, float]]) -> None:
    chart = Chart("T", "", [Series("a", points), Series("b", points)], kind)  # type: ignore[arg-type]
    for path in re.findall(r'points="([^"]+)"', draw(chart)):
        for pair in path.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 380
            assert 0 <= y <= 190
    assert [point[1:] for point in hover_data(chart)["points"]] == [
        [number(step), [number(value)] * 2] for step, value in points
    ]


@pytest.mark.slow
def test_chromium_renders_it_alone(make_run: MakeRun, tmp_path: Path) -> None:
    """Scripts run, nothing is logged to the console, nothing is requested, the run's text stays text."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    path = Path(write_report(str(make_run("reviews"))))
    # A probe of ours moves the pointer over a chart, so that the script must work as well.
    probe = """<script>
      const svg = document.querySelector("figure svg"), box = svg.getBoundingClientRect();
      const at = { clientX: box.left + box.width / 2, clientY: box.top + 50 };
      svg.dispatchEvent(new PointerEvent("pointermove", at));
      document.documentElement.dataset.probe = document.querySelector("figure .tip").innerText.replaceAll("\\n", "|");
      document.documentElement.dataset.requests = performance.getEntriesByType("resource").length;
    </script>"""
    probed = path.with_name("probed.html")
    probed.write_text(path.read_text().replace("</body>", probe + "</body>"))
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert "<title>reviews · Triptych</title>" in done.stdout
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root is not None
    assert 'data-requests="0"' in root[0]
    assert re.search(r'data-probe="step \d+\|train [\d.]+', root[0])


def test_answers_of_every_held_out_set_are_shown(make_run: MakeRun) -> None:
    run = make_run("reviews")
    rows = [{"group": 0, "prompt": "user\n6 * 7?\nassistant", "response": "forty-two", "reward": 1.0, "watch": 0.25}]
    for label in ("before", "after"):
        (run / "stages" / "ppo" / "samples" / f"{label}.sums.jsonl").write_text(json.dumps(rows[0]) + "\n")
    page = render(read_run(str(run)))
    assert "Answers to held-out prompts: sums" in page
    assert "watch <b>0.25</b>" in page
    assert page.count("Answers to held-out prompts") == 2


def test_held_out_sets_stand_side_by_side_in_a_chart() -> None:
    row = {"heldout_reward": 1.0, "heldout_sums_reward": 0.5, "heldout_sums_pass_at_4": 0.75, "heldout_sums_watch": 0.1}
    row |= {"heldout_rewards_chosen": 2.0, "heldout_reward_std": 3.0}
    shown, _ = charts([{"step": 1.0, **row}, {"step": 2.0, **row}])
    named = {chart.title: [series.name for series in chart.series] for chart in shown}
    assert named["Held-out reward"] == ["reward", "sums reward"]
    assert named["Held-out pass@k"] == ["sums pass at 4"]
    assert named["Held-out watch"] == ["sums watch"]
