"""Figures of rows with 95 % intervals, and differences of two models on the same rows.

A figure is a function of the rows' means, so its error follows from what each row adds to it (the delta method; for F1
the jackknife). Two models' errors on the same rows are subtracted row by row before they are squared: what is hard for
both cancels (paired differences; Miller 2024, "Adding error bars to evals", arXiv 2411.00640). Shares of right answers
have intervals that hold for few rows and near 0 and 1: Wilson's (1927), and for differences that of Agresti and Min
(2005, "Simple improved confidence intervals for comparing matched proportions").
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Standard deviations that 95 % of a normal distribution lie within."""

GROUPS = 500
"""Groups of rows that a jackknife leaves out in turn, at most: its cost grows with rows, not with their square."""

Numbers = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval; no ends where there is but one row."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Statistic:
    """A figure, and what each row adds to its error."""

    value: float
    influence: Numbers
    """[n]; sums to zero, and the figure's variance is n / (n - 1) times the sum of its squares."""
    hits: Numbers | None = None
    """[n] of 0 and 1, where the figure is their mean."""

    def interval(self) -> Interval:
        """The figure's interval."""
        return _around(self.value, self.influence) if self.hits is None else _wilson(self.hits)

    def less(self, other: "Statistic") -> Interval:
        """This figure less another model's, of the same rows."""
        if self.hits is not None and other.hits is not None:
            return _matched(self.hits, other.hits)
        return _around(self.value - other.value, self.influence - other.influence)


def mean(values: Sequence[float]) -> Statistic:
    """The mean of a number of each row."""
    found = np.asarray(values, np.float64)
    hits = found if np.isin(found, (0.0, 1.0)).all() else None
    return Statistic(float(found.mean()), (found - found.mean()) / len(found), hits)


def pass_at(k: int, right: int, answers: int) -> float:
    """Chance that at least one of `k` answers to a prompt is right, as so many of its `answers` tell without bias.

    1 - C(answers - right, k) / C(answers, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), of `k` up to `answers`.
    """
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def mean_of_groups(groups: Mapping[Any, Sequence[float]]) -> Statistic:
    """The mean over all numbers, with the error of their groups: answers to one prompt are no rows of their own."""
    sizes, totals = [len(own) for own in groups.values()], [math.fsum(own) for own in groups.values()]
    if len(set(sizes)) == 1:
        return mean([total / sizes[0] for total in totals])
    return ratio(totals, sizes)


def ratio(totals: Sequence[float], weights: Sequence[float]) -> Statistic:
    """The sum of `totals` over the sum of `weights`, such as nats over tokens; some weight is above 0."""
    top, bottom = np.asarray(totals, np.float64), np.asarray(weights, np.float64)
    value = top.sum() / bottom.sum()
    return Statistic(float(value), (top - value * bottom) / bottom.sum())


def exponential(estimate: Statistic) -> Statistic:
    """e to the power of a figure: perplexity of a loss."""
    value = math.exp(min(estimate.value, 700.0))
    return Statistic(value, value * estimate.influence)


def jackknife(values: Sequence[T], figure: Callable[[list[T]], float]) -> Statistic:
    """Any figure of rows, with the jackknife's error: each row is left out once.

    Of more than `GROUPS` rows, every `GROUPS`-th is left out with it, and the first of them stands for all.
    """
    rows, count = list(values), min(len(values), GROUPS)
    influence = np.zeros(len(rows))
    if count > 1:
        left = ([row for place, row in enumerate(rows) if place % count != group] for group in range(count))
        without = np.array([figure(others) for others in left], np.float64)
        influence[:count] = (without.mean() - without) * (count - 1) / count
    return Statistic(float(figure(rows)), influence)


def macro_f1(truth: Sequence[int], predicted: Sequence[int], classes: int) -> Statistic:
    """The mean over classes of F1 = 2 hits / (named + there); a class that is neither named nor there has 0.

    Its error is the jackknife's: each row is left out once.
    """
    true, named = np.asarray(truth), np.asarray(predicted)
    hits = np.array([((true == label) & (named == label)).sum() for label in range(classes)], np.float64)
    sizes = np.array([(true == label).sum() + (named == label).sum() for label in range(classes)], np.float64)
    one, rows = np.eye(classes), len(true)
    without = _f1(hits - one[true] * (true == named)[:, None], sizes - one[true] - one[named])
    return Statistic(float(_f1(hits, sizes)), (without.mean() - without) * (rows - 1) / rows)


def _f1(hits: Numbers, sizes: Numbers) -> Numbers:
    """Macro F1 [...] of counts [..., classes]."""
    found: Numbers = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0).mean(axis=-1)
    return found


def _around(value: float, influence: Numbers) -> Interval:
    rows = len(influence)
    if rows < 2:
        return Interval(value, None, None)
    reach = Z * math.sqrt(rows / (rows - 1) * float((influence**2).sum()))
    return Interval(value, value - reach, value + reach)


def _wilson(hits: Numbers) -> Interval:
    rows, share = len(hits), float(hits.mean())
    centre = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    reach = Z / (1 + Z**2 / rows) * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach))


def _matched(first: Numbers, second: Numbers) -> Interval:
    """Half a row is added to each of the four outcomes: the interval has a width even where no row differs."""
    gained, lost = float((first > second).sum()) + 0.5, float((first < second).sum()) + 0.5
    rows = len(first) + 2
    centre = (gained - lost) / rows
    reach = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / rows) / rows
    return Interval(float(first.mean() - second.mean()), max(-1.0, centre - reach), min(1.0, centre + reach))
