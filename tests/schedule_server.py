"""A streaming server whose schedule is known and whose every send is stamped: the truth a client's clock is held to.

`python tests/schedule_server.py` prints `{"port": N}` once it listens on 127.0.0.1 and stops on SIGTERM or when its
stdin closes. One thread and blocking sockets per connection; one `sendall` per event, and `time.monotonic_ns()` read
immediately before it. On Linux that clock is the same for all processes, so the stamps compare with a client's.
`GET /truth` gives the record of every stream, `DELETE /truth` clears it.

The wire is text-generation-inference's `/generate_stream`. What a request gets is its header `x-schedule`, a JSON
object of `Schedule`'s fields; those left out come from `--schedule`. `POST /v1/chat/completions` and `/v1/completions`
send `script`, whatever it says: its pieces stand for the tokens. Faults, where k is `fault_after`, in tokens:

after k tokens
    truncate       the connection closes inside the body: no chunked terminator
    truncate_clean the body ends as its framing says, without the final event
    stall          nothing more; the connection stays until the client leaves, or 30 s
    reset          RST
    garble         one event that is not JSON, then the rest as if nothing had been
    garble_http    a chunk size that is no number, then the connection closes
    error_event    TGI's error event and a clean end
    stop_early     token k is the last: a proper final event with finish_reason eos_token
from the start
    http_500, overloaded    a JSON error, status 500 or 429
    close_before_headers    not one byte
    empty                   200 and a clean end without an event
    coalesce                all events in one send, when the last is due: a buffering proxy
    split                   every event in two sends, half a gap apart, cut inside a UTF-8 character
    role_first              an event without a token, right after the headers
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from typing import Any, BinaryIO

AFTER_K = {"truncate", "truncate_clean", "stall", "reset", "garble", "garble_http", "error_event", "stop_early"}
FROM_START = {"http_500", "overloaded", "close_before_headers", "empty", "coalesce", "split", "role_first"}
STALL_S = 30.0
REFUSALS = {
    "http_500": (500, {"error": "Incomplete generation", "error_type": "incomplete_generation"}),
    "overloaded": (429, {"error": "Model is overloaded", "error_type": "overloaded"}),
}
INFO = {
    "model_id": "schedule-server",
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "router": "tokenclock",
    "slots": 4,
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Schedule:
    first_s: float = 0.02  # request read → first token
    gap_s: float = 0.005  # token → next token
    jitter: float = 0.1  # each wait is multiplied by a random factor of 1 ± jitter
    seed: int = 0  # the same seed gives the same waits
    fault: str | None = None
    fault_after: int = 3  # tokens; read by the faults that happen after k tokens
    script: list[str] | None = None  # a body's bytes as latin-1; each piece is one HTTP chunk and one send

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in AFTER_K | FROM_START:
            raise ValueError(f"there is no fault {self.fault!r}")
        if min(self.first_s, self.gap_s) < 0 or not 0 <= self.jitter <= 1:
            raise ValueError(f"waits must not be negative and jitter must lie in 0..1: {self}")

    def check(self, tokens: int) -> None:
        """Raises: ValueError where the fault could not happen in a stream of so many tokens."""
        least = 1 if self.fault == "stop_early" else 0
        if tokens < 1 or (self.fault in AFTER_K and not least <= self.fault_after < tokens):
            raise ValueError(f"{self.fault} after {self.fault_after} tokens cannot happen in a stream of {tokens}")

    def due_ns(self, start_ns: int) -> Iterator[int]:
        """When each token is due; counted from the request, so that a late send delays no other."""
        rng, due = random.Random(self.seed), float(start_ns)
        wait_s = self.first_s
        while True:
            due += 1e9 * wait_s * rng.uniform(1 - self.jitter, 1 + self.jitter)
            yield int(due)
            wait_s = self.gap_s


@dataclass(slots=True)
class Record:
    """What was really done for one request. A stamp is taken before its send; an event's tokens are its last send's."""

    request_id: str | None
    received_ns: int
    fault: str | None
    headers_ns: int | None = None
    sends: list[tuple[int, int]] = field(default_factory=list)  # (stamp, tokens)
    ended_ns: int | None = None  # the chunked terminator


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    received_ns: int

    @classmethod
    def read(cls, reader: BinaryIO) -> Request | None:
        """The next request of a connection; None where the client has closed it."""
        line = reader.readline()
        if not line:
            return None
        method, path, _ = line.decode("latin-1").split()
        headers = {}
        while (line := reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", 0)))
        return cls(method, path, headers, body, time.monotonic_ns())


def sleep_until(due_ns: int) -> None:
    while (left_ns := due_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)


def words(text: str) -> list[dict[str, Any]]:
    """The tokens of a text: one per word, with character offsets."""
    return [
        {"id": zlib.crc32(m[0].encode()) % 32000, "text": m[0], "start": m.start(), "stop": m.end()}
        for m in re.finditer(r"\S+", text)
    ]


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk(value: Any) -> bytes:
    """One server-sent event in one HTTP chunk."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return framed(f"data: {text}\n\n".encode())


