"""What ends a measurement early, and how it ends in order: Ctrl-C, a signal, or an endpoint that is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable

import gevent
from gevent.event import Event

from loadtest.endpoints.base import EndpointError

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

        self._work = gevent.spawn(guarded)
        self._work.join()
        ended, self._work = self._work, None
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


_signals: Signals | None = None  # of the process: what comes between two works must not be lost


def interruptible(work: Callable[[], None]) -> BaseException | None:
    """Run `work` in a greenlet that the first SIGINT, SIGTERM or SIGHUP ends in order; returns what ended it early.

    Raises: what `work` raises besides.
    """
    global _signals
    _signals = _signals or Signals()
    return _signals.end(work)
