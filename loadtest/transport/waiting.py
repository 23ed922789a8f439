"""How long an exchange waits on its wire, and what it is told when that was too long: one rule for our transports."""

from __future__ import annotations

from loadtest.transport.base import ConnectionBroken, Seen, TimedOut, Timeouts
from loadtest.transport.wire import Arrived, Wire


def send(wire: Wire, data: bytes, timeouts: Timeouts) -> None:
    """Raises: TimedOut, ConnectionBroken."""
    try:
        wire.send(data, timeouts.total_s)
    except TimeoutError as error:
        raise TimedOut(f"the request could not be sent in {timeouts.total_s:g} s") from error
    except OSError as error:
        raise ConnectionBroken(f"the request could not be sent: {error.strerror or error}") from error


def wait(wire: Wire, seen: Seen, begun: bool, timeouts: Timeouts, silent_since_ns: int | None = None) -> None:
    """Until the wire's consumer has enough. begun: the body has. silent_since_ns: when this exchange's silence began,
    where what may have come meanwhile is none of it; else it begins now.

    Raises: TimedOut, ConnectionBroken.
    """
    assert seen.started_ns is not None
    idle_s = timeouts.gap_s if begun else timeouts.first_byte_s
    until_ns = seen.started_ns + int(timeouts.total_s * 1e9)
    was_silent_s = 0 if silent_since_ns is None else (wire.clock() - silent_since_ns) / 1e9
    try:
        wire.wait(max(idle_s - was_silent_s, 0), until_ns)
    except TimeoutError as error:
        if wire.clock() >= until_ns:
            raise TimedOut(f"not finished after {timeouts.total_s:g} s") from error
        what = "nothing arrived for" if begun else "no answer came in"
        raise TimedOut(f"{what} {idle_s:g} s") from error
    except OSError as error:
        raise ConnectionBroken(error.strerror or str(error)) from error


def take(wire: Wire, seen: Seen, begun: bool, timeouts: Timeouts, silent_since_ns: int | None = None) -> Arrived:
    """What has arrived on a wire that keeps it, waiting for at least one byte or the end.

    Raises: TimedOut, ConnectionBroken.
    """
    while (arrived := wire.take()) is None:
        wait(wire, seen, begun, timeouts, silent_since_ns)
    return arrived
