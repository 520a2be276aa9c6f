"""What is said of a reward model, against hand-worked numbers."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.errors import RunError
from triptych.models.adapter import Normalization
from triptych.stages.supervised.reward_evaluation import (
    Pairs,
    answer_lengths,
    draw_pairs,
    measure_normalization,
    reward_report,
    shared_prompts,
)


def scores_of(*gaps: float) -> Tensor:
    """One member's scores [1, pairs, 2] with these gaps."""
    return torch.tensor([[[gap, 0.0] for gap in gaps]], dtype=torch.float64)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


LENGTHS = torch.tensor([[3, 5], [9, 4], [2, 2], [6, 1]])


def pairs_of(lengths: Tensor) -> Pairs:
    """Pairs whose answers have these lengths [pairs, 2], each after a prompt of its own, of two tokens."""
    chosen, rejected = ([[row, 7, *[9] * int(n)] for row, n in enumerate(side)] for side in lengths.T)
    return {"chosen": chosen, "rejected": rejected, "start": [2] * len(lengths)}


def report_of(scores: Tensor, lengths: Tensor, trained: Tensor) -> dict[str, Any]:
    return reward_report(scores, pairs_of(lengths), pairs_of(trained), Normalization(0.5, 2.0))


def test_accuracy_and_histogram() -> None:
    report = report_of(scores_of(2.0, -1.0, 0.0, 0.5), LENGTHS, LENGTHS)
    assert report["pairs"] == 4
    assert report["accuracy"] == 2.5 / 4
    edges, counts = report["gaps"]["edges"], report["gaps"]["counts"]
    assert (edges[0], edges[10], edges[20]) == (-2.0, 0.0, 2.0)
    assert sum(counts) == 4
    assert sum(counts[:10]) == 1  # out of order; a tie falls to the right
    assert counts[5] == 1  # -1 lies at an edge of its bin, from -1 to -0.8
    assert "members" not in report


def test_a_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    # Ten pairs at confidence 0.8, eight of them in order.
    right, wrong = [logit(0.8)] * 8, [-logit(0.8)] * 2
    lengths = LENGTHS[:1].expand(10, 2)
    calibration = report_of(scores_of(*right, *wrong), lengths, LENGTHS)["calibration"]
    assert calibration["ece"] == pytest.approx(0, abs=1e-12)
    filled = [b for b in calibration["bins"] if b["pairs"]]
    assert len(filled) == 1
    assert filled[0]["pairs"] == 10
    assert filled[0]["confidence"] == pytest.approx(0.8)
    assert filled[0]["accuracy"] == pytest.approx(0.8)
    # Confidence 0.975 and 0.6, half of either in order: 2/4 * 0.475 + 2/4 * 0.1.
    gaps = scores_of(logit(0.975), -logit(0.975), logit(0.6), -logit(0.6))
    assert report_of(gaps, LENGTHS, LENGTHS)["calibration"]["ece"] == pytest.approx(0.2875)


def test_certainty_falls_into_the_last_bin() -> None:
    bins = report_of(scores_of(1000.0, -1000.0), LENGTHS[:2], LENGTHS)["calibration"]["bins"]
    assert [b["pairs"] for b in bins] == [0] * 9 + [2]
    assert bins[9]["accuracy"] == 0.5


def test_length_probe() -> None:
    # The chosen answer is shorter, longer, as long, longer; in order are the first, the third and the fourth.
    probe = report_of(scores_of(1.0, -1.0, 3.0, 2.0), LENGTHS, LENGTHS)["length"]
    assert probe["chosen_shorter"] == {"pairs": 1, "accuracy": 1.0}
    assert probe["chosen_longer"] == {"pairs": 2, "accuracy": 0.5}
    assert probe["baseline"] == {"prefers": "longer", "accuracy": 2.5 / 4}
    # The training pairs decide which way length is read, not the held-out ones.
    probe = report_of(scores_of(1.0, -1.0, 3.0, 2.0), LENGTHS, LENGTHS.flip(1))["length"]
    assert probe["baseline"] == {"prefers": "shorter", "accuracy": 1.5 / 4}


