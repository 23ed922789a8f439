"""Every request gets one verdict; only `complete` enters a latency figure.

A stream is complete by its protocol's own end. How the body ended is no proof: a proxy that gives up closes a
connection as politely as a server that is done.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    COMPLETE = "complete"
    STOPPED_EARLY = "stopped_early"  # a proper end with fewer tokens than demanded, although EOS was suppressed
    TRUNCATED = "truncated"  # the body ended, the protocol did not
    ERROR_IN_STREAM = "error_in_stream"  # HTTP 200, then an error event or bytes that are no event at all
    EMPTY = "empty"  # a proper end without a single token
    HTTP_ERROR = "http_error"  # a status that is not 200, and not overload
    OVERLOADED = "overloaded"  # 429 or 503, or a refusal by another name for them
    TIMEOUT = "timeout"  # nothing arrived for too long, or the whole took too long
    CONNECTION = "connection"  # refused, reset, or gone before the headers
    CANCELLED = "cancelled"  # we ended it


class Outcome(NamedTuple):  # made while streams wait: a tuple costs a third of a frozen dataclass
    """What was seen of one exchange, before judgement."""

    status: int | None = None  # HTTP status; None where none arrived
    overloaded: bool = False  # the refusal said so by its name
    tokens: int = 0  # tokens that arrived, by the server's own count where it gave one
    demanded: int = 0  # new tokens asked for, EOS suppressed
    finished: bool = (
        False  # the protocol's own end was read, and a clean end of the body where the protocol asks for it
    )
    error: str | None = None  # an error event, or what could not be read
    broken: str | None = None  # the connection failed: the reason
    timed_out: str | None = None  # which limit passed
    cancelled: bool = False


def judge(seen: Outcome) -> tuple[Verdict, str | None]:
    """The verdict and, where it is not `complete`, one sentence of detail.

    The order matters: our own cancellation first, then what the server said, then what the wire did. What happens on
    the wire after the protocol's own end no longer matters.
    """
    if seen.cancelled:
        return Verdict.CANCELLED, "ended by the client"
    if seen.overloaded or seen.status in (429, 503):
        return Verdict.OVERLOADED, f"HTTP {seen.status}: {seen.error or 'no message'}"
    if seen.status is not None and seen.status != 200:
        return Verdict.HTTP_ERROR, f"HTTP {seen.status}: {seen.error or 'no message'}"
    if seen.error is not None:
        return Verdict.ERROR_IN_STREAM, seen.error
    if not seen.finished:
        if seen.timed_out is not None:
            return Verdict.TIMEOUT, seen.timed_out
        if seen.broken is not None:
            return Verdict.CONNECTION, seen.broken
        return (
            Verdict.TRUNCATED,
            f"the body ended after {seen.tokens} of {seen.demanded} tokens, before the stream's own end",
        )
    if seen.tokens == 0:
        return Verdict.EMPTY, "the stream ended properly without a token"
    if seen.tokens < seen.demanded:
        return Verdict.STOPPED_EARLY, f"{seen.tokens} of {seen.demanded} tokens although EOS was suppressed"
    return Verdict.COMPLETE, None
