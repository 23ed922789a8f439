"""The truth server's loop: one thread that never blocks, a heap of due times, one send for each token.

What it promises about its stamps is in truth.py.
"""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections.abc import Iterator
from functools import partial
from heapq import heappop, heappush, heapreplace
from itertools import accumulate

from loadtest.transport import stamps
from loadtest.truth.schedule import Schedule
from loadtest.truth.stream import Connection, Record
from loadtest.truth.wire import BODY_END, INFO, Refused, Request, Script, Scripts, chunk, reply, stream_head, words

READ_BYTES = 65536
MOST_UNREAD_BYTES = 1 << 23  # received behind a request that is being answered
MOST_WAIT_S = 0.25  # until a signal is noticed
MOST_SENDS = 64  # tokens sent before the sockets are looked at again
DRAIN_TOKENS = 32
RECORDS_A_PIECE = 4  # of GET /truth: what one turn of the loop spends on it


class Server:
    def __init__(self, schedule: Schedule, scripts: Scripts, openai: bool = False, port: int = 0) -> None:
        self.schedule, self.scripts, self.openai = schedule, scripts, openai
        self.records: list[Record] = []
        self.stopping = False
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        stamps.enable(self.listener)  # segments that come in before their connection is accepted get a stamp too
        self.poller = selectors.DefaultSelector()
        self.poller.register(self.listener, selectors.EVENT_READ, self._accept)
        self._map = stamps.ClockMap()
        self._began_ns = time.monotonic_ns()
        self._heap: list[tuple[int, int, Connection]] = []  # (due, stream, its connection)
        self._streams = 0

    def serve(self) -> None:
        """Until `stopping`. epoll waits whole milliseconds only; select() on its descriptor waits microseconds."""
        while not self.stopping:
            wait_s = MOST_WAIT_S
            if self._heap:
                wait_s = min(wait_s, max(0.0, (self._heap[0][0] - time.monotonic_ns()) / 1e9))
            if select.select([self.poller], [], [], wait_s)[0]:
                for key, mask in self.poller.select(0):
                    key.data(mask)
                    self._send_due()  # a burst of requests must not hold up the tokens
            self._send_due()

    def _send_due(self) -> None:
        heap, clock = self._heap, time.monotonic_ns
        send = self._drain if self.schedule.gap_s == 0 else self._send
        for _ in range(MOST_SENDS):
            if not heap or heap[0][0] > clock():
                return
            _, number, connection = heap[0]
            try:
                due_ns = None if connection.closed else send(connection)
            except OSError:
                self._drop(connection)
                due_ns = None
            if due_ns is None:
                heappop(heap)
                if not connection.closed:
                    self._settle(connection)
            else:
                heapreplace(heap, (due_ns, number, connection))

    def _send(self, connection: Connection) -> int | None:
        """The next token, one send; when the one after it is due."""
        record = connection.record
        assert record is not None
        index = len(record.sent_ns)
        data = connection.chunks[index]
        now_ns = time.monotonic_ns()
        whole = connection.write(data)
        record.sent_ns.append(now_ns)
        if not whole:
            record.delayed.append(index)
            self._watch(connection)
        return record.due_ns[index + 1] if index + 1 < len(record.due_ns) else None

    def _drain(self, connection: Connection) -> int | None:
        """The next tokens in one send; now, if the socket took them all, is when the next are due."""
        record = connection.record
        assert record is not None
        index = len(record.sent_ns)
        data = b"".join(connection.chunks[index : index + DRAIN_TOKENS])
        last = min(index + DRAIN_TOKENS, len(record.due_ns))
        now_ns = time.monotonic_ns()
        whole = connection.write(data)
        record.sent_ns += [now_ns] * (last - index)
        if not whole:
            record.delayed += range(index, last)
            connection.waits_for_room = True
            self._watch(connection)
        return now_ns if whole and last < len(record.due_ns) else None

    def _settle(self, connection: Connection) -> None:
        """After anything was sent or read: go on with what the connection is owed, then with its next request."""
        try:
            while not connection.unsent:
                if connection.record is not None:
                    if len(connection.record.sent_ns) < len(connection.record.due_ns):
                        break
                    connection.record.outcome = "complete"
                    connection.record = None
                elif connection.pieces is not None:
                    break
                elif connection.closes:
                    connection.sock.shutdown(socket.SHUT_WR)  # and read on: a close with unread bytes would reset
                    break
                elif not self._answer_next(connection):
                    break
        except OSError:
            self._drop(connection)
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        mask = selectors.EVENT_READ
        if connection.unsent or connection.pieces is not None:
            mask |= selectors.EVENT_WRITE
        key = self.poller.get_key(connection.sock)
        if key.events != mask:
            self.poller.modify(connection.sock, mask, key.data)

    def _accept(self, _mask: int) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            self.poller.register(sock, selectors.EVENT_READ, partial(self._ready, connection))

    def _ready(self, connection: Connection, mask: int) -> None:
        if connection.closed:
            return
        try:
            if mask & selectors.EVENT_WRITE:
                self._writable(connection)
            if mask & selectors.EVENT_READ and not self._read(connection):
                self._drop(connection)
                return
        except OSError:
            self._drop(connection)
            return
        self._settle(connection)

    def _writable(self, connection: Connection) -> None:
        if connection.unsent:
            connection.flush()
            record = connection.record
            if not connection.unsent and connection.waits_for_room:
                connection.waits_for_room = False
                if record is not None and len(record.sent_ns) < len(record.due_ns):
                    self._schedule(connection, time.monotonic_ns())
        elif connection.pieces is not None:
            piece = next(connection.pieces, None)
            if piece is None:
                connection.pieces = None
            else:
                connection.write(piece)

    def _read(self, connection: Connection) -> bool:
        """False: the client has left. Raises: OSError."""
        try:
            data, ancillary, _, _ = connection.sock.recvmsg(READ_BYTES, stamps.CONTROL_BYTES)
        except BlockingIOError:
            return True
        now_ns = time.monotonic_ns()
        if not data or len(connection.received) > MOST_UNREAD_BYTES:
            return False
        if connection.closes:
            return True
        stamp_ns = stamps.realtime_ns(ancillary) if connection.stamped else None
        arrived_ns = None if stamp_ns is None else self._map.arrival_ns(stamp_ns, self._began_ns, now_ns)
        connection.received_ns = now_ns if arrived_ns is None else arrived_ns
        connection.received_clock = "user" if arrived_ns is None else "kernel"
        connection.received += data
        return True

    def _drop(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        if connection.record is not None:
            connection.record.outcome = "cut"
        self.poller.unregister(connection.sock)
        connection.sock.close()

    def _answer_next(self, connection: Connection) -> bool:
        """Whether there was a whole request. Raises: OSError."""
        try:
            request = Request.take(connection.received)
            if request is None:
                return False
            connection.closes = request.headers.get("connection", "").lower() == "close"
            self._answer(connection, request)
        except Refused as refused:
            connection.closes = connection.closes or refused.closes
            connection.write(reply(refused.status, {"error": str(refused)}, connection.closes))
        return True

    def _answer(self, connection: Connection, request: Request) -> None:
        """Raises: Refused, OSError."""
        match request.method, request.path:
            case "POST", ("/generate_stream" | "/invocations"):
                self._begin(connection, request, self.scripts.tgi(request.json()))
            case "POST", ("/v1/completions" | "/v1/chat/completions") if self.openai:
                chat = request.path.endswith("/chat/completions")
                self._begin(connection, request, self.scripts.openai(request.json(), chat))
            case "POST", "/tokenize":
                connection.write(reply(200, words(str(request.json().get("inputs", "")))))
            case "GET", "/info":
                connection.write(reply(200, INFO))
            case "GET", "/health":
                connection.write(reply(200, None))
            case "GET", "/truth":
                connection.write(stream_head("application/x-ndjson"))
                connection.pieces = self._lines(list(self.records))
            case "DELETE", "/truth":
                self.records.clear()
                connection.write(reply(200, None))
            case _:
                raise Refused(404, f"there is no {request.method} {request.path}")

    @staticmethod
    def _lines(records: list[Record]) -> Iterator[bytes]:
        for i in range(0, len(records), RECORDS_A_PIECE):
            yield chunk(b"".join(record.line() for record in records[i : i + RECORDS_A_PIECE]))
        yield BODY_END

    def _begin(self, connection: Connection, request: Request, script: Script) -> None:
        request_id = request.headers.get("x-request-id", f"unnamed-{self._streams}")
        waits = self.schedule.waits(request_id, len(script.chunks))
        due_ns = list(accumulate(waits, initial=connection.received_ns))[1:]
        record = Record(request_id, request.path, connection.received_ns, connection.received_clock, due_ns)
        self.records.append(record)
        connection.record, connection.chunks = record, script.chunks
        record.headers_ns = time.monotonic_ns()
        connection.write(stream_head("text/event-stream") + script.opening)
        self._schedule(connection, due_ns[0])

    def _schedule(self, connection: Connection, due_ns: int) -> None:
        self._streams += 1
        heappush(self._heap, (due_ns, self._streams, connection))
