"""httpx over our own wire: for proxies that the environment names, and to compare with what most clients are made of.

httpx writes the request and frames the answer as it always does; the bytes go through `wire.py`, so `started` is read
right before the first write, every read has the kernel's stamp where there is one, and a connection is opened and
checked before the clock starts. One client a user: shared by all, its pool's bookkeeping would be what is measured.
HTTP/1.1 only. Source: encode/httpcore 1.0, docs/network-backends.md and docs/extensions.md.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from loadtest.transport import waiting
from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    HttpRequest,
    NotHttp,
    Opened,
    Read,
    Seen,
    Target,
    TimedOut,
    Timeouts,
    TransportError,
    monotonic_ns,
)
from loadtest.transport.dial import dial
from loadtest.transport.stamps import ClockMap
from loadtest.transport.tls import untrusted
from loadtest.transport.tls_wire import TlsWire
from loadtest.transport.wire import Wire

UNSENDABLE = "a header can't be sent: leave line ends, outer spaces and all but ASCII out of --header and the key"

logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for every request, and locust would print it


class _Stream(httpcore.NetworkStream):
    """A dialled wire as httpcore has it. It knows the exchange it carries, and raises its errors as they are."""

    def __init__(self, wire: Wire, secured: bool, clock: Clock, clock_map: ClockMap | None) -> None:
        self._wire = wire
        self._secured = secured  # TLS was spoken when the wire was dialled
        self._clock = clock
        self._map = clock_map
        self._exchange: tuple[Seen, Timeouts] | None = None
        self.closed = False
        self.ended_by_server = False
        self.unsent: ConnectionBroken | None = None  # the request could not be sent to its end
        self.begun = False  # a byte of the body has come
        self.read_id = 0
        self.t_ns = 0  # arrival of the last read

    @property
    def opened(self) -> Opened | None:
        return self._wire.opened

    def begin(self, seen: Seen, timeouts: Timeouts) -> None:
        self._exchange = seen, timeouts
        self.unsent = None
        self.begun = False
        self.read_id = 0
        seen.clock = "kernel" if self._map is not None else "user"

    def is_stale(self) -> bool:
        return self.closed or self._wire.is_stale()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:  # a request's end, as httpcore writes it
            return
        assert self._exchange is not None
        seen, timeouts = self._exchange
        if seen.started_ns is None:
            seen.started_ns = self._clock()
            self._wire.expect(seen.started_ns)
        try:
            waiting.send(self._wire, buffer, timeouts)
        except ConnectionBroken as error:
            self.unsent, seen.sent_ns = error, None
            raise httpcore.WriteError from error  # upon which httpcore reads: a refusal may have come before all was sent
        seen.sent_ns = self._clock()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Waits as our timeouts say: httpx's read timeout is one number, and it has none for the whole."""
        assert self._exchange is not None
        seen, timeouts = self._exchange
        t_ns, by_kernel, data = waiting.take(self._wire, seen, self.begun, timeouts)
        self.t_ns = t_ns
        if not data:
            self.ended_by_server = True
            return b""
        if not by_kernel:
            seen.clock = "user"
        self.read_id += 1
        return data

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Nothing is left to do but in a proxy's tunnel: what was exchanged before was its opening, not the request."""
        if self._secured:
            self._secured = False
            return self
        assert self._exchange is not None
        assert server_hostname is not None
        seen, timeouts = self._exchange
        if isinstance(self._wire, TlsWire):
            raise ConnectionBroken("TLS inside a proxy's TLS isn't done here: name the proxy as http://")
        asked_ns = self._clock()
        try:
            wire = self._wire
            self._wire = secured = TlsWire(
                wire.release(), wire.clock, wire.clock_map, ssl_context, server_hostname, timeouts.connect_s
            )
        except TimeoutError as error:
            raise TimedOut(f"no TLS with {server_hostname} in {timeouts.connect_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(server_hostname, error)) from error
        except OSError as error:
            raise ConnectionBroken(f"no TLS with {server_hostname}: {error.strerror or error}") from error
        assert seen.started_ns is not None
        done_ns = self._clock()
        seen.connect_ns = (seen.connect_ns or 0) + done_ns - seen.started_ns
        if wire.opened is not None:
            tunnel_ns, tls_ns = asked_ns - seen.started_ns, done_ns - asked_ns
            seen.opened = replace(wire.opened, tunnel_ns=tunnel_ns, tls_ns=tls_ns, tls=secured.version)
        seen.started_ns = seen.sent_ns = None
        self.begin(seen, timeouts)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Nothing: whether an idle connection still lives is looked at in `ready`, before the clock starts."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._wire.close()


class _Dialled(httpcore.NetworkBackend):
    """Hands the pool the stream that was opened for it."""

    stream: _Stream | None = None

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


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:  # httpcore's own, an iterable with `close`
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx.BaseTransport):
    """What httpx.HTTPTransport does, around a pool of one connection on a backend of ours."""

    def __init__(self, pool: httpcore.ConnectionPool) -> None:
        self._pool = pool

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response.stream))


