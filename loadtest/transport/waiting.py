"""How long an exchange waits on its wire, and what it is told when that was too long: one rule for our transports."""

from __future__ import annotations

from loadtest.transport.base import Clock, ConnectionBroken, Seen, TimedOut, Timeouts
from loadtest.transport.wire import Arrived, Wire


def send(wire: Wire, data: bytes, timeouts: Timeouts) -> None:
    """Raises: TimedOut, ConnectionBroken."""
    try:
        wire.send(data, timeouts.total_s)
    except TimeoutError as error:
        raise TimedOut(f"the request could not be sent in {timeouts.total_s:g} s") from error
    except OSError as error:
        raise ConnectionBroken(f"the request could not be sent: {error.strerror or error}") from error


def receive(wire: Wire, seen: Seen, begun: bool, timeouts: Timeouts, clock: Clock) -> Arrived:
    """What has arrived, waiting for at least one byte. begun: the body has. A user-land stamp is entered in `seen`.

    Raises: TimedOut, ConnectionBroken.
    """
    assert seen.started_ns is not None
    wait_s = timeouts.gap_s if begun else timeouts.first_byte_s
    left_s = timeouts.total_s - (clock() - seen.started_ns) / 1e9
    if left_s <= 0:
        raise TimedOut(f"not finished after {timeouts.total_s:g} s")
    try:
        arrived = wire.receive(wait_s if wait_s < left_s else left_s, seen.started_ns)
    except TimeoutError as error:
        if left_s < wait_s:
            raise TimedOut(f"not finished after {timeouts.total_s:g} s") from error
        what = "nothing arrived for" if begun else "no answer came in"
        raise TimedOut(f"{what} {wait_s:g} s") from error
    except OSError as error:
        raise ConnectionBroken(error.strerror or str(error)) from error
    if arrived[2] and not arrived[1]:
        seen.clock = "user"
    return arrived
