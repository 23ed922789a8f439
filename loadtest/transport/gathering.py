"""Arrivals gather for half a millisecond before the loop looks at them: to wake for every token costs as much as to
read it.

This is for the kernel's stamps alone, which tell the same instant however late a read comes. What it can cost: two
events of one stream that came within `GATHER_S` of each other share a read, so the first is stamped late by less than
that, and says so by its `read_id`. A loop that has enough to do never waits here, and one that was idle reads at once.

It is libev's io_collect_interval, which gevent doesn't offer, in a watcher that runs before every poll. On while a wire
with stamps is open, in the loop of its hub.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import gevent
from gevent import monkey

GATHER_S = 0.0005

thread_sleep: Callable[[float], object] = monkey.get_original("time", "sleep")


class Gathering:
    """Of one event loop. Only its own thread may call."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = thread_sleep
    ) -> None:
        """Clock and sleep in seconds; `sleep` stops the whole thread."""
        self._clock, self._sleep = clock, sleep
        self._wires = 0
        self._at_leisure = 0  # greenlets in `idle`
        self._looked_s = 0.0  # when the last poll began
        self._before_poll = gevent.get_hub().loop.prepare(ref=False)

    def join(self) -> None:
        """One more wire with stamps is open."""
        self._wires += 1
        if self._wires == 1:
            self._before_poll.start(self.gather)

    def leave(self) -> None:
        self._wires -= 1
        if not self._wires:
            self._before_poll.stop()

    def idle(self) -> None:
        """Wait until no stream has anything to do. Nothing gathers meanwhile: there is work to fill the time."""
        self._at_leisure += 1
        try:
            gevent.idle()
        finally:
            self._at_leisure -= 1

    def gather(self) -> None:
        """Runs in the loop, before each poll."""
        if not self._at_leisure:
            rest_s = self._looked_s + GATHER_S - self._clock()
            if rest_s > 0:
                self._sleep(rest_s)
        self._looked_s = self._clock()


_gatherings: WeakKeyDictionary[gevent.hub.Hub, Gathering] = WeakKeyDictionary()


def gathering() -> Gathering:
    """That of the present thread's loop."""
    hub = gevent.get_hub()
    if hub not in _gatherings:
        _gatherings[hub] = Gathering()
    return _gatherings[hub]
