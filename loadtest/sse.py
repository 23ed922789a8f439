"""Any split of a `text/event-stream` into reads gives the same events.

Bytes in, events out, nothing kept but the unfinished event. `data` stays bytes: a cut may lie inside a character, and
decoding is the endpoint's business.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT_BYTES = 16 * 2**20

ONE_EVENT = re.compile(rb"data: ?(.*)\n\n").fullmatch  # what nearly every read looks like, where no CR is in it
made = tuple.__new__  # a named tuple's own constructor is Python's, and costs three times as much
_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """A stream that cannot be read as events; the message names the value and the limit."""


class ServerSentEvent(NamedTuple):
    event: str  # "message" where the stream names none
    data: bytes  # the data lines, joined by LF
    id: str | None  # the last id the stream has given up to here; None before the first


class Parser:
    """One stream's parser. The bound is on memory: an event that one read completes is never refused."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._unfinished = bytearray()  # of the event that no blank line has ended yet; every line end is LF
        self._at_start = True  # a byte order mark may still come
        self._after_cr = False  # an LF that comes next belongs to a CR already taken as a line end
        self._between = False  # two events, past the start: the next byte begins a line, and no LF is owed
        self._id: str | None = None

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes, in order.

        Raises: SseError where what is left is longer than the bound on one unfinished event.
        """
        if not data:
            return []
        if self._between and (one := ONE_EVENT(data)) and b"\r" not in data:
            return [made(ServerSentEvent, ("message", one[1], self._id))]
        after_cr, self._after_cr = self._after_cr, data.endswith(b"\r")
        if after_cr and data.startswith(b"\n"):
            data = data[1:]
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._at_start:
            data = self._without_bom(data)

        unfinished = self._unfinished
        searched = len(unfinished)
        unfinished += data
        # From one before the new bytes: the first LF of the blank line's pair may have come with the last read.
        end = unfinished.rfind(b"\n\n", searched - 1 if searched else 0)
        blocks = b""
        if end >= 0:
            blocks = bytes(unfinished[:end])
            del unfinished[: end + 2]
        self._between = not (unfinished or self._after_cr or self._at_start)
        if len(unfinished) > self._max_event_bytes:
            raise SseError(
                f"{len(unfinished):,} bytes came without the blank line that ends an event; "
                f"one event may have {self._max_event_bytes:,}: is this an event stream?"
            )
        if not blocks:
            return []
        return [event for block in blocks.split(b"\n\n") if (event := self._event(block)) is not None]

    def close(self) -> bytes:
        """The bytes that came after the last blank line, line ends as LF: empty unless the stream was cut mid-event."""
        rest = bytes(self._unfinished).lstrip(b"\n")
        self._unfinished.clear()
        return rest

    def _event(self, block: bytes) -> ServerSentEvent | None:
        """The event of the lines between two blank lines; None where none of them is a data line."""
        if block.startswith(b"data: ") and b"\n" not in block:  # what every token event looks like
            return ServerSentEvent("message", block[6:], self._id)
        kind = ""
        lines: list[bytes] = []
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")  # a comment has no name
            value = value.removeprefix(b" ")
            if name == b"data":
                lines.append(value)
            elif name == b"event":
                kind = value.decode(errors="replace")
            elif name == b"id" and b"\0" not in value:
                self._id = value.decode(errors="replace")
        return ServerSentEvent(kind or "message", b"\n".join(lines), self._id) if lines else None

    def _without_bom(self, data: bytes) -> bytes:
        """The unfinished bytes and `data` less the byte order mark; kept back while they could still become one."""
        head = bytes(self._unfinished) + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._unfinished[:] = head
            return b""
        self._unfinished.clear()
        self._at_start = False
        return head.removeprefix(_BOM)
