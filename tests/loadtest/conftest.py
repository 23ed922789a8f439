"""A server of known schedule in a process of its own, and a client that asks it for faults."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gevent
import httpx
import pytest

from loadtest import redaction
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.transport import stamps
from loadtest.transport.base import HttpRequest, Target, Timeouts
from loadtest.transport.gevent_socket import GeventConnection

SERVER = Path(__file__).parents[1] / "schedule_server.py"


@pytest.fixture(scope="session", autouse=True)
def stamping() -> None:
    """The kernel has begun to stamp arrivals, as it has in a run."""
    stamps.stay_on()
    time.sleep(0.3)


@pytest.fixture(autouse=True)
def _keys_of_other_tests_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", frozenset())
    monkeypatch.setattr(redaction, "_long", ())
    monkeypatch.setattr(redaction, "_short", None)


@dataclass(frozen=True)
class Scheduled(TgiEndpoint):
    """TGI's protocol, with the schedule that the request should get in a header."""

    schedule: Mapping[str, Any] = field(default_factory=dict)

    def request(self, *asked: Any) -> HttpRequest:
        plain = super().request(*asked)
        return replace(plain, headers=(*plain.headers, ("x-schedule", json.dumps(self.schedule))))


class Truth:
    """The schedule server as its clients see it, and what it recorded."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.target = Target("127.0.0.1", port)

    def sends(self) -> dict[str, dict[str, Any]]:
        """What was recorded of each request, by its id."""
        return {record["request_id"]: record for record in httpx.get(f"http://127.0.0.1:{self.port}/truth").json()}

    def clear(self) -> None:
        httpx.delete(f"http://127.0.0.1:{self.port}/truth")

    def measure(
        self,
        new_tokens: int = 8,
        users: int = 1,
        each: int = 1,
        timeouts: Timeouts | None = None,
        first_token: Callable[[int], None] = lambda _: None,
        **schedule: Any,
    ) -> list[Sample]:
        """`users` greenlets send `each` requests, one after the other on a connection of their own."""
        endpoint = Scheduled(schedule={"jitter": 0, **schedule})
        cell = Cell(None, None, users, 4, new_tokens)

        def user(number: int) -> list[Sample]:
            connection = GeventConnection(self.target)
            connection.ready(5)
            samples = [
                measure(
                    connection,
                    endpoint,
                    Order(f"{number}-{i}", cell, "steady", "one two three four", connection._clock()),
                    run="test",
                    process=0,
                    user=number,
                    timeouts=timeouts or Timeouts(10, 10, 10, 30),
                    first_token=first_token,
                )
                for i in range(each)
            ]
            connection.close()
            return samples

        greenlets = [gevent.spawn(user, number) for number in range(users)]
        return [sample for greenlet in greenlets for sample in greenlet.get()]


@pytest.fixture(scope="session")
def truth() -> Iterator[Truth]:
    process = subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:  # leaving closes stdin, which ends it
        yield Truth(json.loads(process.stdout.readline())["port"])


@pytest.fixture
def raw_server() -> Callable[[bytes], Any]:
    """raw_server(reply, ...) is a context: a port where each connection gets the next bytes and is closed."""
    import socket
    import threading

    @contextmanager
    def serving(*replies: bytes) -> Iterator[Target]:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            for reply in replies:
                connection, _ = listener.accept()
                with connection, suppress(ConnectionError):  # a client may leave before it has all
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Target("127.0.0.1", listener.getsockname()[1])
        listener.close()

    return serving
