"""Intervals of figures, against values worked out by hand and by resampling."""

import itertools
import math

import numpy as np
import pytest

from triptych.stages.evaluation.statistics import (
    Z,
    exponential,
    jackknife,
    macro_f1,
    mean,
    mean_of_groups,
    pass_at,
    ratio,
)


def test_a_mean_has_the_error_of_the_textbook() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found = mean(values).interval()
    error = np.std(values, ddof=1) / 2
    assert found.value == 4.0
    assert found.low == pytest.approx(4 - Z * error)
    assert found.high == pytest.approx(4 + Z * error)


@pytest.mark.parametrize("answers", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_drawings_with_a_right_answer(answers: int) -> None:
    """Every set of k of the answers is as likely, and passes if one in it is right."""
    for right in range(answers + 1):
        for k in range(1, answers + 1):
            drawn = list(itertools.combinations([True] * right + [False] * (answers - right), k))
            assert pass_at(k, right, answers) == pytest.approx(sum(map(any, drawn)) / len(drawn), abs=1e-15)


def test_pass_at_k_holds_for_many_answers() -> None:
    assert pass_at(1, 3, 1000) == pytest.approx(0.003, abs=1e-15)
    assert pass_at(1000, 1, 5000) == pytest.approx(0.2, abs=1e-12)


def test_answers_to_one_prompt_are_no_rows_of_their_own() -> None:
    """Copies of a prompt's answers make no figure surer; groups of unequal size count by their answers."""
    once, thrice = (
        mean_of_groups({0: [1.0], 1: [4.0], 2: [9.0]}),
        mean_of_groups({0: [1.0] * 3, 1: [4.0] * 3, 2: [9.0] * 3}),
    )
    assert once.interval() == thrice.interval() == mean([1.0, 4.0, 9.0]).interval()
    unequal = mean_of_groups({0: [1.0, 2.0, 3.0], 1: [10.0]})
    assert unequal.value == 4.0
    assert unequal.interval() == ratio([6.0, 10.0], [3, 1]).interval()


def test_a_share_has_wilsons_interval() -> None:
    found = mean([1.0] * 9 + [0.0]).interval()
    assert (found.value, round(found.low or 0, 4), round(found.high or 0, 4)) == (0.9, 0.5958, 0.9821)
    sure = mean([1.0] * 10).interval()
    assert sure.value == 1
    assert sure.high == pytest.approx(1)
    assert sure.low == pytest.approx(10 / (10 + Z**2))


def test_a_difference_of_shares_counts_the_rows_that_differ() -> None:
    first, second = mean([1, 1, 1, 1, 1, 1, 0, 0, 0, 0]), mean([1, 1, 0, 0, 0, 0, 1, 0, 0, 0])
    found = first.less(second)
    # 4 rows gained, 1 lost, of 10; with half a row in each of the four cells: 4.5, 1.5, of 12.
    reach = Z * math.sqrt(6 - 9 / 12) / 12
    assert found.value == pytest.approx(0.3)
    assert found.low == pytest.approx(0.25 - reach)
    assert found.high == pytest.approx(0.25 + reach)
    same = first.less(first)
    assert same.value == 0
    assert (same.low or 0) < 0 < (same.high or 0), "ten equal rows prove no equality"


def test_a_loss_weighs_rows_by_their_tokens() -> None:
    found = ratio([10.0, 2.0, 6.0], [5, 2, 2])
    # residuals nats - 2 tokens: 0, -2, 2
    reach = Z * math.sqrt(3 / 2 * 8) / 9
    assert found.value == 2.0
    assert found.interval().high == pytest.approx(2 + reach)
    worse = exponential(found)
    assert worse.value == pytest.approx(math.exp(2))
    assert worse.interval().high == pytest.approx(math.exp(2) * (1 + reach))


def test_a_paired_difference_is_narrower_than_apart() -> None:
    hard = np.arange(1.0, 9.0)
    first, second = mean(list(hard)), mean(list(hard + [0.1, 0.2] * 4))
    found = second.less(first)
    assert found.value == pytest.approx(0.15)
    assert (found.low or 0) > 0, "every row is worse"
    apart = first.interval()
    assert (apart.high or 0) - apart.value > 1


def test_a_single_row_has_no_interval() -> None:
    assert mean([3.0]).interval().as_dict() == {"value": 3.0, "low": None, "high": None}


def test_macro_f1_and_its_error() -> None:
    truth, named = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    # class 0: 2 hits of 3 named, 3 there: 4/6; class 1: 2 of 3 named, 2 there: 4/5; class 2: never named: 0.
    assert macro_f1(truth, named, 3).value == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 400)
    said = np.where(rng.random(400) < 0.7, true, rng.integers(0, 3, 400))
    found = macro_f1(list(true), list(said), 3).interval()
    drawn = [macro_f1(list(true[at]), list(said[at]), 3).value for at in rng.integers(0, 400, (300, 400))]
    assert found.high is not None
    assert (found.high - found.value) / Z == pytest.approx(np.std(drawn), rel=0.15), "as by resampling"


def test_the_jackknife_has_the_error_of_a_mean_and_nearly_that_of_a_ratio() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    assert jackknife(values, np.mean).influence == pytest.approx(mean(values).influence)
    rng = np.random.default_rng(0)
    weights = rng.integers(5, 15, 200).astype(float)
    totals = weights * rng.normal(2.0, 0.5, 200)
    found = jackknife(list(zip(totals, weights, strict=True)), lambda rows: float(np.divide(*np.sum(rows, axis=0))))
    assert found.value == pytest.approx(ratio(list(totals), list(weights)).value)
    assert found.influence == pytest.approx(ratio(list(totals), list(weights)).influence, rel=0.05, abs=1e-5)
    many = list(rng.normal(2.0, 0.5, 5003))
    wide = jackknife(many, lambda rows: float(np.mean(rows))).interval()
    assert (wide.high or 0) - wide.value == pytest.approx(Z * np.std(many) / len(many) ** 0.5, rel=0.1)
    assert jackknife([3.0], np.mean).interval().as_dict() == {"value": 3.0, "low": None, "high": None}
