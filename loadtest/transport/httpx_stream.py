"""A dialled wire as httpcore has it: its writes start the clock, its reads bring their stamps, its waits are ours.

Under HTTP/2 a connection is open when the server's SETTINGS have come: our preface and SETTINGS are sent before the
clock starts, in the bytes that httpcore makes for it. What is left is to acknowledge the server's SETTINGS: httpcore
does so when it reads them, and it reads nothing before a request is sent.
Source: encode/httpcore 1.0, docs/network-backends.md, httpcore/_sync/http2.py.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import httpcore

from loadtest.transport import waiting
from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    NotHttp,
    Opened,
    Seen,
    TimedOut,
    Timeouts,
    TransportError,
)
from loadtest.transport.dial import left_s
from loadtest.transport.http2 import Frames
from loadtest.transport.stamps import ClockMap
from loadtest.transport.tls import untrusted
from loadtest.transport.tls_wire import TlsWire
from loadtest.transport.wire import Wire


class Stream(httpcore.NetworkStream):
    """It knows the exchange it carries, and raises its errors as they are."""

    def __init__(
        self, wire: Wire, context: ssl.SSLContext, http2: bool, clock: Clock, clock_map: ClockMap | None
    ) -> None:
        """context: for TLS in a proxy's tunnel. http2: speak it, or nothing."""
        self._wire = wire
        self._context = context
        self._http2 = http2
        self._clock = clock
        self._map = clock_map
        self._secured = isinstance(wire, TlsWire)  # TLS was spoken when the wire was dialled
        self._frames: Frames | None = None  # None: HTTP/1.1
        self._rubbish: NotHttp | None = None
        self._silent_since_ns: int | None = None  # of this request; frames of others end no silence
        self._exchange: tuple[Seen, Timeouts] | None = None
        self._body_bytes = 0  # of the request
        self.closed = False
        self.ended_by_server = False
        self.unsent: ConnectionBroken | None = None  # the request could not be sent to its end
        self.begun = False  # a byte of the body has come
        self.read_id = 0
        self.t_ns = 0  # arrival of the last read

    @property
    def opened(self) -> Opened | None:
        return self._wire.opened

    @property
    def spent(self) -> bool:
        """No further request may use it."""
        return self._frames is not None and self._frames.spent

    def open_http2(self, where: str, timeout_s: float) -> None:
        """Exchange SETTINGS. Raises: ConnectionBroken where HTTP/2 isn't spoken there; TimedOut, NotHttp."""
        chosen = self._wire.protocol if isinstance(self._wire, TlsWire) else None
        if chosen != "h2":
            raise ConnectionBroken(f"{where} offers no HTTP/2 (TLS chose {chosen or 'nothing'}): leave --http2 out")
        self._frames = Frames()
        begun_ns = self._clock()
        until_ns = begun_ns + int(timeout_s * 1e9)
        try:
            self._wire.send(opening(), timeout_s)
            while not self._frames.settled:
                while (arrived := self._wire.take()) is None:
                    self._wire.wait(left_s(self._clock, until_ns), until_ns)
                if not arrived[2]:
                    raise ConnectionBroken(f"{where} closed the connection before its HTTP/2 was open")
                self._frames.incoming(arrived[2])
        except TimeoutError as error:
            raise TimedOut(f"no HTTP/2 with {where} in {timeout_s:.3g} s: its SETTINGS didn't come") from error
        except OSError as error:
            raise ConnectionBroken(f"no HTTP/2 with {where}: {error.strerror or error}") from error
        if self._wire.opened is not None:
            self._wire.opened = replace(self._wire.opened, http2_ns=self._clock() - begun_ns)

    def begin(self, seen: Seen, timeouts: Timeouts, body_bytes: int) -> None:
        self._exchange = seen, timeouts
        self.unsent = None
        self.begun = False
        self.read_id = 0
        self._silent_since_ns = None
        self._body_bytes = body_bytes
        seen.clock = "kernel" if self._map is not None else "user"
        if self._frames is not None:
            self._frames.begin(body_bytes)

    def is_stale(self) -> bool:
        """Over HTTP/2 a live connection may have brought PINGs, SETTINGS and windows; they are kept for httpcore."""
        if self._frames is None or self.closed:
            return self.closed or self._wire.has_come()
        while not self._frames.spent and self._wire.has_come():
            arrived = self._wire.take()
            if arrived is None or not arrived[2]:
                return True
            try:
                self._frames.incoming(arrived[2])
            except NotHttp:
                return True
        return self._frames.spent

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:  # a request's end, as httpcore writes it
            return
        if self._frames is not None:
            self._write_frames(self._frames, buffer)
        elif (error := self._send(buffer)) is not None:
            raise httpcore.WriteError from error  # upon which it reads: a refusal may have come before all was sent

    def _write_frames(self, frames: Frames, buffer: bytes) -> None:
        """httpcore gives up where it can't write HTTP/2; here it goes on to what there is to be read."""
        of_request = not frames.sent
        out = frames.outgoing(buffer)
        if frames.withheld:
            self._limits[0].sent_ns = None
        if out and self.unsent is None:
            if of_request and frames.begun:
                self._send(out)
            else:
                with suppress(OSError):  # an acknowledgement or a window; the next read will say what is wrong
                    self._wire.send(out, self._limits[1].total_s)

    def _send(self, buffer: bytes) -> ConnectionBroken | None:
        """Bytes of the request. What went wrong, where something did."""
        seen, timeouts = self._limits
        if seen.started_ns is None:
            seen.started_ns = self._clock()
            self._wire.expect(seen.started_ns)
        try:
            waiting.send(self._wire, buffer, timeouts)
        except ConnectionBroken as error:
            self.unsent, seen.sent_ns = error, None
        else:
            seen.sent_ns = self._clock()
        return self.unsent

    @property
    def _limits(self) -> tuple[Seen, Timeouts]:
        assert self._exchange is not None, "`begin` comes first"
        return self._exchange

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Waits as our timeouts say: httpx's read timeout is one number, and it has none for the whole."""
        if self._frames is None:
            return self._arrived()
        while not (frame := self._frames.for_library()):
            if self._frames.cut is not None:
                raise self.broken_off(self._frames.cut)
            if self._rubbish is not None:
                raise self._rubbish
            if self._silent_since_ns is None:
                self._silent_since_ns = self._clock()
            if not (data := self._arrived()):
                return b""
            try:
                self._frames.incoming(data)
            except NotHttp as error:
                self._rubbish = error  # what came before it is still to be read
            if self._frames.heard:
                self._silent_since_ns = None
        return frame

    def _arrived(self) -> bytes:
        seen, timeouts = self._limits
        t_ns, by_kernel, data = waiting.take(self._wire, seen, self.begun, timeouts, self._silent_since_ns)
        self.t_ns = t_ns
        if not data:
            self.ended_by_server = True
            return b""
        if not by_kernel:
            seen.clock = "user"
        self.read_id += 1
        return data

    def broken_off(self, why: str | None = None) -> TransportError:
        """What an answer is told that ends before its end."""
        if why is None and self._frames is not None and self._frames.going is not None:
            why = f"the server went away ({self._frames.going})"
        why = why or "the connection closed"
        if self._limits[0].status is None:
            return self.unsent or ConnectionBroken(f"{why} before the response's headers")
        return BodyCut(f"{why} inside the body")

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Nothing is left to do but in a proxy's tunnel: what was exchanged before was its opening, not the request."""
        if self._secured:
            self._secured = False
            return self
        assert server_hostname is not None
        seen, timeouts = self._limits
        asked_ns = self._clock()
        until_ns = asked_ns + int(timeouts.connect_s * 1e9)
        try:
            wire = self._wire
            self._wire = secured = TlsWire(
                wire.release(), wire.clock, wire.clock_map, self._context, server_hostname, timeouts.connect_s
            )
        except TimeoutError as error:
            raise TimedOut(f"no TLS with {server_hostname} in {timeouts.connect_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(server_hostname, error)) from error
        except OSError as error:
            raise ConnectionBroken(f"no TLS with {server_hostname}: {error.strerror or error}") from error
        assert seen.started_ns is not None
        if wire.opened is not None:
            tunnel_ns, tls_ns = asked_ns - seen.started_ns, self._clock() - asked_ns
            secured.opened = replace(wire.opened, tunnel_ns=tunnel_ns, tls_ns=tls_ns, tls=secured.version)
        if self._http2:
            self.open_http2(server_hostname, max((until_ns - self._clock()) / 1e9, 0))
        seen.connect_ns = (seen.connect_ns or 0) + self._clock() - seen.started_ns
        seen.opened = self._wire.opened
        seen.started_ns = seen.sent_ns = None
        self.begin(seen, timeouts, self._body_bytes)
        return self

    def get_extra_info(self, info: str) -> Any:
        """The TLS, for the protocol it has chosen. Whether an idle connection still lives is looked at in `ready`."""
        return self._wire.tls if info == "ssl_object" and isinstance(self._wire, TlsWire) else None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._wire.close()


class Dialled(httpcore.NetworkBackend):
    """Hands the pool the stream that was opened for it."""

    stream: Stream | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        assert self.stream is not None, "`ready` comes before a request"
        return self.stream


class _Written(Exception):
    pass


class _First(httpcore.NetworkStream):
    """Takes what is written first, and no more."""

    written = b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written = buffer
        raise _Written

    def close(self) -> None:
        pass


@cache
def opening() -> bytes:
    """What httpcore opens each HTTP/2 connection with: the preface, its SETTINGS and its window."""
    url = httpcore.URL("https://localhost/")
    stream = _First()
    with suppress(_Written):
        httpcore.HTTP2Connection(url.origin, stream).handle_request(httpcore.Request("GET", url))
    return stream.written
