"""The seam to the network: a connection that sends one request at a time and yields what comes back, stamped.

    connection.ready(timeout_s)                    # open, checked, warm: before the clock starts
    for read in connection.exchange(request, seen): ...   # `seen` is filled as it happens, so a failure loses nothing

Instants are `clock()` nanoseconds, monotonic, of this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

Clock = Callable[[], int]
monotonic_ns: Clock = time.monotonic_ns


class TransportError(Exception):
    """The exchange did not come to its end. The message is the reason, for the sample's `detail`."""


class ConnectionBroken(TransportError):
    """Refused, reset, or closed before the response's headers."""


class BodyCut(TransportError):
    """The connection closed inside a body, before the end that its framing announced."""


class NotHttp(TransportError):
    """What arrived is not HTTP/1.1."""


class TimedOut(TransportError):
    """Nothing arrived in time, or the exchange as a whole took too long."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: the parts of a base URL. `path` has no trailing slash."""

    host: str
    port: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Read:
    """Body bytes that came out of one read of the socket."""

    t_ns: int  # arrival: see the connection's `clock_name`
    read_id: int  # counts the reads of one exchange
    data: bytes


@dataclass(slots=True)
class Seen:
    """What an exchange has shown so far; None until it happens."""

    connect_ns: int | None = None  # duration of a connect that this exchange needed
    started_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body_ended: bool = False  # the body ended as its framing said


class Connection(Protocol):
    """One connection, owned by one user; kept open between exchanges."""

    @property
    def transport_name(self) -> str: ...

    @property
    def clock_name(self) -> str:
        """`kernel`: an arrival is the kernel's receive stamp. `user`: the clock is read after the read returns."""

    def ready(self, timeout_s: float) -> int | None:
        """Make sure a live connection is open. Returns what a fresh one cost in ns, or None where one was open.

        A stale keep-alive connection (closed by the server meanwhile) is found here and replaced.
        Raises: ConnectionBroken, TimedOut.
        """

    def exchange(self, request: HttpRequest, seen: Seen, idle_s: float, total_s: float) -> Iterator[Read]:
        """Send a request and yield the body as it arrives. Calls `ready` first.

        Raises: TransportError: after `idle_s` without a byte, after `total_s` in all, or when the wire fails.
        """

    def close(self) -> None: ...


def fetch(connection: Connection, request: HttpRequest, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """The status and whole body of a request that nobody times.

    Raises: TransportError.
    """
    seen = Seen()
    body = b"".join(read.data for read in connection.exchange(request, seen, timeout_s, timeout_s))
    assert seen.status is not None, "an exchange that ends without an error has a status"
    return seen.status, body
