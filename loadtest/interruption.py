"""What ends a measurement early, and how it ends in order: Ctrl-C, a signal, or an endpoint that is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable

import gevent

from loadtest.endpoints.base import EndpointError


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: keep what was measured."""


class GaveUp(Exception):
    """The run can't go on: the endpoint no longer answers, or a user failed; the message says which."""


def interruptible(work: Callable[[], None]) -> BaseException | None:
    """Run `work` in a greenlet that the first SIGINT, SIGTERM or SIGHUP ends in order; returns what ended it early.

    Later signals change nothing: what is left to do is short, and a server must not be left behind.
    """
    caught: BaseException | None = None

    def guarded() -> None:
        nonlocal caught
        try:
            work()
        except (Interrupted, GaveUp, EndpointError) as error:
            caught = error

    greenlet = gevent.spawn(guarded)
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            greenlet.kill(Interrupted("interrupted"), block=False)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # for good: a second one must not cut the report
    watchers = {number: gevent.signal_handler(number, stop) for number in numbers}
    greenlet.join()
    if told:  # nor the exit code: at its end Python would give a signal that isn't ignored its default back
        for number, watcher in watchers.items():
            watcher.cancel()
            signal.signal(number, signal.SIG_IGN)
    greenlet.get()  # raises what was not expected
    return caught