def proxy_of(target: Target) -> httpx.Proxy | None:
    """The proxy that the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`) names for a target.

    Raises: ConnectionBroken where it names none that httpx could take.
    """
    named = getproxies()
    url = named.get("https" if target.tls else "http") or named.get("all")
    if not url or proxy_bypass(target.host):
        return None
    try:
        return httpx.Proxy(url if "://" in url else f"http://{url}")
    except (ValueError, httpx.InvalidURL):  # which repeat a password
        scheme, there, rest = url.rpartition("://")
        shown = f"{scheme}{there}{rest.rpartition('@')[2]}"
        raise ConnectionBroken(f"the proxy {shown} can't be used: name one as http://, or set no_proxy") from None


def _for_httpcore(proxy: httpx.Proxy, context: ssl.SSLContext) -> httpcore.Proxy:
    url = proxy.url
    return httpcore.Proxy(
        httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=context if url.scheme == "https" else None,
    )


class HttpxConnection:
    """One httpx client with one keep-alive connection to a target, for one greenlet."""

    transport_name = "httpx"

    def __init__(
        self,
        target: Target,
        context: ssl.SSLContext,
        *,
        proxies: bool = True,
        clock: Clock = monotonic_ns,
        clock_map: ClockMap | None = None,
    ) -> None:
        """`context` is for targets under TLS. `proxies`: take those that the environment names. Without `clock_map`
        arrivals are stamped in user space.
        """
        self._target = target
        self._context = context
        self._clock = clock
        self._map = clock_map
        self._proxy = proxy_of(target) if proxies else None
        self._backend = _Dialled()
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            proxy=None if self._proxy is None else _for_httpcore(self._proxy, context),
            max_connections=1,
            network_backend=self._backend,
        )
        unlimited = httpx.Timeout(None)  # the stream waits as our timeouts say
        self._client = httpx.Client(transport=_Transport(self._pool), timeout=unlimited, follow_redirects=False)

    def ready(self, timeout_s: float) -> int | None:
        """Of a proxied target under TLS only the proxy is reached here; its tunnel is opened with the first request."""
        if self._backend.stream is not None and not self._backend.stream.is_stale():
            return None
        self.close()
        before = self._clock()
        to = self._target
        if self._proxy is not None:
            url = self._proxy.url
            if url.scheme not in ("http", "https"):
                raise ConnectionBroken(f"the proxy {url} can't be used: name one as http://, or set no_proxy")
            to = Target(url.host, url.port or (443 if url.scheme == "https" else 80), tls=url.scheme == "https")
        wire = dial(to, timeout_s, self._clock, self._map, self._context)
        self._backend.stream = _Stream(wire, to.tls, self._clock, self._map)
        return self._clock() - before

    def close(self) -> None:
        if self._backend.stream is not None:
            self._backend.stream.close()
            self._backend.stream = None
        self._pool.close()  # it stays usable: the client's own `close` would be the last

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        # Not from the client: its defaults would ask for compression, which holds tokens back.
        try:
            asked = httpx.Request(
                request.method,
                f"{self._target.origin}{self._target.path}{request.path}",
                headers=self._target.headers_of(request),
                content=request.body,
            )
        except UnicodeEncodeError:
            raise ConnectionBroken(UNSENDABLE) from None
        seen.connect_ns = self.ready(timeouts.connect_s)
        stream = self._backend.stream
        assert stream is not None
        seen.opened = None if seen.connect_ns is None else stream.opened
        stream.begin(seen, timeouts)
        response = None
        try:
            response = self._client.send(asked, stream=True)
            seen.headers_ns = stream.t_ns
            seen.status = response.status_code
            seen.headers.update(response.headers)  # names in lower case
            for data in response.iter_raw():
                stream.begun = True
                yield Read(stream.t_ns, stream.read_id, data)
            seen.body_ended, seen.ended_ns = True, stream.t_ns
        except httpcore.ProxyError as error:
            raise ConnectionBroken(f"the proxy refuses: {error}") from error
        except httpcore.LocalProtocolError:  # which repeats the header, and that may be a key
            raise ConnectionBroken(UNSENDABLE) from None
        except httpcore.RemoteProtocolError as error:
            raise self._told(error, seen, stream) from error
        except TransportError:
            if stream.unsent is not None and seen.status is None:
                raise stream.unsent from None
            raise
        finally:
            # An exchange that was left early leaves bytes on the wire: the pool closes the stream then. One that broke
            # off inside a tunnel's opening would keep the pool's only place.
            if response is None:
                self.close()
            else:
                response.close()

    def _told(self, error: httpcore.RemoteProtocolError, seen: Seen, stream: _Stream) -> TransportError:
        if stream.unsent is not None and seen.status is None:
            return stream.unsent
        if not stream.ended_by_server:
            return NotHttp(f"not HTTP/1.1: {error}")
        if seen.status is None:
            return ConnectionBroken("the connection closed before the response's headers")
        return BodyCut("the connection closed inside the body")
