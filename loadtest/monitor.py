"""Is the client itself late? A timer on the event loop that every stream shares, and the CPU the process burns.

A greenlet sleeps `PERIOD_S` again and again and notes by how much it woke too late. What delays it would have delayed
the reading of a token just as much.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import numpy as np

PERIOD_S = 0.005


class Monitor:
    """Runs between `start` and `stop`; `stop` returns what a cell's row of run.json holds."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._greenlet: gevent.Greenlet | None = None
        self._began = (0.0, 0.0)

    def start(self) -> None:
        self._lags_s = []
        self._began = (time.monotonic(), time.process_time())
        self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> dict[str, Any]:
        if self._greenlet is not None:
            self._greenlet.kill()
        wall_s = time.monotonic() - self._began[0]
        cpu_s = time.process_time() - self._began[1]
        lags = np.array(self._lags_s)
        p50, p99 = (None, None) if not lags.size else (float(q) for q in np.quantile(lags, (0.5, 0.99)))
        return {
            "hub_lag_p50_s": p50,
            "hub_lag_p99_s": p99,
            "hub_lag_max_s": float(lags.max()) if lags.size else None,
            "hub_lag_samples": int(lags.size),
            "cpu": cpu_s / wall_s if wall_s > 0 else 0.0,
        }

    def _watch(self) -> None:
        while True:
            due = time.monotonic() + PERIOD_S
            gevent.sleep(PERIOD_S)
            self._lags_s.append(max(0.0, time.monotonic() - due))
