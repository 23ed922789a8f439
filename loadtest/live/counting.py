"""Counts what becomes of requests in this process while they are under way, at next to no cost to a stream.

At a first token a number is put into a list; all else is done where finished samples are kept, and no stream waits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import numpy as np

from loadtest.live.histogram import Histogram
from loadtest.live.state import State
from loadtest.sample import Sample
from loadtest.stats import latency_s, tpot_s
from loadtest.transport.base import Clock, monotonic_ns
from loadtest.trust import StartLag

AT_ONCE = 64  # durations of a kind that are counted together: numpy's cost is by the call


class Live:
    """What one test does in this process. Is told of first tokens and of kept samples; gives a State."""

    def __init__(
        self, process: int = 0, clock: Clock = monotonic_ns, cpu_s: Callable[[], float] = time.process_time
    ) -> None:
        self.loop_lags_s: Counter[float] = Counter()  # a Monitor counts here
        self.users = 0
        self._clock, self._cpu_s = clock, cpu_s
        self._began_ns, self._began_cpu_s = clock(), cpu_s()
        self._start_lag = StartLag()
        self._state = State(uuid4().hex, process)
        self._waiting: dict[str, list[float]] = {name: [] for name in ("ttft", "e2e", "tpot", "start_lag")}
        self._first_tokens_ns: list[int] = []
        self._ended = False

    def first_token(self, ttft_ns: int) -> None:
        """first token event − started. A stream waits for this."""
        self._first_tokens_ns.append(ttft_ns)

    def kept(self, sample: Sample) -> None:
        """ITL, TPOT and E2E are those of complete requests; tokens those of every request; lags those of the steady
        phase, as in a report: a user's first request waits for all that a test sets up.
        """
        state, waiting = self._state, self._waiting
        state.requests[sample.verdict] += 1
        state.tokens["input"] += sample.got.input_tokens or 0
        state.tokens["output"] += sample.got.new_tokens
        due_s, ended_s = ((t_ns - self._began_ns) / 1e9 for t_ns in (sample.scheduled_ns, sample.ended_ns))
        state.first_s = due_s if state.first_s is None else min(state.first_s, due_s)
        state.last_s = max(state.last_s, ended_s)
        start_lag_s = self._start_lag.of(sample)
        values = {"start_lag": start_lag_s if sample.phase == "steady" else None}
        if sample.complete:
            values |= {"e2e": latency_s(sample), "tpot": tpot_s(sample)}
            arrivals_ns = np.fromiter((t_ns for t_ns, _, _ in sample.events), np.int64, len(sample.events))
            state.timed["itl"].observe(np.diff(arrivals_ns) / 1e9)
        for name, value_s in values.items():
            if value_s is not None:
                waiting[name].append(value_s)
        if max(len(self._first_tokens_ns), *map(len, waiting.values())) >= AT_ONCE:
            self._count()

    def end(self) -> None:
        """The test is over: what is counted stands still, and its time with it."""
        self.state()
        self._ended = True

    def state(self) -> State:
        """All of it up to now. The State is this object's own: read it, or pack it, before the next switch."""
        self._count()
        if not self._ended:
            state, lags = self._state, Histogram()
            lags.observe(list(self.loop_lags_s), list(self.loop_lags_s.values()))
            state.timed["loop_lag"] = lags
            state.elapsed_s = (self._clock() - self._began_ns) / 1e9
            state.cpu_s = self._cpu_s() - self._began_cpu_s
        return self._state

    def _count(self) -> None:
        waiting = self._waiting
        waiting["ttft"] = [ttft_ns / 1e9 for ttft_ns in self._first_tokens_ns]
        self._first_tokens_ns.clear()
        for name, values_s in waiting.items():
            if values_s:
                self._state.timed[name].observe(values_s)
                values_s.clear()
