"""The verdict on the client while it runs: the same limits as the report's, over all that the test has seen so far."""

from __future__ import annotations

from loadtest.live.histogram import Histogram
from loadtest.live.state import State
from loadtest.stats import printable
from loadtest.trust import verdict_on_client


def verdict(state: State) -> tuple[str, list[str]]:
    """Ok, suspect or saturated (see loadtest/trust.py), and why. The median TTFT, which the limit hangs on, is that of
    all requests so far; in a report it is that of the steady phase.
    """
    ttft = state.timed["ttft"]
    return verdict_on_client(
        [
            ("the requests' lag", _p99_or_second_largest(state.timed["start_lag"])),
            ("the event loop's lag", _p99_or_median(state.timed["loop_lag"])),
        ],
        ttft.quantiles([0.5])[0] if ttft.n else 0.0,
        state.cpu_s / state.elapsed_s if state.elapsed_s else None,
    )


def _p99_or_second_largest(lags: Histogram) -> float | None:
    """As loadtest.trust.stand_in_for_p99."""
    if not (n := lags.n):
        return None
    q = 0.99 if printable(n, 0.99) else (n - 2) / (n - 1) if n > 1 else 1.0
    return lags.quantiles([q])[0]


def _p99_or_median(lags: Histogram) -> float | None:
    """As loadtest.trust.loop_lag."""
    return next((lags.quantiles([q])[0] for q in (0.99, 0.5) if printable(lags.n, q)), None)
