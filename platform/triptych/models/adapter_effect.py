"""The effect of an adapter on fixed token sequences: recorded where it was trained, and looked for in what answers.

An engine may run the base alone, an older version, another scaling or a damaged tensor, and its texts look well all the
same. Log-probabilities tell: let d = adapter - base be the learner's log-probabilities of some tokens with the adapter
less those without it, and s the same difference in the engine. The share of the effect that the engine shows,

    alpha = <s, d> / |d|^2   with the standard error   rms(s - alpha d) / |d|,

is 1 with the adapter and 0 without it. How far an engine's arithmetic alone may be off the learner's is no constant: it
is measured each time, on the base. No torch: a registry and an endpoint's client read this too.
"""

import hashlib
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from triptych.models.peft_files import ADAPTER_WEIGHTS

PROBES_FILE = "probes.json"
"""File of an adapter's folder that holds its `Probes`."""
SEQUENCES = 16
LENGTH = 16
"""Tokens of each sequence; the first of them gets no log-probability."""
CANDIDATES = 24
"""Sequences of which those that show most of the effect are kept."""
SEED = 20

CONFIDENCE = 3.0
"""Standard errors that a verdict needs."""
FLOOR = 2e-4
"""Least noise (rms, nats a token) that an engine is granted: in float32 its log-probabilities are off by 1e-5."""
ASSUMED_NOISE = 0.12
"""Noise that is granted where the engine does not answer as the base: bfloat16's on these sequences, as measured."""
NOISES = 1.5
"""Times the noise on the base that an answer with the adapter may be off (rms). Measured in bfloat16: 1.0 to 1.2 times
as much, with effects of 0.03 to 0.3 nats."""
BENT = 0.3
"""Part of a scaled effect that is not proportional to the scale. Measured: 0.02 to 0.16 of it at a scale of 0.5, 0.03
to 0.26 at 2, where the effect at 1 is 0.03 to 0.3 nats."""
SCALED = 0.2
"""Least distance of alpha from 1 that is called another scale."""
LARGEST_GAP = {"float32": 0.01, "bfloat16": 0.25, "float16": 0.03}
"""Largest mean |engine - learner| of a token, in nats, by precision. Measured on texts 7e-6, 0.045 and 0.006 (float16
rounds eight times finer than bfloat16), on probes 0.09 in bfloat16. The limit leaves room for deeper models."""

TokenLogprobs = Sequence[Sequence[float]]
"""[sequence][token]: log-probabilities at temperature 1, of all tokens that have one."""
Looks = Literal["right", "base", "other version", "scaled", "changed", "other base", "undecided"]


class UnusableError(Exception):
    """Log-probabilities that are missing, not finite, or of other tokens than were asked for."""


@dataclass(frozen=True)
class Probes:
    """Token sequences on which an adapter shows, and the learner's log-probabilities of their tokens but the first."""

    sequences: tuple[tuple[int, ...], ...]
    base: tuple[tuple[float, ...], ...]
    adapter: tuple[tuple[float, ...], ...]
    dtype: str
    """Precision of the learner's forward pass."""
    weights: str = ""
    """The sha256 of the file of the adapter's tensors; empty until they lie in one."""

    def record(self) -> dict[str, Any]:
        """The probes as plain JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


@dataclass(frozen=True)
class Fit:
    """Share of a known effect in another one."""

    share: float
    error: float
    """Standard error of `share`."""
    rest: float
    """Rms of what the share does not explain, in nats a token."""


@dataclass(frozen=True)
class EffectReport:
    """An engine's adapter compared with the learner's."""

    looks_like: Looks
    gap: float
    """Mean |engine - learner| with the adapter, in nats a token."""
    share: float
    """Share of the adapter's effect that the engine shows: 1 is right, 0 the base alone."""
    noise: float
    """Rms of engine - learner without the adapter, in nats a token."""
    effect: float
    """Rms of the adapter's effect in the learner, in nats a token."""
    version: str | None = None
    """The other version that the engine runs, as far as these numbers tell."""
    alike: tuple[str, ...] = ()
    """Versions that differ from this one by too little to tell which of them answers."""

    @property
    def sentence(self) -> str:
        """The finding in words, for whoever serves the adapter."""
        found = {
            "right": "it answers as it was trained",
            "base": "the base alone answers: the adapter is not in effect",
            "other version": f"{self.version} answers",
            "scaled": f"it answers at another scale, about {self.share:.2f} of the one that it was trained with",
            "changed": "another adapter answers, or this one with a changed tensor",
            "other base": "its base is another one, or is computed in a precision too low to tell",
            "undecided": "it changes too little to tell it from the base in the precision of what answers",
        }[self.looks_like]
        alike = f"; it may as well be {' or '.join(self.alike)}, which differ too little" if self.alike else ""
        return (
            f"{found} ({self.gap:.2g} nats a token off the learner; {self.share:.0%} of the adapter's effect of "
            f"{self.effect:.2g} nats; the base is off by {self.noise:.2g}){alike}"
        )


