"""HTTP/2's frames on their way: what opens a connection, where a request begins and ends, and what breaks it off.

The library over the wire (httpcore, by h2) makes and reads the frames; this looks at their heads as they pass, both
ways, and keeps three things from it that it doesn't survive or can't tell apart:

- GOAWAY. A server that closes in order finishes the streams it has begun; to h2 the connection is over at once.
- RST_STREAM, which means nothing for an answer that is whole, and is the reason where it isn't.
- That a server has answered in full before all was sent (413, and the rest of the body stays here): the library is let
  on to its answer by windows of our own, and what it still sends goes nowhere.

Pure: bytes in, bytes out. Source: RFC 9113, sections 3.4, 4.1, 5.2, 6, 7, 8.1.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from loadtest.transport.base import NotHttp

MAGIC = b"PRI * HTTP/2.0"
HEAD_BYTES = 9
MOST_BYTES = 16384  # of a frame's payload: SETTINGS_MAX_FRAME_SIZE, which httpcore leaves as it is
WINDOW_BYTES = 65535  # that a connection begins with
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x7, 0x8
END_STREAM = ACK = 0x1
PAYLOADS = {RST_STREAM: (4, 4), WINDOW_UPDATE: (4, 4), GOAWAY: (8, MOST_BYTES)}  # bytes, least and most
ERRORS = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR "
    "REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int  # 0: the connection's own
    whole: bytes  # head and payload

    @property
    def ends_stream(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    def number(self, at: int) -> int:
        """Four bytes of the payload."""
        begin = HEAD_BYTES + at
        return int.from_bytes(self.whole[begin : begin + 4], "big")


class Frames:
    """One connection's frames, and one request at a time on it, as httpcore's pool of one has it."""

    def __init__(self) -> None:
        self.settled = False  # the server's SETTINGS have come: it speaks HTTP/2
        self.spent = False  # no further request may use the connection
        self.going: str | None = None  # the error that the server went away with
        self._rest = b""  # of the server's bytes, not a whole frame yet
        self._arrived: deque[bytes] = deque()  # frames that the library hasn't read
        self._window = WINDOW_BYTES  # of the connection, for what the library sends
        self.begin(0)

    def begin(self, body_bytes: int) -> None:
        """The next request, of so long a body."""
        self._stream = 0  # of the request, once its headers were written
        self._unsent_bytes = body_bytes
        self.sent = False  # to its end, as far as the library knows
        self.answered = False  # to its end
        self.withheld = False  # some of the request wasn't sent, since it was answered before
        self.cut: str | None = None  # why there will be no more of the answer
        self.heard = False  # something of this request came with the last bytes

    @property
    def begun(self) -> bool:
        return self._stream != 0

    def outgoing(self, written: bytes) -> bytes:
        """What the library has written, as far as it is to be sent. What opens a connection was, when it was opened."""
        if written.startswith(MAGIC):
            return b""
        out = []
        for frame in _whole(written):
            if frame.kind == HEADERS:
                self._stream = frame.stream
            elif frame.kind == DATA:
                carried = len(frame.whole) - HEAD_BYTES
                self._window -= carried
                self._unsent_bytes -= carried
            if not (self.answered and frame.stream == self._stream):
                out.append(frame.whole)
            elif not self.sent:
                self.withheld = True
            self.sent = self.sent or frame.ends_stream
        return b"".join(out)

    def incoming(self, data: bytes) -> None:
        """Sort what one read of the wire brought. Raises: NotHttp."""
        self._rest += data
        self.heard = False
        while (frame := self._next()) is not None:
            if not self.settled and (frame.kind != SETTINGS or frame.flags & ACK):
                raise NotHttp("not HTTP/2: it doesn't begin with SETTINGS")
            self.settled = True
            own = self.begun and frame.stream == self._stream
            self.heard = self.heard or own
            if frame.kind == GOAWAY:
                self._goes_away(frame)
            elif own and frame.kind == RST_STREAM:
                self._reset(frame)
            else:
                self.answered = self.answered or (own and frame.ends_stream)
                if frame.kind == WINDOW_UPDATE and not frame.stream:
                    self._window += frame.number(0)
                self._arrived.append(frame.whole)

    def for_library(self) -> bytes:
        """The next frame that it should read; nothing where none has come. One at a time: of several it would forget
        those before a broken one.
        """
        if self._arrived:
            return self._arrived.popleft()
        if self.answered and not self.sent:
            self.spent = True  # the server's windows and ours are no longer the same
            return self._let_on()
        return b""

    def _let_on(self) -> bytes:
        """A window for the rest of the body, where the library waits for one: the connection's or the stream's."""
        more, stream = max(self._unsent_bytes, 1), self._stream
        if self._window <= 0:
            self._window, stream = self._window + more, 0
        return b"".join(
            part.to_bytes(size, "big") for part, size in ((4, 3), (WINDOW_UPDATE, 1), (0, 1), (stream, 4), (more, 4))
        )

    def _next(self) -> Frame | None:
        if len(self._rest) < HEAD_BYTES:
            return None
        payload_bytes = int.from_bytes(self._rest[:3], "big")
        if payload_bytes > MOST_BYTES:
            raise NotHttp(f"not HTTP/2: a frame of {payload_bytes:,} bytes, {MOST_BYTES:,} are allowed")
        if len(self._rest) < HEAD_BYTES + payload_bytes:
            return None
        frame, self._rest = _first(self._rest)
        least, most = PAYLOADS.get(frame.kind, (0, MOST_BYTES))
        if not least <= payload_bytes <= most:
            raise NotHttp(f"not HTTP/2: a frame of type {frame.kind} with {payload_bytes} bytes")
        return frame

    def _goes_away(self, frame: Frame) -> None:
        """A request with a number above the last one that it names isn't answered; one up to it may be."""
        self.spent = True
        last, error = frame.number(0) & 0x7FFFFFFF, frame.number(4)
        if error:
            self.going = _named(error)
        if self.begun and last < self._stream:
            self.cut = f"the server went away without taking the request ({_named(error)})"

    def _reset(self, frame: Frame) -> None:
        """After a whole answer it only says that the rest of the request isn't wanted."""
        if not self.answered:
            self.cut = f"the stream was reset ({_named(frame.number(0))})"


def _named(error: int) -> str:
    return ERRORS[error] if error < len(ERRORS) else f"error {error:#x}"


def _first(data: bytes) -> tuple[Frame, bytes]:
    """The frame that whole frames begin with, and the rest."""
    end = HEAD_BYTES + int.from_bytes(data[:3], "big")
    stream = int.from_bytes(data[5:9], "big") & 0x7FFFFFFF
    return Frame(data[3], data[4], stream, data[:end]), data[end:]


def _whole(data: bytes) -> list[Frame]:
    frames = []
    while data:
        frame, data = _first(data)
        frames.append(frame)
    return frames
