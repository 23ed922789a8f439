"""One request, from the clock's start to its verdict: every instant of a sample is taken in these two files.

`started` is read by the transport immediately before the first write, arrivals right after each read; here they are
only put in their places. See loadtest/transport/gevent_socket.py for the clock readings themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gevent import GreenletExit

from loadtest.endpoints.base import NOTHING_ELSE, Endpoint, Prompt, Reading
from loadtest.plan import Asked, Cell
from loadtest.redaction import hidden
from loadtest.sample import Event, Got, Sample
from loadtest.sse import Parser, SseError
from loadtest.transport.base import (
    BodyCut,
    Clock,
    Connection,
    NotHttp,
    Seen,
    StreamFailed,
    TimedOut,
    Timeouts,
    TransportError,
    monotonic_ns,
)
from loadtest.verdict import Outcome, judge

UNCODED = ("identity", "none", "")  # content-encodings that are none
LONGEST_ERROR_BODY = 65536  # bytes kept of a body whose status is not 200
MOST_TOKENS_A_CHARACTER = 4  # one a byte
LONGEST_BODY = 2**24  # bytes kept of a reply that comes whole
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # what an event can do to its reader


class Order(NamedTuple):
    """One request that the plan wants sent."""

    id: str
    cell: Cell
    phase: str
    prompt: Prompt
    scheduled_ns: int
    asked: Asked | None = None  # its own; None: what the cell says


@dataclass(slots=True)
class Tally:
    """What the stream has said so far."""

    events: list[Event]
    began: Callable[[int], None]  # told when the first token came
    tokens: int = 0
    first_text_ns: int | None = None
    finished: bool = False
    stopped: bool = False
    full: bool = False
    error: str | None = None
    input_tokens: int | None = None
    new_tokens: int | None = None
    server: dict[str, Any] | None = None


def measure(
    connection: Connection,
    endpoint: Endpoint,
    order: Order,
    *,
    run: str,
    process: int,
    user: int,
    timeouts: Timeouts,
    connect_ns: int | None = None,
    clock: Clock = monotonic_ns,
    first_token: Callable[[int], None] = lambda _: None,
) -> Sample:
    """Send one request and keep everything that was seen of it. Nothing that an endpoint does raises here.

    connect_ns: what a fresh connection cost between `scheduled` and this call; one that is needed here takes its place.
    first_token: told at once, and never of a reply that comes whole.
    A greenlet that is killed meanwhile gives a `cancelled` sample; the caller sees GreenletExit at its next switch.
    """
    seen, parser = Seen(), Parser()

    def began(t_ns: int) -> None:
        if endpoint.streams and seen.started_ns is not None:
            first_token(t_ns - seen.started_ns)

    tally = Tally([], began)
    demanded = order.cell.demands(order.asked)
    request = endpoint.request(order.prompt, demanded.new_tokens, order.id, demanded.input_tokens)
    body = bytearray()  # of an error, or of a reply that comes whole
    broken = timed_out = None
    cancelled = False
    last_ns: int | None = None
    body_bytes = 0
    try:
        as_asked: bool | None = None  # as soon as the headers say
        for read in connection.exchange(request, seen, timeouts):
            last_ns = read.t_ns
            body_bytes += len(read.data)
            if as_asked is None:
                as_asked = seen.status == 200 and not other_than_asked(seen, endpoint)
            if not (as_asked and endpoint.streams):
                body += read.data[: (LONGEST_BODY if as_asked else LONGEST_ERROR_BODY) - len(body)]
                continue
            for event in parser.feed(read.data):
                try:
                    reading = endpoint.read(event)
                except UNREADABLE as error:  # a stranger's bytes may be anything, and cost no more than this request
                    reading = Reading(error=f"an event can't be read: {error!r}")
                _take(tally, reading, read.t_ns, read.read_id)
    except TimedOut as error:
        timed_out = str(error)
    except (NotHttp, SseError, StreamFailed) as error:
        tally.error = tally.error or str(error)
    except BodyCut:
        pass  # whether the stream's own end came before the cut decides
    except TransportError as error:
        broken = str(error)
    except GreenletExit:
        cancelled = True
        connection.close()
    else:
        last_ns = last_ns or seen.headers_ns
        if as_asked and not endpoint.streams and last_ns is not None:
            whole = endpoint.read_whole(bytes(body), seen.headers)
            _take(tally, whole._replace(text=""), last_ns, 1)  # nobody saw when its text began
    ended_ns = seen.ended_ns if seen.body_ended and seen.ended_ns is not None else clock()
    if seen.status == 200 and (instead := other_than_asked(seen, endpoint)):
        tally.error = f"{instead}, not {endpoint.media_type}: {endpoint.error_of(bytes(body))}"
    elif seen.status is not None and 300 <= seen.status < 400 and "location" in seen.headers:
        tally.error = f"redirects to {seen.headers['location']!r}: measure that URL itself"
    elif seen.status not in (None, 200):
        tally.error = endpoint.error_of(bytes(body))
    # A server's count is of a finished reply: it neither fills up one that broke off nor makes tokens that never came.
    counted = (tally.new_tokens or None) if tally.finished and tally.events else None
    new_tokens = tally.tokens if counted is None else counted
    verdict, detail = judge(
        Outcome(
            status=seen.status,
            overloaded=seen.overloaded,
            tokens=new_tokens,
            demanded=0 if ended_rightly(tally, endpoint, counted, demanded.new_tokens) else demanded.new_tokens,
            finished=tally.finished and (seen.body_ended or not endpoint.needs_clean_end),
            error=tally.error,
            broken=broken,
            timed_out=timed_out,
            cancelled=cancelled,
        )
    )
    return Sample(
        run=run,
        id=order.id,
        process=process,
        user=user,
        cell=order.cell,
        phase=order.phase,
        got=Got(tally.input_tokens, new_tokens, "events" if counted is None else "server"),
        scheduled_ns=order.scheduled_ns,
        connect_ns=connect_ns if seen.connect_ns is None else seen.connect_ns,
        started_ns=seen.started_ns,
        sent_ns=seen.sent_ns,
        headers_ns=seen.headers_ns,
        events=tuple(tally.events),
        first_text_ns=tally.first_text_ns,
        ended_ns=ended_ns,
        clock=seen.clock,
        transport=connection.transport_name,
        verdict=verdict,
        detail=hidden(detail),
        status=seen.status,
        server=hidden(tally.server),
        asked=order.asked,
        streamed=endpoint.streams,
        body_bytes=body_bytes,
    )


def ended_rightly(tally: Tally, endpoint: Endpoint, counted: int | None, demanded: int) -> bool:
    """Whether an end is one whatever the number of tokens: the model's own, where nobody suppresses that; or the length
    that was asked for, where only events could be counted: a token without a text of its own may have none. A
    character takes four bytes at most, so one ends with every fourth token or sooner.
    """
    if tally.stopped:
        return not endpoint.suppresses_eos
    return tally.full and counted is None and MOST_TOKENS_A_CHARACTER * tally.tokens >= demanded


def other_than_asked(seen: Seen, endpoint: Endpoint) -> str | None:
    """What a reply is instead of one that can be read as it comes: its type, or its compression."""
    kind, coding = seen.headers.get("content-type", endpoint.media_type), seen.headers.get("content-encoding")
    if coding is not None and coding.lower() not in UNCODED:
        return f"the answer is compressed ({coding})"
    return None if kind.lower().startswith(endpoint.media_type) else f"the answer is {kind}"


def _take(tally: Tally, reading: Reading, t_ns: int, read_id: int) -> None:
    """Enter what an event says. The first error stands; tokens after it are still recorded."""
    if reading.tokens:
        if not tally.events:
            tally.began(t_ns)
        tally.events.append((t_ns, reading.tokens, read_id))
        tally.tokens += reading.tokens
    if reading.text and tally.first_text_ns is None:
        tally.first_text_ns = t_ns
    if reading[2:] == NOTHING_ELSE:
        return
    tally.finished = tally.finished or reading.finished
    tally.stopped = tally.stopped or reading.stopped
    tally.full = tally.full or reading.full
    tally.error = tally.error or reading.error
    tally.server = reading.server or tally.server
    if reading.input_tokens is not None:
        tally.input_tokens = reading.input_tokens
    if reading.new_tokens is not None:
        tally.new_tokens = reading.new_tokens  # the last stands: it may come with every event, or after the finish