_PROBES = TypeAdapter(Probes)


def candidates(tokens: Sequence[int], special: Collection[int], longest: int) -> list[list[int]]:
    """Token sequences to choose probes from: always the same ones for a vocabulary.

    Args:
        tokens: token ids of the vocabulary.
        special: token ids that are left out: they steer a chat, or end it.
        longest: longest sequence that the model takes.
    """
    plain, left_out = sorted(tokens), set(special)
    plain = [token for token in plain if token not in left_out] or plain
    draw = random.Random(SEED)
    return [draw.choices(plain, k=min(LENGTH, longest)) for _ in range(CANDIDATES)]


def choose(asked: Sequence[Sequence[int]], base: TokenLogprobs, adapter: TokenLogprobs, dtype: str) -> Probes:
    """The `SEQUENCES` of those asked on which base and adapter differ most, in the order in which they were asked."""
    moved = [math.fsum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(adapter, base, strict=True)]
    kept = sorted(sorted(range(len(asked)), key=lambda i: -moved[i])[:SEQUENCES])
    return Probes(
        sequences=tuple(tuple(asked[i]) for i in kept),
        base=tuple(tuple(base[i]) for i in kept),
        adapter=tuple(tuple(adapter[i]) for i in kept),
        dtype=dtype,
    )


def write_probes(folder: Path, probes: Probes) -> None:
    """Write `PROBES_FILE` into an adapter's folder whose tensors are there."""
    probes = replace(probes, weights=weights_digest(folder))
    (folder / PROBES_FILE).write_text(json.dumps(probes.record()), encoding="utf-8")


def read_probes(content: bytes) -> Probes:
    """The probes in a `PROBES_FILE`.

    Raises:
        ValueError: they are malformed; the message names the field.
    """
    try:
        probes = _PROBES.validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc'])) or 'content'}: {fault['msg']}") from None
    for name, rows in (("base", probes.base), ("adapter", probes.adapter)):
        try:
            flat(rows, probes.sequences)
        except UnusableError as error:
            raise ValueError(f"{name}: its log-probabilities {error}") from None
    return probes


def weights_digest(folder: Path) -> str:
    """The sha256 of an adapter's tensors, by which probes name what they were computed with."""
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flat(logprobs: TokenLogprobs, sequences: Sequence[Sequence[int]] | None = None) -> list[float]:
    """All log-probabilities in a row.

    Args:
        logprobs: of all tokens of `sequences` but the first of each.
        sequences: None: of whatever tokens there are.

    Raises:
        UnusableError: there is none, one is not finite, or they are of other tokens.
    """
    values = [value for row in logprobs for value in row]
    if not values or not all(math.isfinite(value) for value in values):
        raise UnusableError("are empty or not finite")
    if sequences is not None and [len(row) for row in logprobs] != [len(row) - 1 for row in sequences]:
        raise UnusableError("are those of other tokens than were asked for")
    return values


def fit(seen: Sequence[float], wanted: Sequence[float]) -> Fit | None:
    """The share of the effect `wanted` in the effect `seen`; None where nothing is wanted."""
    size = math.fsum(w * w for w in wanted)
    if size == 0.0:
        return None
    share = math.fsum(s * w for s, w in zip(seen, wanted, strict=True)) / size
    rest = rms([s - share * w for s, w in zip(seen, wanted, strict=True)])
    return Fit(share, rest / math.sqrt(size), rest)


