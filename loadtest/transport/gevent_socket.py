"""HTTP/1.1 over a gevent socket, framed by httptools: the least there can be between the wire and the clock.

One connection a user. Every read is stamped before anything is parsed: by the kernel where it can (`stamps.py`), else
right after `recv` returns. Measured on one core with 256 streams, this costs a third of what httpx costs and half of
what geventhttpclient's readline costs, and nothing waits for a buffer to fill.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httptools

from loadtest.transport import waiting
from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    HttpRequest,
    NotHttp,
    Read,
    Seen,
    Target,
    Timeouts,
    monotonic_ns,
)
from loadtest.transport.stamps import ClockMap
from loadtest.transport.wire import Wire, dial


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

    def __init__(
        self,
        target: Target,
        context: ssl.SSLContext | None = None,
        clock: Clock = monotonic_ns,
        clock_map: ClockMap | None = None,
    ) -> None:
        """`context` is for targets under TLS. Without `clock_map` arrivals are stamped in user space."""
        self._target = target
        self._context = context
        self._clock = clock
        self._map = clock_map
        self._wire: Wire | None = None

    def ready(self, timeout_s: float) -> int | None:
        if self._wire is not None and not self._wire.is_stale():
            return None
        self.close()
        before = self._clock()
        self._wire = dial(self._target, timeout_s, self._clock, self._map, self._context)
        return self._clock() - before

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        head = self._head(request)
        seen.connect_ns = self.ready(timeouts.connect_s)
        wire = self._wire
        assert wire is not None
        response = _Response(seen)
        read_id, begun = 0, False
        seen.clock = "kernel" if self._map is not None else "user"
        try:
            seen.started_ns = self._clock()
            waiting.send(wire, head + request.body, timeouts)
            seen.sent_ns = self._clock()
            while not seen.body_ended:
                t_ns, _, data = waiting.receive(wire, seen, begun, timeouts, self._clock)
                if not data:
                    self._closed_by_server(response, seen)
                    break
                read_id += 1
                broken = self._parse(response, data)
                if seen.headers_ns is None and response.headers_complete:
                    seen.headers_ns = t_ns
                if response.body:
                    body = response.body[0] if len(response.body) == 1 else b"".join(response.body)
                    response.body.clear()
                    begun = True
                    yield Read(t_ns, read_id, body)
                if broken is not None:
                    raise broken
        finally:
            del response.parser  # it holds the response: garbage that only a collection would find
            # An exchange that was left early leaves bytes on the wire: the next one needs a fresh connection.
            if not response.keeps_alive:
                self.close()

    def _head(self, request: HttpRequest) -> bytes:
        lines = [
            f"{request.method} {self._target.path}{request.path} HTTP/1.1",
            f"host: {self._target.origin.partition('://')[2]}",
            *(f"{name}: {value}" for name, value in request.headers),
        ]
        if request.body or request.method == "POST":
            lines.append(f"content-length: {len(request.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

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