def test_a_model_of_length_alone_is_told_by_the_probe() -> None:
    lengths = torch.tensor([[8, 3], [2, 5], [7, 1]])
    probe = report_of(2.0 * lengths.double()[None] - 1, lengths, lengths)["length"]
    assert probe["correlation"] == pytest.approx(1.0)
    assert (probe["chosen_shorter"]["accuracy"], probe["chosen_longer"]["accuracy"]) == (0, 1)
    assert probe["baseline"]["accuracy"] == pytest.approx(2 / 3)


def test_numbers_of_nothing_are_null() -> None:
    report = report_of(scores_of(0.0), torch.tensor([[4, 4]]), LENGTHS)
    assert report["length"]["correlation"] is None
    assert report["length"]["chosen_shorter"] == {"pairs": 0, "accuracy": None}
    assert report["accuracy"] == 0.5
    assert report["normalization"] == {"mean": 0.5, "std": 2.0}
    assert report["prompts"] == {"asked": 1, "trained_on": 1}
    json.dumps(report, allow_nan=False)


def test_members() -> None:
    scores = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[4.0, 0.0], [-3.0, 0.0]]], dtype=torch.float64)
    report = report_of(scores, LENGTHS[:2], LENGTHS)
    assert report["accuracy"] == 0.5  # mean gaps 3 and -1
    members = report["members"]
    assert members["accuracy"] == [1.0, 0.5]
    assert members["disagreement"] == pytest.approx((2 / math.sqrt(2) + 4 / math.sqrt(2)) / 2)
    assert members["split"] == 0.5


def test_normalization_is_of_the_mean_over_members() -> None:
    scores = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[3.0, 1.0], [7.0, 5.0]]], dtype=torch.float64)
    found = measure_normalization(scores)  # means 2, 2, 6, 6
    assert (found.mean, found.std) == (4.0, 2.0)
    assert measure_normalization(torch.ones(1, 3, 2)).std > 0


def test_pairs_are_drawn_by_the_seed_one_of_each_prompt_first() -> None:
    """Nine pairs a prompt, as of ranked answers: the first 8 of the file would be of one prompt."""

    def prompt_of(row: int) -> int:
        return row // 9

    drawn = draw_pairs(90, prompt_of, 8, seed=1)
    assert len({prompt_of(row) for row in drawn}) == 8
    assert drawn == draw_pairs(90, prompt_of, 8, seed=1) != draw_pairs(90, prompt_of, 8, seed=2)
    more = draw_pairs(90, prompt_of, 25, seed=1)
    assert len({prompt_of(row) for row in more[:10]}) == 10
    assert len(set(more)) == 25
    assert sorted(draw_pairs(5, prompt_of, 256, seed=0)) == [0, 1, 2, 3, 4]


def test_scores_that_are_no_numbers_normalise_nothing() -> None:
    scores = torch.tensor([[[1.0, 3.0], [math.nan, 7.0], [1.0, math.inf]]])
    with pytest.raises(RunError, match="scores of 2 of 3 training pairs are no finite numbers"):
        measure_normalization(scores)


def test_prompts_are_compared_by_their_tokens() -> None:
    train: Pairs = {"chosen": [[1, 2, 9], [3, 4, 9]], "rejected": [[1, 2, 8], [3, 4, 7, 7]], "start": [2, 2]}
    heldout: Pairs = {
        "chosen": [[3, 4, 5], [3, 4, 6], [1, 2, 3, 9]],
        "rejected": [[3, 4], [3, 4], [1, 2, 3]],
        "start": [2, 2, 3],
    }
    assert shared_prompts(train, heldout) == (1, 2)
    assert shared_prompts(heldout, heldout) == (2, 2)
    assert answer_lengths(train).tolist() == [[1, 1], [1, 2]]
