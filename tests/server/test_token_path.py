"""Tokens on their way to clients that leave, and to clients that don't read: nobody else notices.

Method: real sockets, and a scripted backend that counts its steps. A step lasts as long as the event loop needs for so
many turns, or until those who read have their tokens, so that steps can be counted and no time is looked at.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from server.api.outlet import Outlet
from server.backends.base import Limits, Sampling, Step
from server.engine.engine import Engine
from server.engine.request import Request, Task
from server.errors import GenerationError, Unavailable
from server.lifecycle import Http1
from server.metrics import Metrics
from server.service import Service, Stream
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.contract.conftest import spelled
from tests.server.scripted import ScriptedBackend

ENDLESS = 10**6
TURNS = 20  # of the event loop in a decode step
PATIENCE_S = 60.0
BODIES: dict[str, dict[str, Any]] = {
    "/generate_stream": {"inputs": "ab", "parameters": {"max_new_tokens": ENDLESS, "ignore_eos": True}},
    "/generate": {"inputs": "ab", "parameters": {"max_new_tokens": ENDLESS, "ignore_eos": True}},
    "/v1/completions": {"prompt": "ab", "max_tokens": ENDLESS, "temperature": 0, "ignore_eos": True},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "ab"}],
        "max_tokens": ENDLESS,
        "temperature": 0,
        "ignore_eos": True,
    },
    "/invocations": {"inputs": "ab", "parameters": {"max_new_tokens": ENDLESS, "ignore_eos": True}},
}
CASES = [
    ("/generate_stream", None),
    ("/generate", None),
    *(
        (route, streamed)
        for route in ("/", "/v1/completions", "/v1/chat/completions", "/invocations")
        for streamed in (True, False)
    ),
]


class Endless(ScriptedBackend):
    """Has room for texts that don't end; `between` is called in each decode step."""

    def __init__(self, slots: int, between: Callable[[], None]) -> None:
        super().__init__(slots)
        self.limits = Limits(slots, 99, 2 * ENDLESS, 262, frozenset({"ignore_eos"}))
        self.decoded = 0  # steps that began
        self.released = threading.Event()
        self._between = between

    def decode(self) -> Mapping[int, Step]:
        self.decoded += 1
        self._between()
        return super().decode()

    def release(self, slot: int) -> None:
        super().release(slot)
        self.released.set()


def loader(backend: ScriptedBackend) -> Callable[[Settings], tuple[ScriptedBackend, Tokenizer]]:
    return lambda _: (backend, Tokenizer(spelled(), [1]))


