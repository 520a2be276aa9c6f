"""What `triptych run` prints of an evaluation."""

from typing import Any

import pytest

from triptych.cli.run import print_run

OWN = {"value": 0.75, "low": 0.4093, "high": 0.9285}
BESIDE = {"value": 0.875, "low": 0.5291, "high": 0.9776, "difference": {"value": 0.125, "low": -0.1906, "high": 0.3906}}


def test_figures_stand_beside_each_other_with_their_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    figures = {
        "accuracy": {"better": "higher", "models": {"base": OWN, "sft": BESIDE}},
        "wins": {"better": "higher", "models": {"sft": {"value": 0.5, "low": None, "high": None}}},
    }
    comparison = {"models": ["base", "sft"], "sets": {"sums": {"measure": "verifier", "rows": 8, "figures": figures}}}
    found: dict[str, Any] = {
        "sft": {"registered": "films-sft@1", "metrics": {"heldout_loss": 2.0}},
        "compare": {"registered": "films-compare@1", "metrics": {"sums.base.accuracy": 0.75}, "comparison": comparison},
    }
    print_run("films", found, as_json=False)
    shown = capsys.readouterr().out
    assert "heldout_loss 2" in shown
    assert "sums.base.accuracy" not in shown, "the table below has it"
    assert "compare: figures with 95 % intervals; differences from base" in shown
    assert [word in shown for word in ("accuracy ↑", "0.75 (0.409 to 0.928)", "0.875 (0.529 to 0.978)")] == [True] * 3
    assert "Δ +0.125 (-0.191 to +0.391)" in shown
    assert "0.5 " in next(line for line in shown.splitlines() if "wins ↑" in line)
