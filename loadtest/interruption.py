"""What ends a measurement early, and how it ends in order: Ctrl-C, a signal, or an endpoint that is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable

import gevent
from gevent.event import Event

from loadtest.endpoints.base import EndpointError

POLL_S = 0.05
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: keep what was measured."""


class GaveUp(Exception):
    """The run can't go on: the endpoint no longer answers, or a user failed; the message says which."""


class Signals:
    """Listens from the first work to the end of the process. The first signal ends the work that runs, or the next one
    where none does; later ones change nothing: what is left to do is short, and a server must not be left behind.
    """

    def __init__(self) -> None:
        self._told = Event()
        self._work: gevent.Greenlet | None = None
        self._watchers = {number: gevent.signal_handler(number, self._come) for number in NUMBERS}

    def _come(self) -> None:
        if not self._told.is_set() and self._work is not None:
            self._work.kill(Interrupted("interrupted"), block=False)
        self._told.set()

    def end(self, work: Callable[[], None]) -> BaseException | None:
        """Run `work` in a greenlet; returns what ended it early, a signal that came before it included."""
        if self._told.is_set():
            return Interrupted("interrupted")
        caught: BaseException | None = None

        def guarded() -> None:
            nonlocal caught
            try:
                work()
            except (Interrupted, GaveUp, EndpointError) as error:
                caught = error

        ended = self._work = gevent.spawn(guarded)
        ended.join()
        self._work = None
        if (
            self._told.is_set()
        ):  # nor the exit code: at its end Python would give a signal that isn't ignored its default back
            for number, watcher in self._watchers.items():
                watcher.cancel()
                signal.signal(number, signal.SIG_IGN)
        try:
            ended.get()  # raises what was not expected
        except Interrupted as error:  # before it had begun
            return error
        return caught

    @property
    def told(self) -> bool:
        return bool(self._told.is_set())

    def linger(self, wanted: Callable[[], bool]) -> None:
        """Wait while `wanted`, at the end of a work that has done all it was for. A signal ends the wait and nothing
        else, one that came before leaves it out; from here on the work can't be ended, and the next one is instead.
        """
        self._work, before = None, self.told
        while wanted() and not self._told.wait(POLL_S):
            pass
        if not before:
            self._told.clear()


_signals: Signals | None = None  # of the process: what comes between two works must not be lost


def interruptible(work: Callable[[], None]) -> BaseException | None:
    """Run `work` in a greenlet that the first SIGINT, SIGTERM or SIGHUP ends in order; returns what ended it early.

    Raises: what `work` raises besides.
    """
    global _signals
    _signals = _signals or Signals()
    return _signals.end(work)


def told() -> bool:
    """Whether a signal has come that ends a work, this one or the next."""
    return _signals is not None and _signals.told


def linger(wanted: Callable[[], bool]) -> None:
    """`Signals.linger`; where there are none, as in plain locust, the wait alone."""
    if _signals is not None:
        _signals.linger(wanted)
        return
    while wanted():
        gevent.sleep(POLL_S)
