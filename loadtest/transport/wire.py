"""The bytes of one TCP connection with their arrivals, plain or under TLS: read, stamped, then decrypted.

gevent's loop tells us of readable bytes and we read them there and then, before any greenlet is woken: no timer, no
watcher and no exception is spent on a read, and little has time to merge with what comes next. The greenlet that waits
in `receive` is switched to directly.

Under TLS the socket stays ours: an `ssl.SSLObject` between two memory buffers decrypts what was read and stamped, so a
stamp is of the segment that completed a record, whatever library would have read it.
"""

from __future__ import annotations

import _socket  # the plain one: `socket` may be gevent's by now, and we do its waiting ourselves
import ssl
from collections import deque
from contextlib import ExitStack
from typing import Any

import gevent
from gevent import socket

from loadtest.transport import stamps
from loadtest.transport.base import Clock, ConnectionBroken, Target, TimedOut
from loadtest.transport.tls import untrusted

READ_BYTES = 65536
MOST_AHEAD = 64  # reads that nobody has taken: then the kernel keeps the rest
READABLE, WRITABLE = 1, 2

Arrived = tuple[int, bool, bytes]  # instant, by the kernel, bytes; no bytes: closed


class Wire:
    """An open connection. Instants are the kernel's where it gives them, else read right after the read returns."""

    def __init__(
        self, connection: socket.socket | _socket.socket, clock: Clock, clock_map: stamps.ClockMap | None
    ) -> None:
        """Takes the socket over; `connection` is closed for its owner."""
        self._clock = clock
        self._map = clock_map
        self._not_before_ns = 0
        self._arrived: deque[Arrived | OSError] = deque()
        self._reader: Any = None  # the greenlet that waits in `receive`
        self._hub = gevent.get_hub()
        self._deadline_ns = 0
        self._alarm_ns = 0  # when the timer fires; it is never set anew while it fires early enough
        self._timer = self._hub.loop.timer(0)
        self._socket = _socket.socket(fileno=connection.detach())
        self._socket.setblocking(False)
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

    def receive(self, timeout_s: float, not_before_ns: int) -> Arrived:
        """What has arrived, waiting for at least one byte.

        Raises: OSError, TimeoutError.
        """
        self._not_before_ns = not_before_ns
        if not self._arrived:
            self._deadline_ns = self._clock() + int(timeout_s * 1e9)
            if not self._timer.active or self._alarm_ns > self._deadline_ns:
                self._alarm(timeout_s)
            self._reader = gevent.getcurrent()
            try:
                self._hub.switch()
            finally:
                self._reader = None
        arrived = self._arrived.popleft()
        if len(self._arrived) == MOST_AHEAD - 1:
            self._io.start(self._readable)
        if isinstance(arrived, OSError):
            raise arrived
        return arrived

    def is_stale(self) -> bool:
        """An idle connection has nothing to read: what is readable is its end, or rubbish."""
        if self._arrived:
            return True
        try:
            self._socket.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def under_tls(self, context: ssl.SSLContext, host: str, timeout_s: float) -> TlsWire:
        """The same connection from here on under TLS, as behind a proxy's CONNECT. Takes it over.

        Raises: OSError, TimeoutError.
        """
        self._unwatch()
        return TlsWire(self._socket, self._clock, self._map, context, host, timeout_s)

    def close(self) -> None:
        self._unwatch()
        self._socket.close()

    def _unwatch(self) -> None:
        for watcher in (self._io, self._timer):
            watcher.stop()
            watcher.close()

    def _readable(self) -> None:
        """Runs in the loop, whenever bytes or the end have come."""
        try:
            if self._map is None:
                data = self._socket.recv(READ_BYTES)
                now_ns, arrived_ns = self._clock(), None
            else:
                data, ancillary, _, _ = self._socket.recvmsg(READ_BYTES, stamps.CONTROL_BYTES)
                now_ns, stamp_ns = self._clock(), stamps.realtime_ns(ancillary)
                arrived_ns = None if stamp_ns is None else self._map.arrival_ns(stamp_ns, self._not_before_ns, now_ns)
        except BlockingIOError:
            return
        except OSError as error:
            self._io.stop()
            self._arrived.append(error)
        else:
            self._arrived.append((now_ns, False, data) if arrived_ns is None else (arrived_ns, True, data))
            if not data or len(self._arrived) >= MOST_AHEAD:
                self._io.stop()
        if self._reader is not None:
            self._reader.switch()

    def _alarm(self, after_s: float) -> None:
        self._timer.stop()
        self._timer.close()
        self._alarm_ns = self._clock() + int(after_s * 1e9)
        self._timer = self._hub.loop.timer(max(after_s, 0.0))
        self._timer.start(self._expired)

    def _expired(self) -> None:
        """Runs in the loop. The deadline may have moved on with every read since the timer was set."""
        if self._reader is None:
            return
        left_s = (self._deadline_ns - self._clock()) / 1e9
        if left_s > 0:
            self._alarm(left_s)
        else:
            self._reader.throw(TimeoutError())


