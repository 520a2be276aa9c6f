"""Progress reaches the driver from workers and is shown with rate and time left."""

import io
import sys
import time

import pytest
import ray

from triptych.observe.progress import Progress, ProgressDisplay, StageState, numbers, pace


def _state(step: int, total: int, seconds: float, first: int = 0) -> StageState:
    return StageState(step, total, {"loss": 1.23456}, 100.0 + seconds, first, 100.0)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (_state(1, 10, 0.0, first=1), ""),  # one report: no rate yet
        (_state(11, 111, 20.0, first=1), "2.0 s/step, 0:03:20 left"),
        (_state(40, 100, 5.0, first=30), "2.0 steps/s, 0:00:30 left"),  # resumed at 30: only its own steps count
        (_state(100, 100, 50.0, first=50), "1.0 s/step"),
        (_state(2, 4000, 2.0, first=1), "2.0 s/step, 2:13:16 left"),
    ],
)
def test_pace(state: StageState, text: str) -> None:
    assert pace(state) == text


def test_numbers_are_short() -> None:
    assert numbers(_state(1, 2, 1.0)) == "loss 1.235"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_workers_report_and_the_driver_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    @ray.remote(num_cpus=0)
    def work(progress: Progress, stage: str) -> None:
        for step in range(1, 4):
            progress.update(stage, step, 3, {"loss": 1 / step})
            time.sleep(0.2)

    with ProgressDisplay() as display:
        ray.get([work.remote(display.handle, stage) for stage in ("sft", "reward")])
        assert ray.available_resources()["CPU"] == 2  # the actor takes none
        states = display.handle.snapshot()
    assert {name: (state.step, state.first_step) for name, state in states.items()} == {"sft": (3, 1), "reward": (3, 1)}
    printed = capsys.readouterr()
    assert printed.out == ""
    for stage in ("sft", "reward"):
        last = [line for line in printed.err.splitlines() if line.startswith(f"{stage}: 3/3")]
        assert len(last) == 1
        assert "s/" in last[0]
        assert "loss 0.3333" in last[0]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    with ProgressDisplay() as display:
        for step in (5, 6):
            display.handle.update("ppo", step, 8, {"reward": 0.5})
            display.handle.snapshot()  # it has arrived
            time.sleep(1)
    text = screen.getvalue()
    assert "ppo" in text
    assert "6/8" in text
    assert "left" in text
    assert "reward 0.5" in text
