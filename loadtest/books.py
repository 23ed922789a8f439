"""What becomes of a finished sample: it is kept, and locust's table gets its rows. No stream is made to wait for it.

Locust's table gets its own row for every request (the whole exchange) and three beside it: TTFT, ITL and E2E. Those are
logged straight into its statistics' entries, not as requests, so `Aggregated` counts every request once.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.queue import JoinableQueue

from loadtest.breath import breathe
from loadtest.sample import Sample
from loadtest.stats import itl_s, latency_s, ttft_s
from loadtest.verdict import Verdict

COLLECT_EVERY = 4096  # samples: a request leaves no cycles behind, so there is next to nothing to find
MOST_BEHIND = 4096  # samples of which memory is kept; a sample of 128 tokens has some 20 kB


class NotComplete(Exception):
    """What locust's table and failure list show for a request whose verdict isn't `complete`."""


def log_all(entry: Any, milliseconds: Sequence[float]) -> None:
    """What `entry.log(each, 0)` would do for each of them, at a tenth of the cost: streams wait meanwhile.

    entry: a locust.stats.StatsEntry, whose annotations know whole milliseconds only.
    """
    if not milliseconds:
        return
    entry.log(milliseconds[0], 0)  # the first as locust would: it keeps a cache by the second
    rest = milliseconds[1:]
    entry.num_requests += len(rest)
    entry.num_reqs_per_sec[int(entry.last_request_timestamp)] += len(rest)
    entry.total_response_time += sum(rest)
    entry.min_response_time = min(entry.min_response_time, *milliseconds)
    entry.max_response_time = max(entry.max_response_time, *milliseconds)
    for digits, times in Counter([f"{each:.3g}" for each in rest]).items():  # as `three_digits`
        entry.response_times[float(digits)] += times


@contextmanager
def collected_in_the_books() -> Iterator[None]:
    """No garbage collection comes between two tokens: `Books` collects where no stream has anything to do. What is
    there before is left out for good.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Books:
    """Keeps finished samples: the file, and locust's table. Works where no stream has anything to do, so it delays
    none; only when `MOST_BEHIND` samples wait does it take its turn with them.
    """

    def __init__(
        self,
        environment: Any,
        route: str,
        keep: Callable[[Sample], None],
        fail: Callable[[Exception], None],
        count: Callable[[Sample], None],
    ) -> None:
        """environment: a locust.env.Environment. `fail` hears of a sample that can't be kept, `count` of all others."""
        self._environment = environment
        self._route, self._keep, self._fail, self._count = route, keep, fail, count
        self._queue: JoinableQueue[Sample] = JoinableQueue()
        self._greenlet = gevent.spawn(self._work)

    def enter(self, sample: Sample) -> None:
        self._queue.put(sample)

    def settle(self) -> None:
        """Wait until everything entered is kept: between two waves, so that none is released into this work."""
        self._queue.join()

    def close(self) -> None:
        self.settle()
        self._greenlet.kill()

    def _work(self) -> None:
        for kept, sample in enumerate(self._queue, 1):
            try:
                self._breathe()
                self._keep(sample)
                self._breathe()
                self._count(sample)
                self._breathe()
                self._show(sample)
            except OSError as error:
                self._fail(error)
            finally:
                self._queue.task_done()
            if kept % COLLECT_EVERY == 0:
                self._breathe()
                gc.collect(1)

    def _breathe(self) -> None:
        if self._queue.qsize() < MOST_BEHIND:
            breathe(None)
        else:
            gevent.sleep(0)

    def _show(self, sample: Sample) -> None:
        if sample.verdict is Verdict.CANCELLED:  # ended by the end of the test: no answer of the endpoint's
            return
        name = self._route
        begun_ns = sample.scheduled_ns if sample.started_ns is None else sample.started_ns
        self._environment.events.request.fire(
            request_type="POST",
            name=name,
            response_time=(sample.ended_ns - begun_ns) / 1e6,
            response_length=sample.got.new_tokens,
            exception=None if sample.complete else NotComplete(f"{sample.verdict}: {sample.detail}"),
            context={},
        )
        if not sample.complete:
            return
        entries = self._environment.stats.entries
        for row, value_s in (("TTFT", ttft_s(sample)), ("E2E", latency_s(sample))):
            if value_s is not None:
                entries[(name, row)].log(value_s * 1e3, 0)
        self._breathe()
        log_all(entries[(name, "ITL")], [gap_s * 1e3 for gap_s in itl_s(sample)])
