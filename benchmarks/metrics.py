"""What the metrics cost the engine's thread per token, and a scrape the event loop.

    python benchmarks/metrics.py

Calls the observer as the engine does for a decode step: once a step, and once for each of its tokens. Prints the median
of nine runs in microseconds a token, and as a share of a step of 20 ms; then the time of a scrape.
"""

from __future__ import annotations

import statistics
import time

from server.backends.base import Limits, Sampling
from server.engine.request import Request, Task
from server.metrics import Metrics

TOKENS, RUNS, STEP_S = 40_000, 9, 0.02
LIMITS = Limits(slots=4, max_input_tokens=2047, max_total_tokens=2048, vocabulary=256, sampling=frozenset())


def seconds_per_step(slots: int) -> float:
    metrics, steps = Metrics(), max(TOKENS // slots, 100)
    batch = [Request(str(slot), Task("", (1,) * 100, 10**6, Sampling()), print) for slot in range(slots)]
    gaps = [STEP_S + 0.0001 * (step % 7) for step in range(steps)]
    begun = time.perf_counter()
    for gap in gaps:
        metrics.stepped("decode", gap, slots)
        for request in batch:
            metrics.token(request, gap)
        metrics.queued(3, slots)
        metrics.completed("decode", gap, 0.0001)
    return (time.perf_counter() - begun) / steps


def main() -> None:
    for slots in (1, 4, 64, 256):
        step_s = statistics.median(seconds_per_step(slots) for _ in range(RUNS))
        print(f"{slots:4} slots: {step_s / slots * 1e6:6.2f} us/token, {step_s / STEP_S:.3%} of a step of 20 ms")
    metrics = Metrics()
    metrics.loaded(LIMITS)
    scrapes = []
    for _ in range(50):
        begun = time.perf_counter()
        rendered = metrics.render()
        scrapes.append(time.perf_counter() - begun)
    print(f"a scrape: {statistics.median(scrapes) * 1e3:.2f} ms, {len(rendered):,} bytes")


if __name__ == "__main__":
    main()
