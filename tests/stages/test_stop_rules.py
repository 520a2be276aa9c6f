"""Stop rules on series of numbers: each fires where it says, and neither a step early nor for a restart."""

import json
import math
import time
from typing import Any

import pytest

from triptych.recipe.stopping import RlBudget, StopRules
from triptych.stages.rl.stopping import Stopping

NAN, INF = math.nan, math.inf
Row = dict[str, float]


def steps(name: str, values: list[float], **others: float) -> list[Row]:
    """Rows of steps 1, 2, ...; what a rule does not read is there as in a run."""
    return [{"reward": 0.0, "kl": 0.0, "tokens": 10.0, "seconds": 1.0, **others, name: value} for value in values]


def evaluations(rewards: list[float], judges: list[float] | None = None) -> list[Row]:
    """Rows that were evaluated, the first before step 1."""
    judged = judges or [0.0] * len(rewards)
    return [{"heldout_reward": r, "heldout_judge": j, "seconds": 1.0} for r, j in zip(rewards, judged, strict=True)]


def judged(rules: Stopping, rows: list[Row], first: int = 1) -> int | None:
    """The step at which a rule fires, if any; later rows are not taken, as in a run."""
    for step, row in enumerate(rows, first):
        rules.judge(step, row)
        if rules.stopped:
            return step
    return None


def restarted(rules: Stopping, config: StopRules, devices: float = 1.0) -> Stopping:
    again = Stopping(config, devices)
    again.load_state(json.loads(json.dumps(rules.state())))
    return again


