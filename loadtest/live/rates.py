"""Tokens and requests per second of the last seconds, of each process by its own clock; then their sum."""

from __future__ import annotations

from collections import deque

from loadtest.live.state import KINDS, State
from loadtest.verdict import Verdict

WINDOW_S = 15.0  # five of the reports that locust's workers send


class Rates:
    """Of one process. Its test begins with nothing at 0 s, so the first state has a rate already."""

    def __init__(self) -> None:
        self._test = ""
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def add(self, state: State) -> None:
        counts = {**state.tokens, "complete": state.requests[Verdict.COMPLETE]}
        if state.test != self._test:
            self._test = state.test
            self._seen = deque([(0.0, dict.fromkeys(counts, 0))])
        if state.elapsed_s > self._seen[-1][0]:
            self._seen.append((state.elapsed_s, counts))
        while len(self._seen) > 2 and self._seen[1][0] <= state.elapsed_s - WINDOW_S:
            self._seen.popleft()

    def per_second(self) -> dict[str, float]:
        """Of `input` and `output` tokens and of `complete` requests: (last − first) / their time apart."""
        if len(self._seen) < 2:
            return dict.fromkeys((*KINDS, "complete"), 0.0)
        (began_s, before), (now_s, now) = self._seen[0], self._seen[-1]
        return {name: (count - before[name]) / (now_s - began_s) for name, count in now.items()}
