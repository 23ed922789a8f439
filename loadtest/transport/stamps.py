"""When bytes arrived, by the kernel's own stamp, on the clock that everything else is measured with.

On Linux a TCP socket with SO_TIMESTAMPING tells with every read when the last segment of what it returns came in, on
CLOCK_REALTIME. A read that comes late, because the process was busy, is told the same instant. So the stamp is exact
for the last event of a read, and late by at most the read's span for those before it.

`ClockMap` carries the instant over to CLOCK_MONOTONIC. Both clocks run at one rate; what changes their distance is a
step of the wall clock, so it is looked at again now and then. A stamp that can't be true isn't taken.
Source: Linux, Documentation/networking/timestamping.rst.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

SO_TIMESTAMPING = 37  # asm-generic/socket.h; both the option and the type of the control message
RX_SOFTWARE, SOFTWARE = 1 << 3, 1 << 4
CONTROL_BYTES = 128  # room for the one message, and for what a TLS or proxy layer might add
TIMESPEC = struct.Struct("@qq")  # the first of three: software stamps
REFRESH_NS = 1_000_000_000
BRACKETS = 5  # readings of which the narrowest is taken
ROUNDING_NS = 50_000  # a mapped stamp may lie so far after the read that brought it: what the mapping is unsure of

Ancillary = Iterable[tuple[int, int, bytes]]


def enable(connection: Any) -> bool:
    """Ask a TCP socket for receive stamps. False: this platform has none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE)
    except OSError:
        return False
    return True


@cache
def stay_on() -> None:
    """Keep a socket with stamps open for as long as the process lives: the kernel begins to stamp a moment after the
    first one asks, and stops when the last one is closed.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    enable(held)
    held.detach()


def realtime_ns(ancillary: Ancillary) -> int | None:
    """The stamp among a read's control messages, on CLOCK_REALTIME."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPING and len(data) >= TIMESPEC.size:
            seconds, nanoseconds = TIMESPEC.unpack_from(data)
            return (seconds * 1_000_000_000 + nanoseconds) or None
    return None


class ClockMap:
    """CLOCK_REALTIME → CLOCK_MONOTONIC, in nanoseconds."""

    def __init__(
        self, monotonic: Callable[[], int] = time.monotonic_ns, realtime: Callable[[], int] = time.time_ns
    ) -> None:
        self._monotonic, self._realtime = monotonic, realtime
        self._offset_ns = 0
        self._read_ns = -REFRESH_NS  # when the offset was last looked at, monotonic
        self._look(monotonic())

    def arrival_ns(self, stamp_ns: int, not_before_ns: int, now_ns: int) -> int | None:
        """A stamp's instant, monotonic. None where it can't be: before the request, or after the read that had it."""
        if now_ns - self._read_ns >= REFRESH_NS:
            self._look(now_ns)
        arrived_ns = stamp_ns + self._offset_ns
        if not_before_ns <= arrived_ns <= now_ns + ROUNDING_NS:
            return arrived_ns if arrived_ns < now_ns else now_ns
        self._read_ns = now_ns - REFRESH_NS  # the wall clock may have been set: look again before the next one
        return None

    def _look(self, now_ns: int) -> None:
        """Bracket a reading of one clock between two of the other; the narrowest bracket is the surest."""
        best = None
        for _ in range(BRACKETS):
            before = self._monotonic()
            wall = self._realtime()
            after = self._monotonic()
            if best is None or after - before < best:
                best, self._offset_ns = after - before, (before + after) // 2 - wall
        self._read_ns = now_ns
