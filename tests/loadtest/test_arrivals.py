"""Arrivals are what they are called: exact where constant, and of the demanded distribution where random.

Method: closed forms. A constant rate is compared in rational numbers; random gaps by Kolmogorov and Smirnov's statistic
against the distribution function (exponential, Erlang, and χ² of one degree for burstiness ½), by mean and variance
within 5 standard errors, and Poisson counts of windows by their index of dispersion. Seeds are fixed: a test that has
passed once passes always, and 0.1 % is the chance that a right implementation failed the first time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import Arrivals, ArrivalsError, Kind

N = 20_000
KS_LIMIT = 1.95  # of √n · D, exceeded with a probability of 0.1 %

rates = st.floats(1e-6, 1e6)
seeds = st.integers()


def offsets(arrivals: Arrivals, n: int) -> list[int]:
    return list(islice(arrivals.offsets_ns(), n))


def gaps_in_means(arrivals: Arrivals, n: int = N) -> np.ndarray:
    """Gaps as multiples of 1 / rate, the one before request 0 included."""
    instants = np.array([0, *offsets(arrivals, n)], dtype=np.int64)
    assert len(instants) == n + 1
    return np.diff(instants) / 1e9 * arrivals.rate_per_s


def distance(values: np.ndarray, cdf: Callable[[float], float]) -> float:
    """√n · sup |empirical − cdf|: Kolmogorov and Smirnov's statistic."""
    expected = np.array([cdf(value) for value in np.sort(values)])
    n = len(values)
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    return math.sqrt(n) * float(max(above.max(), below.max()))


def exponential(x: float) -> float:
    return 1 - math.exp(-x)


def erlang_4(x: float) -> float:
    """Shape 4, mean 1."""
    return 1 - math.exp(-4 * x) * sum((4 * x) ** k / math.factorial(k) for k in range(4))


def half(x: float) -> float:
    """Shape ½, mean 1: the square of a standard normal."""
    return math.erf(math.sqrt(x / 2))


@given(rates, st.integers(1, 200))
def test_request_i_of_a_constant_rate_is_due_at_i_over_the_rate_to_the_nanosecond(rate: float, n: int):
    exact = [math.floor(i * 10**9 / Fraction(repr(rate))) for i in range(n)]
    assert offsets(Arrivals("constant", rate), n) == exact


def test_a_constant_rate_does_not_drift_in_a_day():
    *_, last = islice(Arrivals("constant", 0.3).offsets_ns(), 25_921)
    assert last == 25_920 * 10 * 10**9 // 3 == 86_400 * 10**9, "25,920 requests at 0.3 a second take a day"


@pytest.mark.parametrize(
    ("arrivals", "cdf"),
    [
        (Arrivals("poisson", 7.0, seed=1), exponential),
        (Arrivals("gamma", 0.2, burstiness=1.0, seed=2), exponential),
        (Arrivals("gamma", 40.0, burstiness=4.0, seed=3), erlang_4),
        (Arrivals("gamma", 3.0, burstiness=0.5, seed=4), half),
    ],
    ids=lambda value: f"{value.kind}-{value.burstiness:g}" if isinstance(value, Arrivals) else value.__name__,
)
def test_gaps_have_the_distribution_that_was_asked_for(arrivals: Arrivals, cdf: Callable[[float], float]):
    assert distance(gaps_in_means(arrivals), cdf) < KS_LIMIT


def test_the_comparison_of_distributions_can_fail():
    poisson = gaps_in_means(Arrivals("poisson", 7.0, seed=1))
    assert distance(poisson, erlang_4) > 10 * KS_LIMIT
    assert distance(poisson * 1.05, exponential) > KS_LIMIT, "a rate that is 5 % off is seen"


@pytest.mark.parametrize("burstiness", [0.05, 0.25, 1.0, 9.0, 400.0])
def test_the_mean_gap_is_one_over_the_rate_and_its_variation_one_over_the_root_of_burstiness(burstiness: float):
    gaps = gaps_in_means(Arrivals("gamma", 5.0, burstiness, seed=11))
    variance = 1 / burstiness
    fourth = 3 * variance**2 + 6 * variance**3  # central moment of a gamma of mean 1
    assert abs(gaps.mean() - 1) < 5 * math.sqrt(variance / N)
    assert abs(gaps.var() - variance) < 5 * math.sqrt((fourth - variance**2) / N)


def test_counts_of_poisson_arrivals_in_windows_are_poisson():
    # 4,000 windows of 2.5 expected arrivals: (n − 1) · variance / mean is χ², so its root-mean-square error is √(2n).
    windows = 4_000
    instants = np.array(offsets(Arrivals("poisson", 2.5, seed=5), 3 * windows))
    assert instants[-1] > windows * 10**9
    counts = np.bincount(instants[instants < windows * 10**9] // 10**9, minlength=windows)
    assert abs(counts.mean() - 2.5) < 5 * math.sqrt(2.5 / windows)
    dispersion = (windows - 1) * counts.var(ddof=1) / counts.mean()
    assert abs(dispersion - (windows - 1)) < 5 * math.sqrt(2 * windows)


def test_poisson_is_a_burstiness_of_one():
    assert offsets(Arrivals("poisson", 3.0, seed=9), 100) == offsets(Arrivals("gamma", 3.0, 1.0, seed=9), 100)


@given(st.sampled_from(["constant", "poisson", "gamma"]), rates, seeds)
def test_instants_are_whole_repeat_and_never_fall(kind: Kind, rate: float, seed: int):
    arrivals = Arrivals(kind, rate, 0.3 if kind == "gamma" else 1.0, seed)
    instants = offsets(arrivals, 200)
    assert len(instants) == 200
    assert all(type(instant) is int for instant in instants)
    assert instants[0] >= 0
    assert all(after >= before for before, after in pairwise(instants))
    assert instants == offsets(arrivals, 200)


@given(st.integers(1, 2**64))
def test_another_seed_gives_other_instants(seed: int):
    schedules = [tuple(offsets(Arrivals("poisson", 1.0, seed=s), 20)) for s in (seed, -seed, seed + 1)]
    assert len(set(schedules)) == 3


@pytest.mark.parametrize(
    ("kind", "rate", "burstiness", "sentence"),
    [
        ("constant", 0.0, 1.0, "a rate of 0 requests a second can't be scheduled: choose one from 1e-06 to 1,000,000"),
        ("poisson", -2.0, 1.0, "a rate of -2 requests a second"),
        ("poisson", math.nan, 1.0, "a rate of nan requests a second"),
        ("poisson", math.inf, 1.0, "a rate of inf requests a second"),
        ("gamma", 1.0, 0.0, "a burstiness of 0 is outside 0.01 to 1000: choose one inside, or constant arrivals"),
        ("gamma", 1.0, math.nan, "a burstiness of nan is outside"),
        ("poisson", 1.0, 2.0, "poisson arrivals have no burstiness, 2 was asked for: choose gamma arrivals"),
        ("bursty", 1.0, 1.0, "there are no arrivals 'bursty': choose constant, poisson, gamma"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_with_a_remedy(kind: Kind, rate: float, burstiness: float, sentence: str):
    with pytest.raises(ArrivalsError) as refused:
        Arrivals(kind, rate, burstiness)
    assert str(refused.value).startswith(sentence)
