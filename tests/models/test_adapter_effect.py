"""The verdict on what answers as an adapter: from log-probabilities with the noise that engines' arithmetic has."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from triptych.models.adapter_effect import (
    CANDIDATES,
    LENGTH,
    SEQUENCES,
    EffectReport,
    Probes,
    UnusableError,
    candidates,
    choose,
    fit,
    judge,
    read_probes,
    write_probes,
)

Rows = list[list[float]]
ASKED = candidates(range(1000), [0, 1, 2], 512)
NOISE = {"float32": 1e-5, "bfloat16": 0.06}
"""Rms by which engines of these precisions are off the learner, in nats a token."""


def near(rows: Rows, size: float, seed: int) -> Rows:
    draw = random.Random(seed)
    return [[value + draw.gauss(0, size) for value in row] for row in rows]


def moved(rows: Rows, step: Rows, share: float) -> Rows:
    return [[v + share * s for v, s in zip(row, by, strict=True)] for row, by in zip(rows, step, strict=True)]


BASE = near([[-8.0] * (LENGTH - 1) for _ in ASKED], 2.0, 1)
STEP = near([[0.0] * (LENGTH - 1) for _ in ASKED], 0.3, 2)
NEWS = near([[0.0] * (LENGTH - 1) for _ in ASKED], 0.25, 3)
OLD = moved(BASE, STEP, 1.0)
NEW = moved(OLD, NEWS, 1.0)
PROBES = choose(ASKED, BASE, NEW, "float32")
BEFORE = choose(ASKED, BASE, OLD, "float32")


def answers(rows: Rows, noise: float, seed: int) -> Rows:
    """What an engine says of the probes whose log-probabilities among all candidates are `rows`."""
    places = [ASKED.index(list(sequence)) for sequence in PROBES.sequences]
    return near([rows[place] for place in places], noise, seed)


def found(rows: Rows, precision: str, seed: int = 10) -> EffectReport:
    noise = NOISE[precision]
    return judge(PROBES, answers(rows, noise, seed), answers(BASE, noise, seed + 1), {"reviews@1": BEFORE})


def effect(share: float) -> Rows:
    return moved(BASE, moved(STEP, NEWS, 1.0), share)


def damaged() -> Rows:
    """One tensor of many: part of the effect is gone, and something else is there."""
    return moved(moved(NEW, STEP, -0.3), near([[0.0] * (LENGTH - 1) for _ in ASKED], 0.3, 5), 1.0)


@pytest.mark.parametrize("precision", NOISE)
@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_each_case_is_told_from_the_others(precision: str, seed: int) -> None:
    assert found(NEW, precision, seed).looks_like == "right"
    assert found(BASE, precision, seed).looks_like == "base"
    older = found(OLD, precision, seed)
    assert (older.looks_like, older.version) == ("other version", "reviews@1")
    assert found(damaged(), precision, seed).looks_like == "changed"
    for scale in (0.5, 2.0, -1.0):
        scaled = found(effect(scale), precision, seed)
        assert (scaled.looks_like, round(scaled.share, 1)) == ("scaled", scale)


def test_a_report_says_how_far_off_the_answers_are() -> None:
    report = found(NEW, "bfloat16")
    assert report.gap == pytest.approx(0.048, abs=0.005)  # the mean of |gauss| is 0.8 of its rms
    assert report.noise == pytest.approx(0.06, abs=0.006)
    assert report.share == pytest.approx(1.0, abs=0.05)
    assert report.effect == pytest.approx(0.43, abs=0.05)
    assert "it answers as it was trained" in report.sentence
    assert "at another scale, about 0.50" in found(effect(0.5), "float32").sentence


def test_versions_too_alike_for_the_precision_are_named_rather_than_guessed() -> None:
    a_little = tuple(tuple(value + 0.002 for value in row) for row in PROBES.adapter)
    close = dataclasses.replace(PROBES, adapter=a_little)
    told = judge(PROBES, answers(NEW, 0.06, 1), answers(BASE, 0.06, 2), {"reviews@1": close})
    assert (told.looks_like, told.alike) == ("right", ("reviews@1",))
    assert "it may as well be reviews@1" in told.sentence
    sure = judge(PROBES, answers(NEW, 1e-5, 1), answers(BASE, 1e-5, 2), {"reviews@1": close})
    assert (sure.looks_like, sure.alike) == ("right", ())


def test_another_base_is_not_taken_for_a_damaged_adapter() -> None:
    other = near(BASE, 1.0, 6)
    assert judge(PROBES, answers(moved(other, STEP, 1.0), 0, 1), answers(other, 0, 1)).looks_like == "other base"


def test_an_adapter_that_changes_nothing_is_undecided() -> None:
    for size, precision in ((0.0, "float32"), (0.02, "bfloat16")):
        idle = choose(ASKED, BASE, moved(BASE, STEP, size), "float32")
        noise = NOISE[precision]
        alone = near([list(row) for row in idle.base], noise, 1)
        assert judge(idle, near([list(row) for row in idle.adapter], noise, 2), alone).looks_like == "undecided"


def test_where_the_base_cannot_be_asked_the_adapter_is_told_from_it_all_the_same() -> None:
    assert judge(PROBES, answers(NEW, 0.06, 1)).looks_like == "right"
    assert judge(PROBES, answers(BASE, 0.06, 1)).looks_like == "base"


def test_hand_worked_share() -> None:
    """Wanted (1, -1), seen (0.75, -0.25): the share is (0.75 + 0.25) / 2, the rest (0.25, 0.25)."""
    share = fit([0.75, -0.25], [1.0, -1.0])
    assert share is not None
    assert (share.share, share.rest, share.error) == pytest.approx((0.5, 0.25, 0.25 / 2**0.5))
    assert fit([1.0], [0.0]) is None


def test_candidates_are_always_the_same_plain_tokens_and_fit_the_model() -> None:
    assert candidates(list(reversed(range(1000))), [0, 1, 2], 512) == ASKED
    assert len(ASKED) == CANDIDATES
    assert {len(row) for row in ASKED} == {LENGTH}
    assert not {0, 1, 2} & {token for row in ASKED for token in row}
    assert {len(row) for row in candidates(range(1000), [], 8)} == {8}


def test_the_sequences_that_show_most_are_kept() -> None:
    adapter = [[value + (i in (3, 5)) for value in row] for i, row in enumerate(BASE)]
    probes = choose(ASKED, BASE, adapter, "float32")
    assert len(probes.sequences) == SEQUENCES
    assert {tuple(ASKED[3]), tuple(ASKED[5])} <= set(probes.sequences)


def test_probes_come_back_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    write_probes(tmp_path, PROBES)
    read = read_probes((tmp_path / "probes.json").read_bytes())
    assert dataclasses.replace(read, weights="") == PROBES
    assert len(read.weights) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": None}, "^adapter: "),
        ({"sequences": [[1, "x"]]}, r"^sequences\.0\.1: "),
        ({"base": [[0.5]]}, "^base: its log-probabilities are those of other tokens"),
        ({"adapter": []}, "^adapter: its log-probabilities are empty"),
    ],
)
def test_malformed_probes_name_their_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_probes(json.dumps(PROBES.record() | change).encode())


@pytest.mark.parametrize(
    ("rows", "message"), [([], "empty"), ([[float("nan")] * 15] * 16, "not finite"), ([[1.0]] * 16, "other tokens")]
)
def test_numbers_that_are_no_answer_give_no_verdict(rows: Rows, message: str) -> None:
    with pytest.raises(UnusableError, match=message):
        judge(PROBES, rows)


def test_a_record_is_plain_json() -> None:
    assert Probes(**json.loads(json.dumps(PROBES.record()))).dtype == "float32"