class TlsWire(Wire):
    """The same under TLS. The handshake is part of opening the connection, before any clock starts."""

    def __init__(
        self,
        connection: socket.socket | _socket.socket,
        clock: Clock,
        clock_map: stamps.ClockMap | None,
        context: ssl.SSLContext,
        host: str,
        timeout_s: float,
    ) -> None:
        """Raises: OSError (ssl.SSLError, where the certificate isn't trusted, among them), TimeoutError."""
        super().__init__(connection, clock, clock_map)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._ended = False  # by the server, as TLS says it
        try:
            self._shake_hands(timeout_s)
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes, timeout_s: float) -> None:
        self._tls.write(data)
        self._flush(timeout_s)

    def receive(self, timeout_s: float, not_before_ns: int) -> Arrived:
        while True:
            t_ns, by_kernel, data = super().receive(timeout_s, not_before_ns)
            plain = self._decrypted(data)
            if plain or self._ended:
                return t_ns, by_kernel, plain

    def is_stale(self) -> bool:
        """As of a plain one; but session tickets may have come meanwhile, which are neither end nor rubbish."""
        try:
            while super().is_stale():
                if not self._arrived:
                    self._readable()
                if self._decrypted(super().receive(0, 0)[2]) or self._ended:
                    return True
        except OSError:
            return True
        return self._ended

    def _shake_hands(self, timeout_s: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(timeout_s)
                data = super().receive(timeout_s, 0)[2]
                if not data:
                    raise ConnectionResetError("closed in the TLS handshake") from None
                self._incoming.write(data)
            except ssl.SSLError:
                self._flush(timeout_s)  # the alert that says why
                raise
        self._flush(timeout_s)

    def _decrypted(self, data: bytes) -> bytes:
        """What records are whole now. Closed, with or without TLS's own word for it, is `_ended`."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        parts = []
        try:
            while part := self._tls.read(READ_BYTES):
                parts.append(part)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = True
        return b"".join(parts)

    def _flush(self, timeout_s: float) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read(), timeout_s)


def dial(
    target: Target, timeout_s: float, clock: Clock, clock_map: stamps.ClockMap | None, context: ssl.SSLContext | None
) -> Wire:
    """Open a connection: name, TCP, TLS.

    Raises: TimedOut, ConnectionBroken.
    """
    where = f"{target.host}:{target.port}"
    with ExitStack() as undo:
        try:
            connection = socket.create_connection((target.host, target.port), timeout=timeout_s)
            undo.callback(connection.close)  # does nothing once a wire has taken it over
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamped = clock_map if clock_map is not None and stamps.enable(connection) else None
            if not target.tls:
                return Wire(connection, clock, stamped)
            assert context is not None, "a target under TLS comes with a context"
            return TlsWire(connection, clock, stamped, context, target.host, timeout_s)
        except TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(where, error)) from error
        except ssl.SSLError as error:
            raise ConnectionBroken(f"no TLS with {where} ({error.reason}): is it https?") from error
        except (OSError, UnicodeError) as error:
            raise ConnectionBroken(f"no connection to {where}: {getattr(error, 'strerror', None) or error}") from error
