"""The bytes of one TCP connection with their arrivals: read and stamped where gevent's loop tells of them.

No timer, no watcher, no exception and no greenlet is spent on a read: the loop calls us, we read there and then, so
little has time to merge with what comes next, and hand what came to whoever was named to `expect` it. That one says
when the greenlet in `wait` has something to do; it is switched to directly.
"""

from __future__ import annotations

import _socket  # the plain one: `socket` may be gevent's by now, and we do its waiting ourselves
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent import socket

from loadtest.transport.base import Clock, Opened
from loadtest.transport.stamps import CONTROL_BYTES, ClockMap, realtime_ns

READ_BYTES = 65536  # in one read at most
FIRST_BYTES = 8192  # what is made room for while reads stay below it: room costs time
READABLE, WRITABLE = 1, 2

Arrived = tuple[int, bool, bytes]  # instant, by the kernel, bytes; no bytes: closed
Consumer = Callable[[int, bool, bytes], bool]  # runs in the loop; whether `wait` has waited long enough


class Wire:
    """An open connection. Instants are the kernel's where it gives them, else read right after the read returns."""

    def __init__(self, connection: socket.socket | _socket.socket, clock: Clock, clock_map: ClockMap | None) -> None:
        """Takes the socket over; `connection` is closed for its owner."""
        self.clock, self.clock_map = clock, clock_map
        self.opened: Opened | None = None  # told by who dialled it
        self._not_before_ns = 0
        self._consumer: Consumer | None = None
        self._kept: deque[Arrived] = deque()
        self._error: OSError | None = None
        self._due = False  # the consumer has said so, and nobody waited
        self._reader: Any = None  # the greenlet that waits
        self._hub = gevent.get_hub()
        self._idle_ns = self._until_ns = self._last_ns = 0  # bounds of the wait, and when bytes last came
        self._alarm_ns = 0  # when the timer fires; it is never set anew while it fires early enough
        self._timer = self._hub.loop.timer(0)
        self._socket = _socket.socket(fileno=connection.detach())
        self._socket.setblocking(False)
        self._room = FIRST_BYTES
        self._io = self._hub.loop.io(self._socket.fileno(), READABLE)
        self._io.start(self._readable)

    def send(self, data: bytes, timeout_s: float) -> None:
        """Raises: OSError, TimeoutError."""
        rest = memoryview(data)
        timeout = None
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    timeout = timeout or gevent.Timeout.start_new(timeout_s, TimeoutError())
                    writable = self._hub.loop.io(self._socket.fileno(), WRITABLE)
                    try:
                        self._hub.wait(writable)
                    finally:
                        writable.close()
        finally:
            if timeout is not None:
                timeout.close()

    def expect(self, not_before_ns: int, consumer: Consumer | None = None) -> None:
        """What arrives from here on goes to `consumer`, or is kept for `take`. Stamps before `not_before_ns` can't be
        true.
        """
        self._not_before_ns = not_before_ns
        self._consumer = consumer
        self._due = False

    def wait(self, idle_s: float, until_ns: int) -> None:
        """Until the consumer has enough; meanwhile bytes must come every `idle_s`, and the clock stay below `until_ns`.

        Raises: OSError, TimeoutError.
        """
        if not self._due:
            if self._error is not None:
                raise self._error
            now_ns = self.clock()
            self._idle_ns, self._until_ns, self._last_ns = int(idle_s * 1e9), until_ns, now_ns
            deadline_ns = min(now_ns + self._idle_ns, until_ns)
            if not self._timer.active or self._alarm_ns > deadline_ns:
                self._alarm(deadline_ns, now_ns)
            if not self._io.active:
                self._io.start(self._readable)
            self._reader = gevent.getcurrent()
            try:
                self._hub.switch()
            finally:
                self._reader = None
        self._due = False
        if self._error is not None and not self._kept:
            raise self._error

    def take(self) -> Arrived | None:
        """What came first of what was kept; None where there is nothing: `wait`."""
        if not self._kept:
            self._due = False
            return None
        return self._kept.popleft()

    def has_come(self) -> bool:
        """Whether anything is there to be read, the end and an error included. An idle connection of HTTP/1.1 has
        nothing to read: what is readable is its end, or rubbish.
        """
        while not self._kept and self._error is None:
            if self._read() is None:
                return False
        return True

    def release(self) -> _socket.socket:
        """The socket, which is the caller's from here on."""
        for watcher in (self._io, self._timer):
            watcher.stop()
            watcher.close()
        return self._socket

    def close(self) -> None:
        self.release().close()

    def _arrive(self, t_ns: int, by_kernel: bool, data: bytes) -> bool:
        """Whether the consumer has enough."""
        if self._consumer is not None:
            return self._consumer(t_ns, by_kernel, data)
        self._kept.append((t_ns, by_kernel, data))
        return True

    def _readable(self) -> None:
        """Runs in the loop, whenever bytes or the end have come."""
        if not self._read():
            return
        if self._reader is None:
            self._due = True
            self._io.stop()  # the kernel keeps the rest until somebody waits
        else:
            self._reader.switch()

    def _read(self) -> bool | None:
        """Whether the consumer has enough; None where there was nothing to read."""
        try:
            if self.clock_map is None:
                data = self._socket.recv(self._room)
                self._last_ns = now_ns = self.clock()
                stamp_ns = None
            else:
                data, ancillary, _, _ = self._socket.recvmsg(self._room, CONTROL_BYTES)
                self._last_ns = now_ns = self.clock()
                stamp_ns = realtime_ns(ancillary)
                if stamp_ns is not None:
                    stamp_ns = self.clock_map.arrival_ns(stamp_ns, self._not_before_ns, now_ns)
            self._room = READ_BYTES if len(data) == self._room else FIRST_BYTES
            if not data:
                self._io.stop()
            return self._arrive(now_ns if stamp_ns is None else stamp_ns, stamp_ns is not None, data)
        except BlockingIOError:
            return None
        except OSError as error:
            self._io.stop()
            self._error = error
            return True

    def _alarm(self, at_ns: int, now_ns: int) -> None:
        self._timer.stop()
        self._timer.close()
        self._alarm_ns = at_ns
        self._timer = self._hub.loop.timer(max(at_ns - now_ns, 0) / 1e9)
        self._timer.start(self._expired)

    def _expired(self) -> None:
        """Runs in the loop. The deadline may have moved on with every read since the timer was set."""
        if self._reader is None:
            return
        now_ns, deadline_ns = self.clock(), min(self._last_ns + self._idle_ns, self._until_ns)
        if now_ns < deadline_ns:
            self._alarm(deadline_ns, now_ns)
        else:
            self._reader.throw(TimeoutError())