CASES: dict[str, tuple[dict[str, Any], list[Row], int, int]] = {
    "kl": ({"kl": {"limit": 5.0, "patience": 3}}, steps("kl", [6, 6, 5, 5.1, 7, 6, 0]), 1, 6),
    "kl that is no number": ({"kl": {"limit": 5.0, "patience": 2}}, steps("kl", [1, NAN, INF]), 1, 3),
    # Averages of two steps: 1.5, 2.5, 2.5, 2.0, 2.5 at steps 2 to 6; the best is that of step 3.
    "plateau": ({"plateau": {"window": 2, "patience": 3}}, steps("reward", [1, 2, 3, 2, 2, 3, 9]), 1, 6),
    # 1.0, 1.2, 1.3: the last is the first to exceed 1.0 by more than 0.25; then nothing does.
    "plateau with min_delta": (
        {"plateau": {"window": 1, "patience": 3, "min_delta": 0.25}},
        steps("reward", [1.0, 1.2, 1.3, 1.5, 1.4, 1.55, 9.0]),
        1,
        6,
    ),
    "heldout": ({"heldout": {"patience": 2}}, evaluations([0.0, 1.0, 0.5, 1.5, 1.5, NAN, 9.0]), 0, 5),
    "hacking": (
        {"hacking": {"margin": 0.1, "patience": 2}},
        # Best judge 0.6 at 1, where the reward is 1.0. Fallen far enough, and with more reward: at 3, 5 and 6.
        evaluations([0.0, 1.0, 2.0, 3.0, 0.9, 4.0, 5.0, 6.0], [0.5, 0.6, 0.51, 0.4, 0.3, 0.3, 0.2, 0.1]),
        0,
        6,
    ),
    "heldout of another metric": (
        {"heldout": {"metric": "heldout_sums_pass_at_4", "patience": 2}},
        # The reward without a name rises all the while.
        [
            {"heldout_reward": float(step), "heldout_sums_pass_at_4": value, "seconds": 1.0}
            for step, value in enumerate([0.1, 0.3, 0.2, 0.4, 0.4, 0.39, 0.9])
        ],
        0,
        5,
    ),
    "tokens": ({"budget": {"sampled_tokens": 30}}, steps("kl", [0] * 5), 1, 3),
    "wall": ({"budget": {"wall_hours": 0.5}}, steps("seconds", [600, 1799.9, 1800, 2400]), 1, 3),
    "devices": ({"budget": {"device_hours": 2.0}}, steps("seconds", [600, 1799.9, 1800, 2400]), 1, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_fires_at_its_step_and_no_earlier(case: str) -> None:
    config, rows, first, fires = CASES[case]
    rules = Stopping(StopRules.model_validate(config), devices=4.0)
    assert judged(rules, rows, first) == fires
    assert rules.stopped is not None
    assert rules.stopped.rule == next(iter(config))
    assert rules.stopped.step == fires


@pytest.mark.parametrize("case", CASES)
def test_a_restart_at_any_step_decides_the_same(case: str) -> None:
    fields, rows, first, fires = CASES[case]
    config = StopRules.model_validate(fields)
    for cut in range(1, len(rows)):
        rules = Stopping(config, devices=4.0)
        if judged(rules, rows[:cut], first) is not None:
            ended = restarted(rules, config).stopped
            assert ended is not None
            assert rules.stopped is not None
            assert (ended.rule, ended.step, ended.why) == (rules.stopped.rule, fires, rules.stopped.why)
            break
        again = restarted(rules, config, devices=4.0)
        again.judge(first + cut - 1, rows[cut - 1])  # a step that is done again counts once
        assert judged(again, rows[cut:], first + cut) == fires
        assert again.best_step == _whole(config, rows, first).best_step


WATCHED = {"hacking": {"margin": 0.1, "patience": 2, "set": "sums"}}
FALLS = [(0.0, 0.5), (1.0, 0.6), (2.0, 0.51), (3.0, 0.4), (0.9, 0.3), (4.0, 0.3), (5.0, 0.2), (6.0, 0.1)]
"""Reward and watch of a set: best watch 0.6 at 1; fallen far enough, and with more reward, at 3, 5 and 6."""


def watched_rows() -> list[Row]:
    """Evaluations of the set; those of the prompts without a name are all as they should be."""
    fine = {"heldout_reward": 1.0, "heldout_watch": 1.0, "seconds": 1.0}
    return [fine | {"heldout_sums_reward": reward, "heldout_sums_watch": watch} for reward, watch in FALLS]


def test_hacking_is_told_by_any_watch_of_any_set_at_its_step_and_no_earlier() -> None:
    rules = Stopping(StopRules.model_validate(WATCHED), watched="watch")
    assert judged(rules, watched_rows(), 0) == 6
    assert rules.stopped is not None
    assert rules.stopped.why.startswith("the watch fell from 0.6 to 0.2 while the held-out reward rose from 1 to 5")
    assert rules.stopped.numbers == {
        "heldout_sums_watch": 0.2,
        "best_watch": 0.6,
        "heldout_sums_reward": 5.0,
        "reward_at_best_watch": 1.0,
        "evaluations": 2,
    }
    assert (rules.best_by, rules.best_step) == ("heldout_sums_reward", 2)  # after it the watch had fallen


def test_a_watch_decides_the_same_after_a_restart() -> None:
    config = StopRules.model_validate(WATCHED)
    for cut in range(1, 7):
        rules = Stopping(config, watched="watch")
        assert judged(rules, watched_rows()[:cut], 0) is None
        again = Stopping(config, watched="watch")
        again.load_state(json.loads(json.dumps(rules.state())))
        assert judged(again, watched_rows()[cut:], cut) == 6


def test_what_was_found_is_told_in_numbers_and_words() -> None:
    rules = Stopping(StopRules.model_validate({"kl": {"limit": 5.0, "patience": 2}}))
    judged(rules, steps("kl", [6.0, 7.25]))
    assert rules.stopped is not None
    assert rules.stopped.numbers == {"kl": 7.25, "limit": 5.0, "steps": 2}
    assert rules.stopped.why == "the KL was above 5 nats an answer for 2 steps in a row, and is 7.25"


def test_of_several_rules_the_one_that_explains_most_counts() -> None:
    config = {"budget": {"sampled_tokens": 20}, "kl": {"limit": 1.0, "patience": 2}}
    rules = Stopping(StopRules.model_validate(config))
    assert judged(rules, steps("kl", [2, 2])) == 2
    assert rules.stopped is not None
    assert rules.stopped.rule == "kl"


def test_no_rule_never_fires_and_keeps_the_last_weights() -> None:
    rules = Stopping()
    assert judged(rules, steps("kl", [1e9] * 50) + evaluations([1.0] * 5)) is None
    assert (rules.keeps_best, rules.best_step) == (False, None)


def test_rules_of_steps_alone_keep_the_last_weights() -> None:
    rules = Stopping(StopRules.model_validate({"kl": {"limit": 5.0}}))
    assert not rules.judge(0, evaluations([1.0])[0])
    assert (rules.keeps_best, rules.best_step) == (False, None)


def test_the_best_held_out_reward_is_kept() -> None:
    rules = Stopping(StopRules.model_validate({"heldout": {"patience": 5}}))
    rows = evaluations([1.0, 3.0, 2.0, NAN])
    assert [rules.judge(step, row) for step, row in enumerate(rows)] == [True, True, False, False]
    assert rules.best_step == 1


def test_weights_whose_judge_has_fallen_are_not_kept() -> None:
    rules = Stopping(StopRules.model_validate({"hacking": {"margin": 0.1, "patience": 3}}))
    rows = evaluations([0.0, 1.0, 2.0, 3.0], [0.5, 0.6, 0.55, 0.4])
    assert [rules.judge(step, row) for step, row in enumerate(rows)] == [True, True, True, False]
    assert rules.best_step == 2


def test_a_judge_that_falls_with_the_reward_is_no_hacking() -> None:
    rules = Stopping(StopRules.model_validate({"hacking": {"margin": 0.0, "patience": 1}}))
    assert judged(rules, evaluations([1.0, 0.9, 0.8, 1.0], [0.5, 0.4, 0.3, 0.2]), 0) is None


def test_a_step_that_learns_from_nothing_measures_no_kl_and_ends_no_count() -> None:
    rules = Stopping(StopRules.model_validate({"kl": {"limit": 5.0, "patience": 2}}))
    high, nothing = ({"reward": 1.0, "tokens": 1.0, "seconds": 1.0} | kl for kl in ({"kl": 6.0}, {}))
    for step, row in enumerate([high, nothing], 1):
        rules.judge(step, row)
    assert rules.stopped is None
    rules.judge(3, high)
    assert rules.stopped is not None


def test_time_of_earlier_starts_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Stopping()
    now[0] += 50
    state = first.state()
    now[0] = 7.0  # another process, whose clock began anew
    again = Stopping()
    again.load_state(state)
    now[0] += 5
    assert again.seconds == 55.0


def test_a_budget_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one of sampled_tokens, wall_hours, device_hours"):
        RlBudget()


def _whole(config: StopRules, rows: list[Row], first: int) -> Stopping:
    rules = Stopping(config, devices=4.0)
    judged(rules, rows, first)
    return rules