def token_chunks(tokens: int, inputs: str, details: bool, finish_reason: str) -> Iterator[bytes]:
    """Every token's event, the last with the whole text. Each text has a character of two bytes: split needs one."""
    texts = [f" é{i}" for i in range(1, tokens + 1)]
    counts = {"generated_tokens": tokens, "seed": None, "input_length": len(words(inputs))}
    for index, text in enumerate(texts, 1):
        last = index == tokens
        yield chunk(
            {
                "index": index,
                "token": {"id": 100 + index, "text": text, "logprob": -0.5, "special": False},
                "generated_text": "".join(texts) if last else None,
                "details": {"finish_reason": finish_reason, **counts} if last and details else None,
            }
        )


class Server:
    def __init__(self, defaults: Schedule) -> None:
        self.defaults = defaults
        self.truth: list[Record] = []

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while (request := Request.read(reader)) is not None:
                    stays = self.answer(connection, request)
                    if not stays or request.headers.get("connection", "").lower() == "close":
                        return
            except OSError:
                return  # the client left

    def answer(self, connection: socket.socket, request: Request) -> bool:
        """Whether the connection stays open."""
        match request.method, request.path:
            case "POST", "/generate_stream" | "/v1/chat/completions" | "/v1/completions":
                return self.stream(connection, request)
            case "POST", "/tokenize":
                return reply(connection, 200, words(json.loads(request.body)["inputs"]))
            case "GET", "/info":
                return reply(connection, 200, INFO)
            case "GET", "/health":
                return reply(connection, 200, None)
            case "GET", "/truth":
                return reply(connection, 200, [asdict(record) for record in self.truth])
            case "DELETE", "/truth":
                self.truth.clear()
                return reply(connection, 200, None)
        return reply(connection, 404, {"error": f"no {request.method} {request.path}", "error_type": "not_found"})

    def stream(self, connection: socket.socket, request: Request) -> bool:
        try:
            schedule = replace(self.defaults, **json.loads(request.headers.get("x-schedule", "{}")))
            body = json.loads(request.body)
            if request.path == "/generate_stream":
                inputs, tokens = str(body["inputs"]), int(body["parameters"]["max_new_tokens"])
                details = bool(body["parameters"].get("details"))
            else:
                pieces = [framed(piece.encode("latin-1")) for piece in schedule.script or ()]
                tokens = len(pieces)
            schedule.check(tokens)
        except (ValueError, TypeError, KeyError) as error:
            return reply(connection, 422, {"error": f"Input validation error: {error!r}", "error_type": "validation"})
        record = Record(request.headers.get("x-request-id"), request.received_ns, schedule.fault)
        self.truth.append(record)
        fault, k = schedule.fault, schedule.fault_after
        if fault in REFUSALS:
            return reply(connection, *REFUSALS[fault])
        if fault == "close_before_headers":
            return False

        def send(data: bytes, carried: int) -> None:
            record.sends.append((time.monotonic_ns(), carried))
            connection.sendall(data)

        def end() -> bool:
            record.ended_ns = time.monotonic_ns()
            connection.sendall(b"0\r\n\r\n")
            return True

        record.headers_ns = time.monotonic_ns()
        connection.sendall(STREAM_HEAD)
        if fault == "empty":
            return end()
        if fault == "role_first":
            send(chunk({"index": 0, "token": None, "generated_text": None, "details": None}), 0)
        count, reason = (k, "eos_token") if fault == "stop_early" else (tokens, "length")
        events = token_chunks(count, inputs, details, reason) if request.path == "/generate_stream" else iter(pieces)
        timetable = zip(events, schedule.due_ns(request.received_ns), strict=False)  # each is made just before its wait
        if fault == "coalesce":
            chunks, dues = zip(*timetable, strict=True)
            sleep_until(dues[-1])
            send(b"".join(chunks), count)
            return end()
        for sent, (data, due) in enumerate(timetable):
            sleep_until(due)
            if fault in AFTER_K and sent == k:
                if fault != "garble":
                    return fail(fault, connection, send, end)
                send(chunk('{"index":?,"token'), 0)
            if fault == "split":
                cut = data.index("é".encode()) + 1
                send(data[:cut], 0)
                sleep_until(due + int(schedule.gap_s * 5e8))
                data = data[cut:]
            send(data, 1)
        return end()


def fail(fault: str, connection: socket.socket, send: Callable[[bytes, int], None], end: Callable[[], bool]) -> bool:
    """The stream breaks here. Whether the connection stays open."""
    match fault:
        case "truncate_clean":
            return end()
        case "error_event":
            send(chunk({"error": "Request failed during generation: on demand", "error_type": "generation"}), 0)
            return end()
        case "stall":
            connection.settimeout(STALL_S)
            connection.recv(1)  # returns when the client leaves
        case "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        case "garble_http":
            send(b"zz\r\n", 0)
    return False


def reply(connection: socket.socket, status: int, value: Any) -> bool:
    """A JSON answer, empty for None; the connection stays open."""
    body = b"" if value is None else json.dumps(value, ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="a streaming server whose schedule is known")
    parser.add_argument("--schedule", default="{}", metavar="JSON", help="defaults of every request's x-schedule")
    parser.add_argument("--port", type=int, help="listen here, and stop on SIGTERM alone (default: any port)")
    arguments = parser.parse_args()
    try:
        server = Server(Schedule(**json.loads(arguments.schedule)))
    except (ValueError, TypeError) as error:
        parser.error(f"--schedule: {error}")
    listener = socket.create_server(("127.0.0.1", arguments.port or 0), backlog=1024)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    if arguments.port is None:
        sys.stdin.buffer.read()
    else:
        threading.Event().wait()


if __name__ == "__main__":
    main()