def asked(client: Any, route: str, body: Mapping[str, Any], window: int | None = None) -> socket.socket:
    """A socket over which a request was sent, and of whose answer nothing was read; the kernel takes `window` bytes."""
    content = json.dumps(body).encode()
    made = socket.socket()
    made.settimeout(PATIENCE_S)
    if window is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    made.connect((client.base_url.host, client.base_url.port))
    head = f"POST {route} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    made.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content)
    return made


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the texts ended with, as the metrics hear it."""
    found: list[str] = []
    ended = Metrics.ended

    def heard(self: Metrics, request: Request, outcome: str) -> None:
        found.append(outcome)
        ended(self, request, outcome)

    monkeypatch.setattr(Metrics, "ended", heard)
    return found


@pytest.mark.parametrize(("route", "streamed"), CASES)
def test_a_client_that_goes_away_frees_its_slot_within_one_decode_step(
    serve: Any, monkeypatch: pytest.MonkeyPatch, outcomes: list[str], route: str, streamed: bool | None
):
    loops: list[asyncio.AbstractEventLoop] = []
    gone: list[int] = []  # decode steps that had begun when the server heard of it
    begun = threading.Event()
    connection_lost = Http1.connection_lost

    def lost(self: Http1, error: Exception | None) -> None:
        gone.append(backend.decoded)
        connection_lost(self, error)

    def turns() -> None:
        begun.set()
        for _ in range(TURNS):
            turned = threading.Event()
            loops[0].call_soon_threadsafe(turned.set)
            assert turned.wait(PATIENCE_S)

    made = Http1.connection_made

    def connected(self: Http1, transport: asyncio.Transport) -> None:
        loops.append(asyncio.get_running_loop())
        made(self, transport)

    monkeypatch.setattr(Http1, "connection_made", connected)
    backend = Endless(1, turns)
    body = BODIES["/invocations" if route == "/" else route] | ({} if streamed is None else {"stream": streamed})
    with serve(Settings(slots=1), loader(backend)) as client:
        leaver = asked(client, route, body)
        assert begun.wait(PATIENCE_S)
        monkeypatch.setattr(Http1, "connection_lost", lost)
        leaver.close()
        assert backend.released.wait(PATIENCE_S)
        assert len(gone) == 1
        assert backend.decoded - gone[0] <= 1
        assert outcomes == ["dropped"]


def test_a_reader_that_stops_reading_never_slows_another_stream_and_is_dropped_and_counted(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcomes: list[str]
):
    caplog.set_level(logging.INFO, "server.api.access")
    bound, most, readers = 20_000, 3000, 3
    had = [0] * readers  # tokens that each reader has
    changed = threading.Condition()
    late: list[tuple[int, list[int]]] = []
    dropped_at: list[int] = []  # tokens that the readers had then

    def wait_for_the_readers() -> None:
        """Until every reader has all tokens of the steps before this one."""
        with changed:
            if not live:
                changed.wait(0.02)  # or who is in first would fall behind by more than the bound, and be dropped itself
                return
            due = min(backend.decoded - live[0] + 1, most)
            if not changed.wait_for(lambda: min(had) >= due, PATIENCE_S):
                late.append((due, list(had)))
                raise RuntimeError("a reader's tokens are late")

    live: list[int] = []  # the decode step after which all were in
    backend = Endless(readers + 1, wait_for_the_readers)
    release = backend.release

    def released(slot: int) -> None:
        if slot == 0:
            dropped_at.append(min(had))
        release(slot)

    backend.release = released  # type: ignore[method-assign]
    made = Http1.connection_made

    def connected(self: Http1, transport: asyncio.Transport) -> None:
        # A kernel would hold megabytes before a server hears that nobody reads.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(Http1, "connection_made", connected)

    def read(number: int, stream: socket.socket) -> None:
        rest = b""
        while had[number] < most and (data := stream.recv(1 << 16)):
            *whole, rest = (rest + data).split(b"\n\n")
            with changed:
                had[number] += sum(b'"token":' in event for event in whole)
                if min(had) and not live:
                    live.append(backend.decoded)
                changed.notify_all()

    body = BODIES["/generate_stream"]
    some = body | {"parameters": body["parameters"] | {"max_new_tokens": most}}
    with serve(Settings(slots=readers + 1, max_unread_bytes=bound), loader(backend)) as client:
        idler = asked(client, "/generate_stream", body, window=2048)
        streams = [asked(client, "/generate_stream", some) for _ in range(readers)]
        threads = [threading.Thread(target=read, args=each) for each in enumerate(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for stream in streams:
            stream.close()
        rest = b""
        try:
            while len(rest) < 50 * bound and (data := idler.recv(1 << 16)):
                rest += data
        except ConnectionError:
            pass
        idler.close()
    assert late == []
    assert had == [most] * readers
    assert dropped_at, "the slot of who doesn't read was freed"
    assert dropped_at[0] < most, "while the others went on"
    assert sorted(outcomes) == ["slow_reader", *["success"] * readers]
    told = [line.__dict__["outcome"] for line in caplog.records if line.__dict__.get("route") == "/generate_stream"]
    assert sorted(told) == sorted(outcomes), "the log says what the metrics do"
    assert not rest.endswith(b"0\r\n\r\n"), "it was cut, and can know"


@pytest.mark.parametrize(
    ("leave", "outcome"),
    [
        (lambda stream: None, "dropped"),
        (lambda stream: stream.cancel("slow_reader"), "slow_reader"),
        (lambda stream: stream.fail(GenerationError("stuck")), "generation"),
        (lambda stream: stream.fail(Unavailable("the server was stopped")), "healthcheck"),
    ],
)
def test_texts_that_are_given_up_know_why_before_the_engine_hears_of_it(leave: Callable[[Stream], None], outcome: str):
    backend = ScriptedBackend(1)
    service = Service(Settings(slots=1), loader(backend))
    engine = Engine(backend, Tokenizer(spelled(), [1]), lambda _: None, Metrics(), lambda _: None)  # in a long step
    with Stream(service, engine, "id", [Task("ab", (97, 98), 9, Sampling())] * 2, 0.0) as stream:
        leave(stream)
    assert [request.outcome for request in stream.requests] == [outcome] * 2


class Server:
    """An ASGI server's `send` that waits while it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bool]] = []
        self.writable = asyncio.Event()
        self.writable.set()

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        self.sent.append((message["body"], message["more_body"]))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_bytes_leave_in_the_callback_that_puts_them_and_wait_in_order_while_nobody_reads():
    async def scenario() -> None:
        server, overflows = Server(), []
        outlet = Outlet(server.send, 10, lambda: overflows.append(True))
        outlet.put(b"a")
        assert server.sent == [(b"a", True)], "at once"
        server.writable.clear()
        for content in (b"b", b"c", b"d"):
            outlet.put(content)
        await turns()
        assert server.sent == [(b"a", True)]
        assert outlet.behind
        server.writable.set()
        await turns()
        assert server.sent == [(b"a", True), (b"b", True), (b"cd", True)]
        assert not outlet.behind
        outlet.put(b"e", more=False)
        outlet.put(b"never")
        assert server.sent[3:] == [(b"e", False)]
        assert overflows == []

    asyncio.run(scenario())


