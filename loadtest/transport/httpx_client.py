"""httpx over our own wire: for proxies that the environment names, and to compare with what most clients are made of.

httpx writes the request and frames the answer as it always does; the bytes go through `wire.py`, so `started` is read
right before the first write, every read has the kernel's stamp where there is one, and a connection is opened and
checked before the clock starts. One client a user: shared by all, its pool's bookkeeping would be what is measured.
HTTP/1.1, or under TLS HTTP/2 and nothing else, so that a run's requests all went the way that it says.
Source: encode/httpcore 1.0, docs/network-backends.md and docs/extensions.md.
"""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from loadtest import redaction
from loadtest.transport.base import (
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
from loadtest.transport.httpx_stream import Dialled, Stream
from loadtest.transport.stamps import ClockMap

UNSENDABLE = "a header can't be sent: leave line ends, outer spaces and all but ASCII out of --header and the key"

logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for every request, and locust would print it


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
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions={"http_version": response.extensions["http_version"]},
        )


def proxy_of(target: Target) -> httpx.Proxy | None:
    """The proxy that the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`) names for a target.

    Raises: ConnectionBroken where it names none that httpx could take.
    """
    named = getproxies()
    url = named.get("https" if target.tls else "http") or named.get("all")
    if not url or proxy_bypass(f"{target.host}:{target.port}"):
        return None
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
    except (ValueError, httpx.InvalidURL):  # which repeat a password
        scheme, there, rest = url.rpartition("://")
        shown = f"{scheme}{there}{rest.rpartition('@')[2]}"
        raise ConnectionBroken(f"the proxy {shown} can't be used: name one as http://, or set no_proxy") from None
    if proxy.raw_auth is not None:
        redaction.keep(f"Basic {base64.b64encode(b':'.join(proxy.raw_auth)).decode()}")
    return proxy


def _for_httpcore(proxy: httpx.Proxy, context: ssl.SSLContext) -> httpcore.Proxy:
    url = proxy.url
    return httpcore.Proxy(
        httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=context if url.scheme == "https" else None,
    )


@cache
def _for_the_pool() -> ssl.SSLContext:
    """What httpcore takes to be our TLS, and sets protocols on. The wire was dialled with a context of ours."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _broken_frames() -> tuple[type[Exception], ...]:
    """What httpcore lets through of the library under it."""
    try:
        from h2.exceptions import H2Error
    except ModuleNotFoundError:
        return ()
    return (H2Error,)


BROKEN_FRAMES = _broken_frames()


class HttpxConnection:
    """One httpx client with one keep-alive connection to a target, for one greenlet."""

    transport_name = "httpx"

    def __init__(
        self,
        target: Target,
        context: ssl.SSLContext,
        *,
        http2: bool = False,
        proxies: bool = True,
        clock: Clock = monotonic_ns,
        clock_map: ClockMap | None = None,
    ) -> None:
        """`context` is for targets under TLS; with `http2` it offers that. `proxies`: take those that the environment
        names. Without `clock_map` arrivals are stamped in user space.

        Raises: ConnectionBroken where there is no way to the target.
        """
        if http2 and not target.tls:
            raise ConnectionBroken(f"{target.origin} is without TLS, which HTTP/2 is spoken under: leave --http2 out")
        self._target = target
        self._context = context
        self._http2 = http2
        self._clock = clock
        self._map = clock_map
        self._proxy = proxy_of(target) if proxies else None
        self._backend = Dialled()
        self._pool = httpcore.ConnectionPool(
            ssl_context=_for_the_pool(),
            proxy=None if self._proxy is None else _for_httpcore(self._proxy, _for_the_pool()),
            max_connections=1,
            http2=http2,
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
        to = self._target if self._proxy is None else _way_to(self._proxy, self._target)
        wire = dial(to, timeout_s, self._clock, self._map, self._context)
        stream = Stream(wire, self._context, self._http2, self._clock, self._map)
        self._backend.stream = stream
        if self._http2 and self._proxy is None:
            try:
                stream.open_http2(f"{to.host}:{to.port}", max(timeout_s - (self._clock() - before) / 1e9, 0))
            except BaseException:
                self.close()
                raise
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
                headers=self._target.headers_with(request.headers),
                content=request.body,
            )
        except UnicodeEncodeError:
            raise ConnectionBroken(UNSENDABLE) from None
        seen.connect_ns = self.ready(timeouts.connect_s)
        stream = self._backend.stream
        assert stream is not None
        seen.opened = None if seen.connect_ns is None else stream.opened
        stream.begin(seen, timeouts, len(request.body))
        response = None
        try:
            response = self._answered(asked)
            seen.headers_ns = stream.t_ns
            seen.status = response.status_code
            seen.http = response.http_version
            seen.headers.update(response.headers)  # names in lower case
            for data in response.iter_raw():
                stream.begun = True
                yield Read(stream.t_ns, stream.read_id, data)
            seen.body_ended, seen.ended_ns = True, stream.t_ns
        except httpcore.ProxyError as error:
            raise ConnectionBroken(f"the proxy refuses: {error}") from error
        except httpcore.LocalProtocolError as error:
            if seen.started_ns is not None:
                raise self._not_http(error) from error  # h2's word for a frame that mustn't come
            raise ConnectionBroken(UNSENDABLE) from None  # not from the error: it repeats the header, maybe a key
        except httpcore.RemoteProtocolError as error:
            if not stream.ended_by_server:
                raise self._not_http(error) from error
            raise stream.broken_off() from error
        except BROKEN_FRAMES as error:
            raise self._not_http(error) from error
        except TransportError:
            if stream.unsent is not None and seen.status is None:
                raise stream.unsent from None
            raise
        finally:
            # An exchange that was left early leaves bytes on the wire, and over HTTP/2 a stream that goes on. One that
            # broke off inside a tunnel's opening would keep the pool's only place.
            if response is not None:
                response.close()
            if not seen.body_ended or stream.spent:
                self.close()

    def _answered(self, asked: httpx.Request) -> httpx.Response:
        """The head of the answer. Raises: NotHttp where httpcore takes a status for a number that is none."""
        try:
            return self._client.send(asked, stream=True)
        except ValueError as error:
            raise self._not_http(error) from error

    def _not_http(self, error: Exception) -> NotHttp:
        return NotHttp(f"not {'HTTP/2' if self._http2 else 'HTTP/1.1'}: {error}")


def _way_to(proxy: httpx.Proxy, target: Target) -> Target:
    """Raises: ConnectionBroken where the proxy can't be used."""
    url = proxy.url
    if url.scheme not in ("http", "https"):
        raise ConnectionBroken(f"the proxy {url} can't be used: name one as http://, or set no_proxy")
    if url.scheme == "https" and target.tls:
        raise ConnectionBroken("TLS inside a proxy's TLS isn't done here: name the proxy as http://")
    return Target(url.host, url.port or (443 if url.scheme == "https" else 80), tls=url.scheme == "https")
