"""HTTP/1.1 over a gevent socket, framed by httptools: the least there can be between the wire and the clock.

One connection a user. Every read is stamped before anything is parsed: by the kernel where it can (`stamps.py`), else
right after `recv` returns. Measured on one core with 256 streams, this costs a third of what httpx costs and half of
what geventhttpclient's readline costs, and nothing waits for a buffer to fill.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from itertools import cycle

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
    TransportError,
    monotonic_ns,
)
from loadtest.transport.dial import dial
from loadtest.transport.stamps import ClockMap
from loadtest.transport.wire import Wire

# Reads of a stream before its greenlet looks at them: they are stamped, and to switch costs more than to read.
READS_AT_ONCE = 8
FIRST_LOOKS = cycle(range(1, READS_AT_ONCE + 1))  # so that streams that began together aren't looked at together
BYTES_AT_ONCE = 8192  # so that the look takes well below a millisecond


class _Response:
    """One answer as it comes in: headers into `seen`, the body's bytes into `reads`. Runs in the loop."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.reads: list[Read] = []  # that nobody has taken yet
        self.begun = False  # a byte of the body has come
        self.fault: TransportError | None = None  # nothing comes after it
        self.keeps_alive = False
        self._body: list[bytes] = []  # of the present read
        self.on_body = self._body.append  # the parser's callback; a method of ours would cost a frame for every token
        self._parser = httptools.HttpResponseParser(self)
        self._read_id = 0
        self._held_bytes = 0  # in `reads`
        self._at_once = next(FIRST_LOOKS)
        self._headers_complete = False
        self._informational = False  # inside a 1xx reply, which only announces the real one

    def consume(self, t_ns: int, by_kernel: bool, data: bytes) -> bool:
        """Frame what one read brought. What came before a fault is kept. Whether it is time to look at `reads`."""
        if not data:
            self._closed()
            if self.seen.body_ended:
                self.seen.ended_ns = t_ns
            return True
        if not by_kernel:
            self.seen.clock = "user"
        self._read_id += 1
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.seen.body_ended:  # rubbish behind a whole response: the next exchange gets a fresh connection
                self.keeps_alive = False
            else:
                self.fault = NotHttp(f"not HTTP/1.1: {error}")
        if self.seen.body_ended and self.seen.ended_ns is None:
            self.seen.ended_ns = t_ns
        if self._headers_complete and self.seen.headers_ns is None:
            self.seen.headers_ns = t_ns
        first = False
        if self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            self.reads.append(tuple.__new__(Read, (t_ns, self._read_id, body)))  # its own constructor is Python's
            self._held_bytes += len(body)
            first, self.begun = not self.begun, True
        return (
            first
            or self.seen.body_ended
            or self.fault is not None
            or len(self.reads) >= self._at_once
            or self._held_bytes >= BYTES_AT_ONCE
        )

    def taken(self) -> list[Read]:
        if len(self.reads) >= self._at_once:
            self._at_once = READS_AT_ONCE
        reads, self.reads, self._held_bytes = self.reads, [], 0
        return reads

    def forget(self) -> None:
        """The parser holds us, and a fault where it was raised: cycles, which only a collection finds."""
        del self._parser
        self.fault = None

    def _closed(self) -> None:
        """By the server."""
        headers = self.seen.headers
        if not self._headers_complete:
            self.fault = ConnectionBroken("the connection closed before the response's headers")
        elif "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower():
            self.fault = BodyCut("the connection closed inside the body")
        else:
            self.seen.body_ended = True  # it has no framing of its own: the close is its end

    def on_header(self, name: bytes, value: bytes) -> None:
        self.seen.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._informational = 100 <= status < 200
        if self._informational:
            self.seen.headers.clear()
            return
        self._headers_complete = True
        self.seen.status = status
        self.seen.http = f"HTTP/{self._parser.get_http_version()}"

    def on_message_complete(self) -> None:
        if self._informational:
            return
        self.seen.body_ended = True
        self.keeps_alive = self._parser.should_keep_alive()  # only here: llhttp forgets with the message


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
        self._authority = target.authority
        self._context = context
        self._clock = clock
        self._map = clock_map
        self._wire: Wire | None = None

    def ready(self, timeout_s: float) -> int | None:
        if self._wire is not None and not self._wire.has_come():
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
        seen.opened = None if seen.connect_ns is None else wire.opened
        response = _Response(seen)
        seen.clock = "kernel" if self._map is not None else "user"
        ended: BaseException | None = None
        unsent: ConnectionBroken | None = None
        try:
            seen.started_ns = self._clock()
            wire.expect(seen.started_ns, response.consume)
            try:
                waiting.send(wire, head + request.body, timeouts)
                seen.sent_ns = self._clock()
            except ConnectionBroken as error:
                unsent = error  # a refusal may have come before all was sent
            while ended is None and not seen.body_ended:
                try:
                    waiting.wait(wire, seen, response.begun, timeouts)
                    ended = response.fault
                except BaseException as error:  # ours too: what was read before it is still to be had
                    ended = error
                yield from response.taken()
            yield from response.taken()  # a whole answer that came while the request was being sent
            if ended is not None:
                raise unsent if unsent is not None and seen.status is None else ended
        finally:
            ended = unsent = None
            wire.expect(0)
            response.forget()
            # An exchange that was left early leaves bytes on the wire: the next one needs a fresh connection.
            if not response.keeps_alive:
                self.close()

    def _head(self, request: HttpRequest) -> bytes:
        headers = self._target.headers_with((("host", self._authority), *request.headers))
        lines = [
            f"{request.method} {self._target.path}{request.path} HTTP/1.1",
            *[f"{name}: {value}" for name, value in headers],
        ]
        if request.body or request.method == "POST":
            lines.append(f"content-length: {len(request.body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