def test_parts_are_written_past_the_server_s_send_where_the_connection_takes_them_and_never_out_of_turn():
    async def scenario() -> None:
        server, taken = Server(), True

        def write(content: bytes) -> bool:
            if taken:
                server.sent.append((b"written " + content, True))
            return taken

        outlet = Outlet(server.send, 10, lambda: None, write)
        outlet.put(b"a")
        taken = False  # the client doesn't read
        server.writable.clear()
        outlet.put(b"b")
        taken = True  # it does, but b has yet to leave
        outlet.put(b"c")
        server.writable.set()
        await turns()
        outlet.put(b"d")
        outlet.put(b"e", more=False)
        assert server.sent == [(b"written a", True), (b"b", True), (b"c", True), (b"written d", True), (b"e", False)]

    asyncio.run(scenario())


def test_what_waits_for_a_reader_has_a_bound_and_is_let_go_beyond_it():
    async def scenario() -> None:
        server, overflows = Server(), []
        outlet = Outlet(server.send, 10, lambda: overflows.append(True))
        server.writable.clear()
        outlet.put(b"12345")
        outlet.put(b"67890")
        assert overflows == [], "as many as the bound allows"
        outlet.put(b"1")
        outlet.put(b"2")
        assert overflows == [True], "once"
        server.writable.set()
        await turns()
        assert server.sent == []

    asyncio.run(scenario())


def test_an_answer_that_is_complete_while_its_reader_is_behind_is_completed_when_it_reads():
    async def scenario() -> None:
        server = Server()
        outlet = Outlet(server.send, 10, lambda: None)
        server.writable.clear()
        outlet.put(b"a")
        outlet.put(b"b", more=False)
        server.writable.set()
        await turns()
        assert server.sent == [(b"a", True), (b"b", False)]

    asyncio.run(scenario())
