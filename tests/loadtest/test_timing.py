"""The clock is right: arrivals agree with the recorded sends within 2 ms at concurrency 4.

Method: a server of known schedule in its own process stamps every send with the system-wide monotonic clock. Error of
TTFT is (our TTFT) − (first send − receipt of the request); error of a gap is (our gap) − (gap between the sends). Of
each run the median absolute TTFT error and the 99th percentile of absolute gap errors are taken; of five runs, the
median. Tolerance 2 ms, on a quiet machine: the test is marked `timing` and not part of the default run.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from loadtest.stats import itl_s, ttft_s
from tests.loadtest.conftest import Truth

USERS, EACH, TOKENS = 4, 5, 50
TOLERANCE_S = 0.002


def errors(truth: Truth) -> tuple[float, float]:
    """(median absolute TTFT error, p99 of absolute gap errors) of one run, in seconds."""
    truth.clear()
    samples = truth.measure(new_tokens=TOKENS, users=USERS, each=EACH, first_s=0.1, gap_s=0.02, jitter=0.1)
    recorded = truth.sends()
    assert len(samples) == len(recorded) == USERS * EACH
    first, gaps = [], []
    for sample in samples:
        assert sample.complete
        record = recorded[sample.id]
        sends = [t for t, tokens in record["sends"] if tokens]
        assert len(sends) == TOKENS
        measured = ttft_s(sample)
        assert measured is not None
        first.append(abs(measured - (sends[0] - record["received_ns"]) / 1e9))
        gaps += [abs(ours - gap / 1e9) for ours, gap in zip(itl_s(sample), np.diff(sends), strict=True)]
    assert len(gaps) == USERS * EACH * (TOKENS - 1)
    return statistics.median(first), float(np.quantile(gaps, 0.99))


@pytest.mark.timing
def test_ttft_and_gaps_agree_with_the_recorded_sends(truth: Truth):
    runs = [errors(truth) for _ in range(5)]
    ttft_error = statistics.median(first for first, _ in runs)
    gap_error = statistics.median(gap for _, gap in runs)
    print(f"\nTTFT error {ttft_error * 1e3:.3f} ms, gap error p99 {gap_error * 1e3:.3f} ms (medians of 5 runs)")
    assert ttft_error < TOLERANCE_S
    assert gap_error < TOLERANCE_S
