"""Rewards that are asked outside the learner: what they say, and what becomes of those that fail."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import reward_functions
from triptych.errors import UserError
from triptych.recipe.reward import (
    Calls,
    FormatReward,
    FunctionReward,
    Gsm8kReward,
    LengthReward,
    ReasoningGymReward,
)
from triptych.rewards.asking import Asking, BusyError, Failed, RefusedError
from triptych.rewards.base import Answer, Given, Scorer
from triptych.rewards.table import SCORERS

QUICK = Calls(retries=0, backoff_s=0.0, timeout_s=30.0)
HERE = "tests.support.reward_functions"


def answer(text: str, tokens: int = 3, **fields: Any) -> Answer:
    return Answer((1, 2), (7,) * tokens, text, fields, ({"role": "user", "content": "6 * 7?"},))


def scores(settings: Any, answers: Sequence[Answer]) -> list[Given]:
    async def ask() -> list[Given]:
        scorer: Scorer = SCORERS[settings.name](settings)
        return list(await scorer.score(answers, Asking(settings.calls)))

    return asyncio.run(ask())


def function(name: str, calls: Calls = QUICK, **more: Any) -> FunctionReward:
    return FunctionReward(function=f"{HERE}:{name}", calls=calls, **more)


# By rule


@pytest.mark.parametrize(
    ("text", "column", "score"),
    [
        ("6 * 7 = 42", "42", 1.0),
        ("#### 42\nI was asked for 3 steps.", "so 6 * 7 = 42\n#### 42", 1.0),  # the mark, not the last number
        ("#### 1,042.0", 1042, 1.0),
        ("It is 42 or 43.", "42", 0.0),
        ("#### 43 #### 42", ["41", "42"], 1.0),
        ("I do not know.", "42", 0.0),
        ("####", "42", 0.0),
        ("42 ####", "42", 0.0),
    ],
)
def test_gsm8k_compares_the_number_behind_the_mark_or_the_last(text: str, column: Any, score: float) -> None:
    assert scores(Gsm8kReward(calls=QUICK), [answer(text, answer=column)]) == [score]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "no column 'answer'"), ({"answer": "none"}, "has no number"), ({"answer": True}, "answer")],
)
def test_gsm8k_cannot_judge_without_a_right_number(fields: dict[str, Any], reason: str) -> None:
    right, wrong = scores(Gsm8kReward(calls=QUICK), [answer("42", answer=42), answer("42", **fields)])
    assert right == 1.0
    assert isinstance(wrong, Failed)
    assert reason in wrong.reason


SORTED: dict[str, Any] = {
    "question": "Sort 15, 1, 8 in descending order",
    "answer": "['15', '8', '1']",
    "metadata": {"source_dataset": "number_sorting", "direction": "descending"},
}
LEGS: dict[str, Any] = {"question": "2 dogs?", "answer": "8", "metadata": {"source_dataset": "leg_counting"}}


def test_a_task_of_reasoning_gym_scores_by_its_own_rule() -> None:
    """Lists of numbers are compared as numbers; a text that holds a count has a share, by characters."""
    texts = [("['15', '8', '1']", SORTED), ("<answer>['15.0','8','1']</answer>", SORTED), ("['1', '8', '15']", SORTED)]
    texts += [("8", LEGS), ("8.00", LEGS), ("8 legs", LEGS), ("<answer>9</answer>", LEGS)]
    answers = [answer(text, **row) for text, row in texts]
    assert scores(ReasoningGymReward(calls=QUICK), answers) == [1.0, 1.0, 0.0, 1.0, 0.25, pytest.approx(1 / 6), 0.0]
    assert scores(ReasoningGymReward(partial=False, calls=QUICK), answers) == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_reasoning_gym_cannot_judge_a_row_of_no_task() -> None:
    strange = {**LEGS, "metadata": {"source_dataset": "leg_count"}}
    right, unknown, bare = scores(
        ReasoningGymReward(calls=QUICK), [answer("8", **LEGS), answer("8", **strange), answer("8")]
    )
    assert right == 1.0
    assert isinstance(unknown, Failed)
    assert "no task 'leg_count' in reasoning-gym" in unknown.reason
    assert isinstance(bare, Failed)
    assert "no `question`, or no `metadata`" in bare.reason


def test_an_answer_is_run_by_no_rule_that_the_recipe_does_not_let() -> None:
    metadata = {"source_dataset": "spiral_matrix", "solution": [1]}
    row: dict[str, Any] = {"question": "?", "answer": "4", "metadata": metadata}
    text = "[__import__('tests.support.reward_functions').support.reward_functions.calls.append({})]"
    reward_functions.calls.clear()
    [found] = scores(ReasoningGymReward(calls=QUICK), [answer(text, **row)])
    assert isinstance(found, Failed)
    assert "the rule of spiral_matrix runs what the policy writes" in found.reason
    assert reward_functions.calls == []
    assert scores(ReasoningGymReward(run_answers=True, calls=QUICK), [answer(text, **row)]) == [0.0]
    assert reward_functions.calls == [{}], "the library runs it"


def test_reasoning_gym_that_is_not_installed_is_said_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"^name: reasoning-gym cannot be imported .*'triptych\[reasoning\]'$"):
        SCORERS["reasoning_gym"](ReasoningGymReward())


def test_a_format_has_to_match_the_whole_answer() -> None:
    settings = FormatReward(pattern=r"(?s)<think>.*</think>\d+", calls=QUICK)
    texts = ["<think>6\n7</think>42", "<think>6</think>42.", "so <think></think>42", ""]
    assert scores(settings, list(map(answer, texts))) == [1.0, 0.0, 0.0, 0.0]


def test_a_pattern_that_never_ends_is_given_up() -> None:
    settings = FormatReward(pattern=r"(a|a)+b", calls=Calls(timeout_s=0.2, retries=0))
    hangs, ends = scores(settings, [answer("a" * 60 + "c"), answer("aab")])
    assert isinstance(hangs, Failed)
    assert "within 0.2 s" in hangs.reason
    assert ends == 1.0


def test_an_overlong_answer_is_punished_by_equation_13() -> None:
    """L_max 20, L_cache 4: nothing up to 16 tokens, then a quarter a token, -1 from 20 on."""
    settings = LengthReward(limit=20, cache=4, calls=QUICK)
    answers = [answer("", tokens) for tokens in (1, 16, 17, 18, 20, 21, 40)]
    assert scores(settings, answers) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]


def test_a_target_length_is_punished_by_the_distance_on_either_side() -> None:
    settings = LengthReward(target=10, tolerance=8, calls=QUICK)
    answers = [answer("", tokens) for tokens in (10, 12, 6, 2, 1, 30)]
    assert scores(settings, answers) == [0.0, -0.25, -0.5, -1.0, -1.0, -1.0]


# Functions


def test_a_function_is_called_as_trl_calls_its_own() -> None:
    """Prompts, completions, their ids, and every column of the rows, None where a row lacks it."""
    reward_functions.calls.clear()
    answers = [answer("42", tokens=2, answer="42"), answer("four", tokens=1, level=3)]
    assert scores(function("remembering"), answers) == [2.0, 4.0]
    assert reward_functions.calls == [
        {
            "prompts": ["6 * 7?", "6 * 7?"],
            "completions": ["42", "four"],
            "completion_ids": [[7, 7], [7]],
            "answer": ["42", None],
            "level": [None, 3],
        }
    ]
    assert scores(function("overlap"), answers) == [1.0, 0.0]
    assert scores(function("few"), answers) == [1.0, 1.0]
    assert scores(function("later"), answers) == [0.5, 0.5]
    assert scores(function("spoken", conversational=True), answers) == [1.0, 0.0]


def test_a_function_gets_as_many_answers_as_the_recipe_says() -> None:
    reward_functions.calls.clear()
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    assert scores(function("remembering", per_call=2), list(map(answer, texts))) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert sorted(len(call["completions"]) for call in reward_functions.calls) == [1, 2, 2]


def test_what_raises_fails_alone_where_calls_have_one_answer_each() -> None:
    texts = ["good", "bad", "good"]
    found = scores(function("some_raise", per_call=1), list(map(answer, texts)))
    assert found == [1.0, Failed("KeyError: 'no such thing'"), 1.0]
    together = scores(function("some_raise"), list(map(answer, texts)))
    assert together == [Failed("KeyError: 'no such thing'")] * 3


def test_what_hangs_is_given_up_and_nobody_waits_for_it() -> None:
    calls = Calls(timeout_s=1.5, retries=1, backoff_s=0.0)
    reward_functions.released.clear()
    found = scores(function("some_hang", calls, per_call=1), list(map(answer, ["good", "bad"])))
    assert found == [1.0, Failed("no answer within 1.5 s")]
    assert sum(thread.name == "reward-work" for thread in threading.enumerate()) == 2, "both attempts are still at it"
    reward_functions.released.set()


def test_what_is_no_finite_number_is_a_failure_and_none_is_no_judgement() -> None:
    found = scores(function("some_are_none"), list(map(answer, ["nan", "inf", "none", "text", "true", "other"])))
    assert found[2:] == [None, Failed("'1.0' is no number, but str"), 1.0, 2.0]
    assert found[:2] == [Failed("nan is no finite number"), Failed("inf is no finite number")]


def test_a_function_that_would_end_the_process_fails() -> None:
    [found] = scores(function("leaves"), [answer("x")])
    assert isinstance(found, Failed)
    assert "SystemExit: 3" in found.reason


def test_a_call_with_too_few_scores_fails_whole_and_at_once() -> None:
    calls = Calls(retries=3, backoff_s=60.0)
    assert scores(function("too_few", calls), [answer("x")] * 3) == [Failed("it gave 2 scores for 3 answers")] * 3


def test_a_call_is_made_again_until_it_answers() -> None:
    reward_functions.attempts.clear()
    assert scores(function("third_time", Calls(retries=2, backoff_s=0.0)), [answer("x")]) == [1.0]
    assert len(reward_functions.attempts) == 3
    reward_functions.attempts.clear()
    assert scores(function("third_time", Calls(retries=1, backoff_s=0.0)), [answer("x")]) == [
        Failed("ConnectionError: busy")
    ]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("no_such_module_of_anyone:score", "function: no_such_module_of_anyone:score cannot be imported"),
        (f"{HERE}:absent", "cannot be imported"),
        (f"{HERE}:calls", "is no function, but list"),
    ],
)
def test_what_cannot_be_imported_is_refused(named: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SCORERS["function"](FunctionReward(function=named))


def test_a_coroutine_may_keep_a_client_from_call_to_call() -> None:
    settings = function("by_client", Calls(retries=0, timeout_s=10.0))
    assert [scores(settings, [answer("a"), answer("b")]) for _ in range(3)] == [[0.25, 0.25]] * 3


def test_a_coroutine_that_is_given_up_is_cancelled() -> None:
    reward_functions.CANCELLED.clear()
    [found] = scores(function("never", Calls(retries=0, timeout_s=0.2)), [answer("a")])
    assert found == Failed("no answer within 0.2 s")
    assert reward_functions.CANCELLED.wait(10.0)


@pytest.mark.parametrize(("name", "reason"), [("leaving", "SystemExit: 3"), ("giving_up", "CancelledError: ")])
def test_a_coroutine_that_ends_itself_is_a_failure_and_others_go_on(name: str, reason: str) -> None:
    assert scores(function(name), [answer("a")]) == [Failed(f"RuntimeError: it ended by {reason}")]
    assert scores(function("later"), [answer("a")]) == [0.5]


# The wrapper


def test_no_more_calls_run_at_once_than_the_recipe_allows() -> None:
    running = most = 0

    async def call() -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.01)
        running -= 1
        return 1

    async def ask() -> list[int | Failed]:
        asking = Asking(Calls(concurrency=3))
        return list(await asyncio.gather(*(asking(call) for _ in range(10))))

    assert asyncio.run(ask()) == [1] * 10
    assert most == 3


def test_each_wait_is_twice_the_last_and_a_server_may_ask_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def call() -> None:
        raise BusyError("429", 9.0) if len(waits) == 2 else ValueError("no")

    monkeypatch.setattr("triptych.rewards.asking.asyncio.sleep", sleep)
    found = asyncio.run(Asking(Calls(retries=3, backoff_s=1.0))(call))
    assert found == Failed("ValueError: no")
    assert 1.0 <= waits[0] <= 1.25
    assert 2.0 <= waits[1] <= 2.5
    assert waits[2] == 9.0


def test_a_refused_call_is_not_made_again() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        raise RefusedError("401")

    assert asyncio.run(Asking(Calls(retries=5, backoff_s=60.0))(call)) == Failed("401")
    assert made == 1
