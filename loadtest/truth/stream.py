"""One client of the truth server: what was sent to it and when, and the bytes that its socket hasn't taken yet."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from loadtest.transport import stamps


@dataclass(slots=True)
class Record:
    """What was really done for one stream. Monotonic nanoseconds; a stamp is taken before its send."""

    request_id: str
    route: str
    received_ns: int  # the request's last segment by the kernel, or the clock after the read of it
    received_clock: Literal["kernel", "user"]
    due_ns: list[int]  # one for each token asked for
    headers_ns: int = 0
    sent_ns: list[int] = field(default_factory=list)  # one for each token sent
    delayed: list[int] = field(default_factory=list)  # tokens that the socket didn't take whole at once, from 0
    outcome: Literal["open", "complete", "cut"] = "open"

    def line(self) -> bytes:
        """As JSON, with the server's own lateness: sent − due, nearest rank."""
        late = sorted(sent - due for sent, due in zip(self.sent_ns, self.due_ns, strict=False))
        ranks = {name: late[math.ceil(q * len(late)) - 1] for name, q in (("p50", 0.5), ("p99", 0.99)) if late}
        late_ns = {**ranks, "max": late[-1]} if late else None
        return json.dumps({**asdict(self), "late_ns": late_ns}).encode() + b"\n"


class Connection:
    """One client's socket and what it is owed: unsent bytes, a stream, or pieces of a long reply."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stamped = stamps.enable(sock)
        self.received = bytearray()
        self.received_ns = 0  # when the last of it came in
        self.received_clock: Literal["kernel", "user"] = "user"
        self.unsent = bytearray()
        self.record: Record | None = None
        self.chunks: list[bytes] = []
        self.pieces: Iterator[bytes] | None = None
        self.waits_for_room = False  # a drain: off the heap until the socket has taken what is unsent
        self.closes = False  # after the present reply
        self.closed = False

    def write(self, data: bytes) -> bool:
        """Whether the socket took it all at once. Raises: OSError."""
        if not self.unsent:
            try:
                taken = self.sock.send(data)
            except BlockingIOError:
                taken = 0
            if taken == len(data):
                return True
            data = data[taken:]
        self.unsent += data
        return False

    def flush(self) -> None:
        """Raises: OSError."""
        try:
            del self.unsent[: self.sock.send(self.unsent)]
        except BlockingIOError:
            return
