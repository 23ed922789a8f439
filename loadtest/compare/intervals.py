"""The interval of a ratio of two sides, and what it takes to call it a change; pure functions of numbers.

A side is a list of observations that don't depend on one another: a figure of each run or, where only one run's own
spread is to be had, of each block of requests that waited for one another. What observations of a side have in common
is in the figure of each; what tells them apart is the spread that the interval is made of.

A ratio is A over B: 1.05 is A 5 % above B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ALPHA = (1 - CONFIDENCE) / 2  # of either end
LEAST = 5  # observations of a side, below which nothing is said of how they vary


@dataclass(frozen=True, slots=True)
class Ratio:
    """A over B. `bounds(α)`: with a chance of α each, the true ratio lies below the first or above the second."""

    value: float
    bounds: Callable[[float], tuple[float, float]]

    def p_above(self, limit: float) -> float:
        """The p-value of "the true ratio is at most `limit`": the least α whose interval lies above it."""
        return _least(lambda alpha: self.bounds(alpha)[0] > limit)

    def p_below(self, limit: float) -> float:
        """The p-value of "the true ratio is at least `limit`"."""
        return _least(lambda alpha: self.bounds(alpha)[1] < limit)


def _least(holds: Callable[[float], bool]) -> float:
    """The least α from which on `holds`, found by bisection of its logarithm; 1 where it doesn't at ½."""
    low, high = math.log(1e-12), math.log(0.5)
    if not holds(0.5):
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)


def ratio(a: Sequence[float], b: Sequence[float], in_order: bool = False) -> Ratio:
    """Of two geometric means: Welch's interval of the difference of the mean logarithms.

    a, b: positive figures, at least two of each. Infinite ones are requests that failed: where all of one side are and
    none of the other, the sides differ but for a chance of 1 in C(n, k), that of such an order by accident; where some
    are, nothing can be said. in_order: they follow one another in time, and neighbours may still be alike: the
    variances grow by (1 + r) / (1 − r), as an autoregression's do; r is the larger of the sides' correlations.
    Source: B. L. Welch, The generalization of 'Student's' problem, Biometrika 34 (1947).
    """
    failed = [sum(map(math.isinf, side)) for side in (a, b)]
    if any(failed):
        return _with_failures(failed[0] / len(a), failed[1] / len(b), 1 / math.comb(len(a) + len(b), len(a)))
    logs = [np.log(np.asarray(side, dtype=float)) for side in (a, b)]
    r = max(map(alike, logs)) if in_order else 0.0
    shares = [float(side.var(ddof=1)) / len(side) * (1 + r) / (1 - r) for side in logs]
    difference, error = float(logs[0].mean() - logs[1].mean()), math.sqrt(sum(shares))
    squares = sum(share**2 / (len(side) - 1) for share, side in zip(shares, logs, strict=True))
    freedom = sum(shares) ** 2 / squares if squares > 0 else 1.0

    def bounds(alpha: float) -> tuple[float, float]:
        from scipy.stats import t

        reach = float(t.isf(alpha, freedom)) * error if error > 0 else 0.0
        return math.exp(difference - reach), math.exp(difference + reach)

    return Ratio(math.exp(difference), bounds)


def alike(values: NDArray[np.float64]) -> float:
    """The correlation of neighbours, less its bias of −1/n: at least 0, since less would promise too much, and at most
    0.8, beyond which so few figures tell nothing.
    """
    rest = values - values.mean()
    squares = float((rest**2).sum())
    return min(max(0.0, float((rest[1:] * rest[:-1]).sum()) / squares + 1 / len(values)), 0.8) if squares > 0 else 0.0


def _with_failures(of_a: float, of_b: float, chance: float) -> Ratio:
    """of_a, of_b: the share of each side's figures that is infinite."""
    value = math.inf if (of_a, of_b) == (1, 0) else 0.0 if (of_a, of_b) == (0, 1) else math.nan
    return Ratio(value, lambda alpha: (0.0, math.inf) if math.isnan(value) or alpha < chance else (value, value))


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """What each p-value may be at most, so that the chance of any false alarm among them is `alpha` or less: α/m for
    the smallest, α/(m − 1) for the next, and so on; once one has failed, 0.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    allowed = [0.0] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        allowed[index] = alpha / (len(p_values) - rank)
    return allowed
