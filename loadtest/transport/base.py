"""The seam to the network: a connection that sends one request at a time and yields what comes back, stamped.

    connection.ready(timeouts.connect_s)          # open, checked, warm: before the clock starts
    for read in connection.exchange(request, seen, timeouts): ...    # `seen` is filled as it happens

Instants are `clock()` nanoseconds, monotonic, of this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

Clock = Callable[[], int]
monotonic_ns: Clock = time.monotonic_ns


class TransportError(Exception):
    """The exchange did not come to its end. The message is the reason, for the sample's `detail`."""


class ConnectionBroken(TransportError):
    """Refused, reset, or closed before the response's headers."""


class BodyCut(TransportError):
    """The connection closed inside a body, before the end that its framing announced."""


class NotHttp(TransportError):
    """What arrived is not HTTP/1.1, or HTTP/2 where that is spoken."""


class TimedOut(TransportError):
    """Nothing arrived in time, or the exchange as a whole took too long."""


class StreamFailed(TransportError):
    """The far end said that the stream it had begun has failed."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: the parts of a base URL. `path` has no trailing slash."""

    host: str
    port: int
    path: str = ""
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # of every request; a key may be among them

    @property
    def origin(self) -> str:
        """`https://[::1]:8443`: scheme, host and port, as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def headers_with(self, own: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """A request's own headers and those of every request, which stand where both name one."""
        if not self.headers:
            return list(own)
        ours = {name.lower() for name, _ in self.headers}
        return [*(each for each in own if each[0].lower() not in ours), *self.headers]

    @property
    def authority(self) -> str:
        """What a `host` header says: a scheme's own port is left out, and signatures count on that."""
        named = self.origin.partition("://")[2]
        return named.removesuffix(":443" if self.tls else ":80")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an exchange may take before it ends with `TimedOut`, in seconds."""

    connect_s: float = 10.0  # name, TCP and TLS, before the clock starts
    first_byte_s: float = 120.0  # without a byte, until the first of the body: many send headers long before it
    gap_s: float = 60.0  # without a byte, from then on
    total_s: float = 600.0  # the whole exchange


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Read(NamedTuple):
    """Body bytes that came out of one read of the socket."""

    t_ns: int  # arrival: see `Seen.clock`
    read_id: int  # counts the reads of one exchange
    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """What a fresh connection cost, in its parts: durations, one after the other."""

    address: str  # that answered; `tcp_ns` has the attempts at others before it
    name_ns: int
    tcp_ns: int
    tunnel_ns: int | None = None  # of a proxy's CONNECT; None without one
    tls_ns: int | None = None  # None without TLS
    tls: str | None = None  # its version
    http2_ns: int | None = None  # of the preface and SETTINGS; None in HTTP/1.1


@dataclass(slots=True)
class Seen:
    """What an exchange has shown so far; None until it happens."""

    connect_ns: int | None = None  # duration of a connect that this exchange needed
    opened: Opened | None = None  # the same in its parts, where the connection is ours
    started_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    status: int | None = None
    http: str | None = None  # `HTTP/1.1` or `HTTP/2`, as answered
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body_ended: bool = False  # the body ended as its framing said
    ended_ns: int | None = None  # arrival of the read that ended it, which need not hold a byte of it
    overloaded: bool = False  # the refusal means: too much at once, whatever its status
    clock: Literal["kernel", "user"] = "user"  # what every arrival so far was stamped by


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, as a library wraps what came from under it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


class Connection(Protocol):
    """One connection, owned by one user; kept open between exchanges."""

    @property
    def transport_name(self) -> str: ...

    def ready(self, timeout_s: float) -> int | None:
        """Make sure a live connection is open. Returns what a fresh one cost in ns, or None where one was open.

        A stale keep-alive connection (closed by the server meanwhile) is found here and replaced.
        Raises: ConnectionBroken, TimedOut.
        """

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        """Send a request and yield the body as it arrives. Calls `ready` first.

        Raises: TransportError: when one of the timeouts passes, or when the wire fails.
        """

    def close(self) -> None: ...


Connect = Callable[[Target], Connection]  # opens nothing yet: `ready` does


def fetch(connection: Connection, request: HttpRequest, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """The status and whole body of a request that nobody times.

    Raises: TransportError.
    """
    seen = Seen()
    timeouts = Timeouts(timeout_s, timeout_s, timeout_s, timeout_s)
    body = b"".join(read.data for read in connection.exchange(request, seen, timeouts))
    assert seen.status is not None, "an exchange that ends without an error has a status"
    return seen.status, body
