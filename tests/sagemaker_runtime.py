"""AWS's SageMaker runtime on this machine: it checks signatures, streams from a container, and fails on demand.

`python -m tests.sagemaker_runtime --container URL` prints `{"port": N}` once it listens on 127.0.0.1 and stops when its
stdin closes. Plain HTTP/1.1 that stays connected; every part is one chunk and one `sendall`, with `time.monotonic_ns()`
read immediately before it. On Linux that clock is the same for all processes. `GET /records` gives the record of every
request, `DELETE /records` clears them; neither is signed.

`POST /endpoints/NAME/invocations-response-stream` passes the body to the container's `/invocations`, and what the
container sends comes back as it arrives, a PayloadPart per read. `--cut N` makes them parts of N bytes, wherever that
cuts; bytes wait until there are N. `POST /endpoints/NAME/invocations` passes the whole answer through. A container that
breaks, is silent for `--patience-s` or answers 4xx or 5xx is told of as AWS tells of it. NAME is `good` or one of
`sagemaker_faults`.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import chain
from urllib.parse import urlsplit

from tests.sagemaker_faults import (
    AFTER_K,
    LAST,
    PART,
    SLOW_HEADERS_S,
    STALL_S,
    STREAM_BROKEN,
    TIME_EXCEEDED,
    TIMED_OUT,
    UNKNOWN_EVENT,
    Fault,
    frame,
    model_error,
)
from tests.schedule_server import Request, framed
from tests.sigv4 import Account, Refused, verify

ROUTE = re.compile(r"/endpoints/([A-Za-z0-9][A-Za-z0-9-]{0,62})/(invocations(?:-response-stream)?)")
SECRET = {"authorization", "x-amz-security-token"}
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"


@dataclass(slots=True)
class Record:
    """What was asked for, and what was really done. A stamp is taken before its send."""

    path: str
    headers: dict[str, str]  # in lower case, without secrets
    body: str
    received_ns: int
    endpoint: str | None = None
    signed: bool = False  # the signature was right
    error: str | None = None  # the name of the AWS error that was the answer
    headers_ns: int | None = None
    sends: list[tuple[int, int]] = field(default_factory=list)  # (stamp, bytes of the container) of every whole frame
    ended_ns: int | None = None  # the end of the answer, where it came to that


def messages(response: HTTPResponse, cut: int | None) -> Iterator[tuple[bytes, int]]:
    """Each part's frame and its bytes of the container, as they arrive; last, if it breaks off, the frame of that."""
    held, broken = b"", None
    try:
        while data := response.read1(65536):
            if cut is None:
                yield frame(PART, data), len(data)
                continue
            held += data
            while len(held) >= cut:
                yield frame(PART, held[:cut]), cut
                held = held[cut:]
    except TimeoutError:
        broken = TIME_EXCEEDED
    except (OSError, HTTPException):
        broken = STREAM_BROKEN
    if held:
        yield frame(PART, held), len(held)
    if broken:
        yield broken, 0


