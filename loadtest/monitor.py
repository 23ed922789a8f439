"""Is the client itself late? A timer on the event loop that every stream shares, and the CPU the process burns.

A greenlet sleeps `PERIOD_S` again and again and notes by how much it woke too late. What delays it would have delayed
the reading of a token just as much. Lags are kept to three significant digits, so their number is bounded however long
a run is.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import gevent

PERIOD_S = 0.005


class Monitor:
    """Runs between `start` and `stop`; `stop` returns what a cell's row of run.json holds."""

    def __init__(self, all_lags_s: Counter[float] | None = None) -> None:
        """all_lags_s: counts every lag, of this monitor and of others."""
        self._lags_s: Counter[float] = Counter()
        self._all_lags_s = Counter() if all_lags_s is None else all_lags_s
        self._greenlet: gevent.Greenlet | None = None
        self._began = (0.0, 0.0)

    def start(self) -> None:
        self._lags_s = Counter()
        self._began = (time.monotonic(), time.process_time())
        self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> dict[str, Any]:
        if self._greenlet is not None:
            self._greenlet.kill()
        wall_s = time.monotonic() - self._began[0]
        cpu_s = time.process_time() - self._began[1]
        p50, p99 = (quantile(self._lags_s, q) for q in (0.5, 0.99))
        return {
            "hub_lag_p50_s": p50,
            "hub_lag_p99_s": p99,
            "hub_lag_max_s": max(self._lags_s, default=None),
            "hub_lag_samples": self._lags_s.total(),
            "cpu": cpu_s / wall_s if wall_s > 0 else 0.0,
        }

    def _watch(self) -> None:
        while True:
            due = time.monotonic() + PERIOD_S
            gevent.sleep(PERIOD_S)
            lag_s = three_digits(max(0.0, time.monotonic() - due))
            self._lags_s[lag_s] += 1
            self._all_lags_s[lag_s] += 1


def three_digits(value: float) -> float:
    """What histograms are kept by. Locust's own two digits would store a gap of 3.46 ms as 3."""
    return float(f"{value:.3g}")


def quantile(counted: Counter[float], q: float) -> float | None:
    """The least value that a share of `q` of all is no greater than; None of none."""
    rank = math.ceil(q * counted.total())
    running = itertools.accumulate(sorted(counted.items()), lambda sum_, each: (each[0], sum_[1] + each[1]))
    return next((value for value, so_far in running if so_far >= rank), None)
