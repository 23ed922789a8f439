"""A probe measures with the code that a run does; what a sample doesn't keep is noted beside the way of the bytes.

`Witness` stands between `measure` and the connection and keeps what passes. The events are then read a second time from
what was kept, so that those without a token are seen as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loadtest.endpoints.base import Endpoint, Reading
from loadtest.measure import UNREADABLE, other_than_asked
from loadtest.sample import Sample
from loadtest.sse import Parser, ServerSentEvent, SseError
from loadtest.transport.base import Connection, HttpRequest, Opened, Read, Seen, Timeouts


@dataclass(frozen=True, slots=True)
class Noted:
    """One event of the stream, with or without tokens."""

    t_ns: int
    read_id: int
    reading: Reading
    is_done: bool = False  # OpenAI's `[DONE]`


@dataclass(frozen=True, slots=True)
class Probed:
    """One request: its sample, and what a sample doesn't keep."""

    sample: Sample
    events: tuple[Noted, ...]
    headers: Mapping[str, str]  # of the reply, names in lower case
    body_ended: bool  # as its framing said
    opened: Opened | None  # None: nothing was opened, or a library did it
    http: str | None = None  # `HTTP/1.1` or `HTTP/2`, as answered

    @property
    def text(self) -> str:
        return "".join(event.reading.text for event in self.events)


class Witness:
    """A connection that keeps what its last exchange brought."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen = Seen()
        self._reads: list[Read] = []

    @property
    def transport_name(self) -> str:
        return self._connection.transport_name

    def ready(self, timeout_s: float) -> int | None:
        return self._connection.ready(timeout_s)

    def close(self) -> None:
        self._connection.close()

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        self._seen, self._reads = seen, []
        for read in self._connection.exchange(request, seen, timeouts):
            self._reads.append(read)
            yield read

    def probed(self, sample: Sample, endpoint: Endpoint) -> Probed:
        """What is known of the exchange that this sample is of."""
        seen = self._seen
        return Probed(sample, tuple(self._noted(endpoint)), dict(seen.headers), seen.body_ended, seen.opened, seen.http)

    def _noted(self, endpoint: Endpoint) -> Iterator[Noted]:
        if self._seen.status != 200 or other_than_asked(self._seen, endpoint) or not self._reads:
            return
        if endpoint.streams:
            yield from read_again(self._reads, endpoint)
        elif self._seen.body_ended:
            whole = endpoint.read_whole(b"".join(read.data for read in self._reads), self._seen.headers)
            yield Noted(self._reads[-1].t_ns, 1, whole)


def read_again(reads: Sequence[Read], endpoint: Endpoint) -> Iterator[Noted]:
    """Every event of a stream, as `measure` has read it."""
    parser = Parser()
    for read in reads:
        try:
            events = parser.feed(read.data)
        except SseError:  # the sample's verdict says so
            return
        for event in events:
            yield Noted(read.t_ns, read.read_id, _reading(event, endpoint), event.data.strip() == b"[DONE]")


def _reading(event: ServerSentEvent, endpoint: Endpoint) -> Reading:
    try:
        return endpoint.read(event)
    except UNREADABLE as error:
        return Reading(error=f"an event can't be read: {error!r}")