class Runtime:
    def __init__(self, account: Account, container: str, cut: int | None, patience_s: float, clock_s: float) -> None:
        self.account, self.container, self.cut, self.patience_s = account, urlsplit(container), cut, patience_s
        self.clock = timedelta(seconds=clock_s)
        self.records: list[Record] = []

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while (request := Request.read(reader)) is not None:
                    stays = self.answer(connection, request)
                    if not stays or request.headers.get("connection", "").lower() == "close":
                        return
            except (OSError, ValueError):
                return  # the client left, or this is no HTTP

    def answer(self, connection: socket.socket, request: Request) -> bool:
        """Whether the connection stays open."""
        if request.path == "/records":
            records = json.dumps([asdict(record) for record in self.records]).encode()
            if request.method == "DELETE":
                self.records.clear()
            return self.whole(connection, 200, {"content-type": "application/json"}, records)
        public = {name: value for name, value in request.headers.items() if name not in SECRET}
        record = Record(request.path, public, request.body.decode(errors="replace"), request.received_ns)
        self.records.append(record)
        try:
            return self.invoke(connection, request, record)
        except Refused as refused:
            record.error = refused.name
            headers = {
                "x-amzn-errortype": f"{refused.name}:http://internal.amazon.com/coral/com.amazon.coral.service/",
                "content-type": "application/json",
            }
            body = json.dumps(refused.more or {"message": refused.message}).encode()
            return self.whole(connection, refused.status, headers, body, record)

    def invoke(self, connection: socket.socket, request: Request, record: Record) -> bool:
        """Raises: Refused where AWS answers with an error."""
        route = ROUTE.fullmatch(request.path)
        if route is None or request.method != "POST":
            raise Refused(404, "UnknownOperationException", None)
        record.endpoint, streamed = route[1], route[2] != "invocations"
        now = datetime.now(UTC) + self.clock
        verify(self.account, request.method, request.path, request.headers, request.body, now)
        record.signed = True
        fault = Fault.of(route[1])
        fault.refuse(route[1], self.account.region, streamed)
        with closing(HTTPConnection(self.container.netloc, timeout=self.patience_s)) as container:
            response = self.ask(container, route[1], request)
            content_type = response.headers.get("content-type", "application/octet-stream")
            variant = request.headers.get("x-amzn-sagemaker-target-variant", "AllTraffic")
            headers = {"x-amzn-invoked-production-variant": variant}
            if attributes := response.headers.get(ATTRIBUTES):
                headers[ATTRIBUTES] = attributes
            if fault.kind == "slow-headers":
                time.sleep(SLOW_HEADERS_S)
            if streamed:
                headers["x-amzn-sagemaker-content-type"] = content_type
                return self.stream(connection, headers, messages(response, self.cut), fault, record)
            try:
                body = response.read()
            except (OSError, HTTPException):
                raise model_error(route[1], self.account.region, 500, None) from None
            return self.whole(connection, 200, {**headers, "content-type": content_type}, body, record)

    def ask(self, container: HTTPConnection, endpoint: str, request: Request) -> HTTPResponse:
        """The container's answer to a request, of whose headers AWS passes on some.

        Raises: Refused where it is an error or none.
        """
        headers = {name: value for name, value in request.headers.items() if name.startswith("x-amzn-sagemaker-")}
        accept = headers.pop("x-amzn-sagemaker-accept", request.headers.get("accept"))
        said = {"content-type": request.headers.get("content-type"), "accept": accept}
        headers |= {name: value for name, value in said.items() if value}
        try:
            container.request("POST", f"{self.container.path.rstrip('/')}/invocations", request.body, headers)
            response = container.getresponse()
            if response.status < 400:
                return response
            status, message = response.status, response.read().decode(errors="replace")
        except (OSError, HTTPException):
            status, message = 0, TIMED_OUT
        raise model_error(endpoint, self.account.region, status, message)

    def stream(
        self,
        connection: socket.socket,
        headers: dict[str, str],
        parts: Iterator[tuple[bytes, int]],
        fault: Fault,
        record: Record,
    ) -> bool:
        def send(message: bytes, carried: int) -> None:
            record.sends.append((time.monotonic_ns(), carried))
            connection.sendall(framed(message))

        headers |= {"content-type": "application/vnd.amazon.eventstream", "transfer-encoding": "chunked"}
        record.headers_ns = time.monotonic_ns()
        connection.sendall(self.head(200, headers))
        pending = fault.kind in AFTER_K
        for sent, (message, carried) in enumerate(chain(parts, [(b"", 0)])):  # the empty one is the container's end
            if pending and (sent == fault.number or not message):
                pending = False
                match fault.kind:
                    case "unknown-event":
                        send(UNKNOWN_EVENT, 0)
                    case "bad-crc":
                        message = message or frame(PART, b"")
                        message = message[:-1] + bytes([message[-1] ^ 1])
                    case "stall":
                        connection.settimeout(STALL_S)
                        connection.recv(1)  # returns when the client leaves
                        return False
                    case "cut":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return False
                    case "cut-frame" | "end-in-frame":
                        connection.sendall(framed(frame(PART, b"half")[:-8]))
                        if fault.kind == "cut-frame":
                            return False
                        break
                    case "end":
                        break
                    case _:
                        send(LAST[fault.kind], 0)
                        break
            if message:
                send(message, carried)
        record.ended_ns = time.monotonic_ns()
        connection.sendall(b"0\r\n\r\n")
        return True

    def whole(
        self, connection: socket.socket, status: int, headers: dict[str, str], body: bytes, record: Record | None = None
    ) -> bool:
        if record is not None:
            record.headers_ns = record.ended_ns = time.monotonic_ns()
        connection.sendall(self.head(status, {**headers, "content-length": str(len(body))}) + body)
        return True

    def head(self, status: int, headers: dict[str, str]) -> bytes:
        own = {
            "x-amzn-requestid": str(uuid.uuid4()),
            "date": format_datetime(datetime.now(UTC) + self.clock, usegmt=True),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in (own | headers).items())
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode("latin-1")


def main() -> None:
    parser = argparse.ArgumentParser(description="AWS's SageMaker runtime, stood in for")
    parser.add_argument("--container", required=True, metavar="URL", help="who answers POST /invocations")
    parser.add_argument("--cut", type=int, metavar="N", help="parts of N bytes (default: as the container sends)")
    parser.add_argument("--patience-s", type=float, default=60, help="how long the container may be silent")
    parser.add_argument("--clock-s", type=float, default=0, help="how far this clock is ahead of the machine's")
    names = ("access_key", "secret_key", "session_token", "expired_token", "region")
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(Account(), name))
    options = parser.parse_args()
    account = Account(**{name: getattr(options, name) for name in names})
    server = Runtime(account, options.container, options.cut, options.patience_s, options.clock_s)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
