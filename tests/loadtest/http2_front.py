"""An HTTP/2 server under TLS in front of the schedule server, as a proxy is: its streams, and faults of HTTP/2's own.

h2 makes its frames but GOAWAY, after which it would send no more. What a request gets is the next word of `orders`:

    (none)       the answer of the schedule server; one that breaks off becomes RST_STREAM (INTERNAL_ERROR)
    together     the same, in one send
    idle         the same; then PING, SETTINGS and a window, and the connection stays
    last         GOAWAY (NO_ERROR) that takes this request in, then the same
    away         the same, then GOAWAY (NO_ERROR); the connection stays open
    status       an answer whose status is no number
    refused      RST_STREAM (REFUSED_STREAM)
    gone         GOAWAY (ENHANCE_YOUR_CALM) that leaves this request out; the connection stays open
    pings        four tokens, then a PING every 50 ms until the client leaves
    rubbish      four tokens, then bytes that are no frame
    large        413 as soon as the request has begun, RST_STREAM (NO_ERROR), and no window for the rest of it
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, PingAckReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from loadtest.transport.base import Target

STREAM = [(":status", "200"), ("content-type", "text/event-stream")]
TOKEN = 'data: {"index":%d,"token":{"id":%d,"text":" a","logprob":-0.5,"special":false},"generated_text":null}\n\n'


class Front:
    def __init__(self, target: Target, port: int) -> None:
        self.target = target
        self.connections = 0
        self.orders: deque[str] = deque()
        self.pings_answered = 0
        self._port = port

    def serve(self, peer: socket.socket, context: ssl.SSLContext) -> None:
        with suppress(OSError), peer, context.wrap_socket(peer, server_side=True) as wire:
            assert wire.selected_alpn_protocol() == "h2"
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Connection(self, wire, self._port).serve()


class _Connection:
    def __init__(self, front: Front, wire: ssl.SSLSocket, port: int) -> None:
        self._front, self._wire, self._port = front, wire, port
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._requests: dict[int, tuple[dict[str, str], bytearray, str]] = {}

    def serve(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        while data := self._wire.recv(65536):
            for event in self._h2.receive_data(data):
                if isinstance(event, ConnectionTerminated):
                    return
                self._take(event)
            self._flush()

    def _flush(self) -> None:
        self._wire.sendall(self._h2.data_to_send())

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            order = self._front.orders.popleft() if self._front.orders else ""
            named = {name.decode(): value.decode() for name, value in event.headers}
            self._requests[event.stream_id] = named, bytearray(), order
            if order == "large":
                said = b'{"error":"big"}'
                self._h2.send_headers(event.stream_id, [(":status", "413"), ("content-length", str(len(said)))])
                self._h2.send_data(event.stream_id, said, end_stream=True)
                self._h2.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
        elif isinstance(event, DataReceived):
            _, body, order = self._requests[event.stream_id]
            body += event.data
            if order != "large":
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, PingAckReceived):
            self._front.pings_answered += 1
        elif isinstance(event, StreamEnded):
            named, body, order = self._requests.pop(event.stream_id)
            self._answer(event.stream_id, named, bytes(body), order)

    def _answer(self, stream: int, named: dict[str, str], body: bytes, order: str) -> None:
        if order == "refused":
            self._h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        elif order == "status":
            self._h2.config.validate_outbound_headers = False
            self._h2.send_headers(stream, [(":status", "abc")], end_stream=True)
        elif order == "gone":
            self._go_away(0, ErrorCodes.ENHANCE_YOUR_CALM)
        elif order in ("pings", "rubbish"):
            self._h2.send_headers(stream, STREAM)
            for number in range(4):
                self._h2.send_data(stream, (TOKEN % (number, number)).encode())
                self._flush()
            if order == "rubbish":
                self._wire.sendall(b"\xff" * 100)
                return
            self._wire.settimeout(0.05)
            while True:
                self._h2.ping(b"12345678")
                self._flush()
                with suppress(TimeoutError):
                    for event in self._h2.receive_data(self._wire.recv(65536)):
                        self._take(event)
                    threading.Event().wait(0.05)
        else:
            if order == "last":
                self._go_away(stream, ErrorCodes.NO_ERROR)
            self._forward(stream, named, body, together=order == "together")
            if order == "away":
                self._go_away(stream, ErrorCodes.NO_ERROR)
            if order == "idle":
                self._h2.ping(b"12345678")
                self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 7})
                self._h2.increment_flow_control_window(1000)

    def _forward(self, stream: int, named: dict[str, str], body: bytes, together: bool) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self._port)
        kept = {name: value for name, value in named.items() if not name.startswith(":")}
        try:
            upstream.request(named[":method"], named[":path"], body, kept)
            response = upstream.getresponse()
            kind = response.getheader("content-type") or "text/plain"
            self._h2.send_headers(stream, [(":status", str(response.status)), ("content-type", kind)])
            self._flush()
            while data := response.read1(16384):
                self._h2.send_data(stream, data)
                if not together:
                    self._flush()
            self._h2.end_stream(stream)
        except (http.client.HTTPException, OSError, ValueError):
            self._h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)
        finally:
            upstream.close()

    def _go_away(self, last_stream: int, error: ErrorCodes) -> None:
        self._flush()
        self._wire.sendall(GoAwayFrame(0, last_stream, error).serialize())


@contextmanager
def http2_front(port: int, context: ssl.SSLContext) -> Iterator[Front]:
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server(("127.0.0.1", 0))
    front = Front(Target("127.0.0.1", listener.getsockname()[1], tls=True), port)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                front.connections += 1
                threading.Thread(target=front.serve, args=(peer, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield front
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
    listener.close()
