"""The loop's lag is told to three digits, by a number of values that a long run doesn't raise.

Method: quantiles against numpy's on drawn lags; a real loop that is kept busy for a time we know.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import gevent
import numpy as np
import pytest

from loadtest.monitor import Monitor, quantile, three_digits


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 5000])
def test_a_quantile_of_counted_lags_is_that_of_all_of_them_to_three_digits(n: int):
    draw = random.Random(n)
    lags_s = [draw.expovariate(1000) for _ in range(n)]
    counted = Counter(map(three_digits, lags_s))
    assert counted.total() == n
    for q in (0.5, 0.99, 1.0):
        truth = float(np.quantile(lags_s, q, method="inverted_cdf"))
        assert quantile(counted, q) == pytest.approx(truth, rel=0.0051)


def test_of_no_lags_there_is_no_quantile():
    assert quantile(Counter(), 0.5) is None


def test_however_many_lags_there_are_few_values_are_kept():
    draw = random.Random(3)
    assert len(Counter(three_digits(draw.uniform(0.0001, 0.1)) for _ in range(100_000))) <= 3 * 900 + 1


def test_a_loop_that_was_kept_busy_is_late_by_no_less():
    monitor = Monitor()
    monitor.start()
    gevent.sleep(0.02)
    busy_until_s = time.monotonic() + 0.1
    while time.monotonic() < busy_until_s:
        pass
    gevent.sleep(0.02)
    seen = monitor.stop()
    assert seen["hub_lag_samples"] >= 2
    assert seen["hub_lag_max_s"] >= 0.08
    assert 0 < seen["cpu"] <= 1.1
