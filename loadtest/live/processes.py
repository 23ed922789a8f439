"""Every process that takes part in a test: this one alone, or the workers of a master, whose last reports stand.

What a worker had reported stays when it dies: its requests happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loadtest.live.counting import Live
from loadtest.live.rates import Rates
from loadtest.live.state import State

logger = logging.getLogger(__name__)
REPORT = "tokenclock"  # its place in what a worker reports to locust's master
SILENT_S = 10.0  # a worker reports every 3 s: one that didn't for so long has no tokens per second


class Processes(Protocol):
    def states(self) -> Sequence[State]:
        """One for each process, to be read before the next switch."""

    def users(self) -> int: ...

    def per_second(self) -> Mapping[str, float]:
        """See Rates.per_second, of all of them together."""


class Alone:
    """One process, which makes the requests itself. `live` changes with every test."""

    def __init__(self, live: Live | None = None) -> None:
        self.live = live
        self._rates = Rates()

    def states(self) -> Sequence[State]:
        return [] if self.live is None else [self.live.state()]

    def users(self) -> int:
        return 0 if self.live is None else self.live.users

    def per_second(self) -> Mapping[str, float]:
        for state in self.states():
            self._rates.add(state)
        return self._rates.per_second()

    def report(self, data: dict[str, Any]) -> None:
        """As a worker: put all that is known into what goes to the master."""
        for state in self.states():
            data[REPORT] = state.packed()


@dataclass(slots=True)
class _Reported:
    state: State
    heard_s: float
    rates: Rates = field(default_factory=Rates)


class Workers:
    """What the workers of a master reported. A worker that is sent into the test again counts from 0: both count."""

    def __init__(self, users: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        """users: how many run on all of them, as locust knows."""
        self.users, self._clock = users, clock
        self._reported: dict[str, _Reported] = {}  # by State.test
        self._over: set[str] = set()  # those of tests before this one

    def begin(self) -> None:
        """A new test: what was reported of the one before counts no more, nor what of it still comes."""
        self._over |= self._reported.keys()
        self._reported.clear()

    def heard(self, worker: str, data: Mapping[str, Any]) -> None:
        """A report; one that can't be read, or is older than the last, changes nothing."""
        if REPORT not in data:
            return
        try:
            state = State.unpacked(data[REPORT])
        except ValueError as error:
            logger.warning("worker %s: %s; run the same version of tokenclock on all machines", worker, error)
            return
        if state.test in self._over:
            return
        known = self._reported.setdefault(state.test, _Reported(state, 0.0))
        if state.elapsed_s >= known.state.elapsed_s:
            known.state, known.heard_s = state, self._clock()
            known.rates.add(state)

    def states(self) -> Sequence[State]:
        return [each.state for each in self._reported.values()]

    def per_second(self) -> Mapping[str, float]:
        whole = Rates().per_second()
        for each in self._reported.values():
            if self._clock() - each.heard_s < SILENT_S:
                whole = {name: rate + each.rates.per_second()[name] for name, rate in whole.items()}
        return whole
