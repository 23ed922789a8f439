"""Plain HTTP/1.1 over a gevent socket, framed by httptools: the least there can be between the wire and the clock.

One connection a user. The clock is read right after `recv` returns, before anything is parsed. Measured on one core
with 256 streams, this costs a third of what httpx costs and half of what geventhttpclient's readline costs, and
nothing waits for a buffer to fill.

The seam for what comes later: `_open` makes the socket (TLS would wrap it there), `_receive` reads and stamps (kernel
receive stamps would replace its clock).
"""

from __future__ import annotations

from collections.abc import Iterator

import httptools
from gevent import socket

from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    HttpRequest,
    NotHttp,
    Read,
    Seen,
    Target,
    TimedOut,
    monotonic_ns,
)

READ_BYTES = 65536


class _Response:
    """httptools' callbacks: headers into `seen`, body bytes into `body`."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.body: list[bytes] = []
        self.headers_complete = False
        self.informational = False  # inside a 1xx reply, which only announces the real one
        self.keeps_alive = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.seen.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        self.informational = 100 <= status < 200
        if self.informational:
            self.seen.headers.clear()
            return
        self.headers_complete = True
        self.seen.status = status

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.informational:
            return
        self.seen.body_ended = True
        self.keeps_alive = self.parser.should_keep_alive()  # only here: llhttp forgets with the message

    @property
    def ends_with_connection(self) -> bool:
        """The body has no framing of its own: the server's close is its end."""
        framed = (
            "content-length" in self.seen.headers or "chunked" in self.seen.headers.get("transfer-encoding", "").lower()
        )
        return self.headers_complete and not framed


class GeventConnection:
    """One keep-alive connection to a target, for one greenlet."""

    transport_name = "gevent"
    clock_name = "user"

    def __init__(self, target: Target, clock: Clock = monotonic_ns) -> None:
        self._target = target
        self._clock = clock
        self._socket: socket.socket | None = None
        self._host = f"[{target.host}]" if ":" in target.host else target.host

    def ready(self, timeout_s: float) -> int | None:
        if self._socket is not None and not self._is_stale(self._socket):
            return None
        self.close()
        before = self._clock()
        self._socket = self._open(timeout_s)
        return self._clock() - before

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, request: HttpRequest, seen: Seen, idle_s: float, total_s: float) -> Iterator[Read]:
        head = self._head(request)
        seen.connect_ns = self.ready(total_s)
        assert self._socket is not None
        response = _Response(seen)
        read_id = 0
        try:
            seen.started_ns = self._clock()
            self._send(head + request.body, total_s)
            seen.sent_ns = self._clock()
            give_up_ns = seen.started_ns + int(total_s * 1e9)
            while not seen.body_ended:
                t_ns, data = self._receive(idle_s, total_s, give_up_ns)
                if not data:
                    self._closed_by_server(response, seen)
                    break
                read_id += 1
                broken = self._parse(response, data)
                if seen.headers_ns is None and response.headers_complete:
                    seen.headers_ns = t_ns
                if response.body:
                    yield Read(t_ns, read_id, b"".join(response.body))
                    response.body.clear()
                if broken is not None:
                    raise broken
        finally:
            # An exchange that was left early leaves bytes on the wire: the next one needs a fresh connection.
            if not response.keeps_alive:
                self.close()

    def _open(self, timeout_s: float) -> socket.socket:
        where = f"{self._target.host}:{self._target.port}"
        try:
            connection = socket.create_connection((self._target.host, self._target.port), timeout=timeout_s)
        except TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {timeout_s:g} s") from error
        except (OSError, UnicodeError) as error:
            raise ConnectionBroken(f"no connection to {where}: {getattr(error, 'strerror', None) or error}") from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _is_stale(self, connection: socket.socket) -> bool:
        """An idle connection has nothing to read: what is readable is its end, or rubbish."""
        connection.settimeout(0)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _head(self, request: HttpRequest) -> bytes:
        lines = [
            f"{request.method} {self._target.path}{request.path} HTTP/1.1",
            f"host: {self._host}:{self._target.port}",
            *(f"{name}: {value}" for name, value in request.headers),
        ]
        if request.body or request.method == "POST":
            lines.append(f"content-length: {len(request.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _send(self, data: bytes, total_s: float) -> None:
        assert self._socket is not None
        self._socket.settimeout(total_s)
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise TimedOut(f"the request could not be sent in {total_s:g} s") from error
        except OSError as error:
            raise ConnectionBroken(f"the request could not be sent: {error.strerror or error}") from error

    def _receive(self, idle_s: float, total_s: float, give_up_ns: int) -> tuple[int, bytes]:
        """What has arrived, waiting for at least one byte, and the instant right after the read. b"": closed."""
        assert self._socket is not None
        left_s = (give_up_ns - self._clock()) / 1e9
        if left_s <= 0:
            raise TimedOut(f"not finished after {total_s:g} s")
        self._socket.settimeout(min(idle_s, left_s))
        try:
            data = self._socket.recv(READ_BYTES)
            return self._clock(), data
        except TimeoutError as error:
            reason = f"nothing arrived for {idle_s:g} s" if idle_s <= left_s else f"not finished after {total_s:g} s"
            raise TimedOut(reason) from error
        except OSError as error:
            raise ConnectionBroken(error.strerror or str(error)) from error

    def _parse(self, response: _Response, data: bytes) -> NotHttp | None:
        """Feed the parser; what came before a fault is kept, so the fault is returned, not raised."""
        try:
            response.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if response.seen.body_ended:  # rubbish behind a whole response: the next exchange gets a fresh connection
                response.keeps_alive = False
            else:
                return NotHttp(f"not HTTP/1.1: {error}")
        return None

    def _closed_by_server(self, response: _Response, seen: Seen) -> None:
        if response.ends_with_connection:
            seen.body_ended = True
        elif response.headers_complete:
            raise BodyCut("the connection closed inside the body")
        else:
            raise ConnectionBroken("the connection closed before the response's headers")