def judge(
    probes: Probes,
    adapter: TokenLogprobs,
    base: TokenLogprobs | None = None,
    others: Mapping[str, Probes] | None = None,
) -> EffectReport:
    """Compare what an engine answers to the probes with the learner's values.

    Args:
        probes: the values of the version that is to be there.
        adapter: the engine's, as the adapter.
        base: the engine's, as the base; None: it cannot be asked, and `ASSUMED_NOISE` is granted.
        others: the values of other versions, by name.

    Raises:
        UnusableError: the engine's numbers are no log-probabilities of these tokens.
    """
    learned, known = flat(probes.adapter), flat(probes.base)
    found = flat(adapter, probes.sequences)
    alone = known if base is None else flat(base, probes.sequences)
    noise = ASSUMED_NOISE if base is None else max(rms(_less(alone, known)), FLOOR)
    wanted, seen = _less(learned, known), _less(found, alone)
    off, off_base = _off(found, alone, learned, known), _off(found, alone, known, known)
    looks, share = _looks(seen, wanted, off, off_base, noise)
    if base is not None and mean_gap(alone, known) > LARGEST_GAP["bfloat16"]:
        looks = "other base"
    report = EffectReport(looks, mean_gap(found, learned), share, noise, rms(wanted))
    if looks in ("other base", "undecided", "base"):
        return report
    return _told_apart(report, probes, others or {}, adapter, probes.base if base is None else base)


def rms(values: Sequence[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(math.fsum(value * value for value in values) / len(values))


def mean_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference."""
    return math.fsum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _off(found: Sequence[float], alone: Sequence[float], learned: Sequence[float], known: Sequence[float]) -> float:
    """Rms by which an engine is off a learner's values; what is common to it with and without the adapter is left out.

    Both ways of taking the difference: rounding that the engine's two answers do not share counts twice in the second.
    """
    return min(rms(_less(found, learned)), rms(_less(_less(found, alone), _less(learned, known))))


def _looks(
    seen: Sequence[float], wanted: Sequence[float], off: float, off_base: float, noise: float
) -> tuple[Looks, float]:
    """The verdict on an engine's effect beside the one that is wanted, and the share of it that is there.

    `off`, `off_base`: rms by which the engine is off the learner with the adapter, and without.
    """
    found, effect, granted = fit(seen, wanted), rms(wanted), NOISES * noise
    if found is None or (doubt := CONFIDENCE * max(found.error, noise / (effect * math.sqrt(len(wanted))))) >= 0.5:
        return "undecided", 0.0 if found is None else found.share
    share, near = found.share, max(doubt, SCALED / 4)
    if off <= granted and abs(share - 1) <= near:
        return "right", share
    if off_base <= granted and abs(share) <= near:
        return "base", share
    if abs(share - 1) > SCALED + doubt and found.rest <= math.hypot(granted, BENT * abs(share) * effect):
        return "scaled", share
    return "changed", share


def _told_apart(
    report: EffectReport, probes: Probes, others: Mapping[str, Probes], adapter: TokenLogprobs, base: TokenLogprobs
) -> EffectReport:
    """The report with the other version that answers, or with those that these numbers do not tell from this one.

    As after a weight sync, by the share of the step from the other version to this one. Versions have most sequences in
    common: each keeps some of the same candidates.
    """
    for name, other in others.items():
        places = [(i, other.sequences.index(row)) for i, row in enumerate(probes.sequences) if row in other.sequences]
        if not places:
            continue
        at = [i for i, _ in places]
        found, alone, known, new = (_rows(rows, at) for rows in (adapter, base, probes.base, probes.adapter))
        old = _rows(other.adapter, [j for _, j in places])
        step = fit(_less(found, old), _less(new, old))
        if step is None:
            continue
        doubt = CONFIDENCE * max(step.error, report.noise / (rms(_less(new, old)) * math.sqrt(len(new))))
        if step.share + doubt < 0.5 and _off(found, alone, old, known) <= NOISES * report.noise:
            return replace(report, looks_like="other version", version=name)
        if doubt >= 0.5 and report.looks_like == "right":
            report = replace(report, alike=(*report.alike, name))
    return report


def _rows(logprobs: TokenLogprobs, at: Sequence[int]) -> list[float]:
    return [value for i in at for value in logprobs[i]]
