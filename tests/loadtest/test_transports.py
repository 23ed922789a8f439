"""The transports tell the same story: tokens, counts, text and verdicts, over plain TCP, TLS, IPv6 and proxies.

Method: each transport against the server of known schedule and recorded sends, through relays that speak TLS or act as
a proxy. gevent's own cases are in test_measure.py; here the others are held to it. What huggingface_hub can't tell is
stated beside the case. Certificates are made by `openssl`; where there is none, those tests are skipped and say so.
Milliseconds are compared in the tests marked `timing` only.
"""

from __future__ import annotations

import importlib.util
import itertools
import select
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.sse import Parser
from loadtest.stats import ttft_s
from loadtest.transport.base import (
    BodyCut,
    Connection,
    ConnectionBroken,
    HttpRequest,
    NotHttp,
    Seen,
    Target,
    Timeouts,
    fetch,
)
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.stamps import ClockMap
from loadtest.transport.tls import Tls
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Scheduled, Truth
from tests.loadtest.faults import FAULTS

SHORT = Timeouts(connect_s=5, first_byte_s=0.4, gap_s=0.4, total_s=5)
TRANSPORTS = ("gevent", "httpx", "huggingface_hub")  # that carry plain HTTP
OURS = ("gevent", "httpx")  # over our own wire
INSECURE = Tls(verify=False)
PROMPT = "one two three four"
TUNNEL_S = 0.2  # what a proxy takes to open a tunnel
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="receive stamps are Linux's")


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def connect(transport: str, target: Target, tls: Tls | None = None) -> Connection:
    if transport == "huggingface_hub" and importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("huggingface_hub is not installed")
    return connecting(transport, tls or Tls())(target)


def ask(
    connection: Connection,
    id_: str = "x",
    new_tokens: int = 8,
    timeouts: Timeouts = SHORT,
    prompt: str = PROMPT,
    **schedule: Any,
) -> Sample:
    """The sample of one request that gets this schedule."""
    endpoint = Scheduled(schedule={"jitter": 0, **schedule})
    order = Order(id_, Cell(None, None, 1, 4, new_tokens), "steady", prompt, 0)
    return measure(connection, endpoint, order, run="test", process=0, user=0, timeouts=timeouts)


def asked(transport: str, target: Target, tls: Tls | None = None, **kwargs: Any) -> Sample:
    with closing(connect(transport, target, tls)) as connection:
        return ask(connection, **kwargs)


@contextmanager
def answering(*replies: bytes) -> Iterator[tuple[Target, bytearray]]:
    """Each connection's request, a JSON object, is read whole and kept; then it gets the next reply and is closed."""
    got = bytearray()

    def serve() -> None:
        for reply in replies:
            peer, _ = listener.accept()
            with peer:
                request = peer.recv(65536)
                while not request.endswith(b"}"):
                    request += peer.recv(65536)
                got[:] = request
                peer.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Target("127.0.0.1", listener.getsockname()[1], "/base"), got
        thread.join(5)


# --- the same story --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_clean_stream_is_the_same_over_every_transport(truth: Truth, transport: str):
    truth.clear()
    sample = asked(transport, truth.target, id_=f"clean-{transport}", new_tokens=20, gap_s=0.01)
    assert (sample.verdict, sample.detail, sample.status) == (Verdict.COMPLETE, None, 200)
    assert (sample.got.input_tokens, sample.got.new_tokens, sample.got.counted_by) == (4, 20, "server")
    assert [tokens for _, tokens, _ in sample.events] == [1] * 20
    assert sample.transport == transport
    assert sample.started_ns is not None
    assert sample.headers_ns is not None
    arrivals = [t for t, _, _ in sample.events]
    assert sample.first_text_ns == arrivals[0]
    instants = [sample.started_ns, sample.headers_ns, *arrivals, sample.ended_ns]
    assert instants == sorted(instants)
    # Not in that row: `sent` is read after the send returns; a busy process does so after the kernel's first stamp.
    assert (sample.sent_ns is None) == (transport == "huggingface_hub")
    assert sample.sent_ns is None or sample.started_ns <= sample.sent_ns
    # The id is the server's proof that the request's own headers reached it.
    record = truth.sends()[f"clean-{transport}"]
    assert sample.started_ns <= record["received_ns"]
    assert len(record["sends"]) == 20
    assert all(sent <= arrived for (sent, _), arrived in zip(record["sends"], arrivals, strict=True))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_text_is_the_same_over_every_transport(truth: Truth, transport: str):
    endpoint, seen, text, parser = (
        Scheduled(schedule={"jitter": 0, "fault": "split", "gap_s": 0.01}),
        Seen(),
        "",
        Parser(),
    )
    with closing(connect(transport, truth.target)) as connection:
        for read in connection.exchange(endpoint.request(PROMPT, 8, "x"), seen, SHORT):
            text += "".join(endpoint.read(event).text for event in parser.feed(read.data))
    assert seen.body_ended
    assert text == " é1 é2 é3 é4 é5 é6 é7 é8"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_an_endpoint_is_asked_before_is_answered(truth: Truth, transport: str):
    with closing(connect(transport, truth.target)) as connection:
        assert Scheduled(schedule={}).describe(connection).slots == 4
        pieces = Scheduled(schedule={}).tokenize(connection, PROMPT)
        assert ask(connection).complete
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 3), (4, 7), (8, 13), (14, 18)]


CASES = [
    *FAULTS,
    ("coalesce", Verdict.COMPLETE, 8, None),
    ("split", Verdict.COMPLETE, 8, None),
    ("role_first", Verdict.COMPLETE, 8, None),
]
OF_THE_HUB = {  # where the client can't tell, or says it otherwise
    "garble": (Verdict.ERROR_IN_STREAM, 3, "not JSON"),  # it stops at what it can't read
    "garble_http": (Verdict.TRUNCATED, 3, "3 of 8 tokens"),  # a broken chunk and a missing one look the same
    "close_before_headers": (Verdict.CONNECTION, 0, ""),  # in the words of the library under it
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("fault", "verdict", "events", "detail"), CASES, ids=[case[0] for case in CASES])
def test_each_fault_has_the_same_verdict_over_every_transport(
    truth: Truth, transport: str, fault: str, verdict: Verdict, events: int, detail: str | None
):
    if transport == "huggingface_hub":
        verdict, events, detail = OF_THE_HUB.get(fault, (verdict, events, detail))
    sample = asked(transport, truth.target, fault=fault, fault_after=3)
    assert (sample.verdict, len(sample.events)) == (verdict, events)
    if detail is None:
        assert sample.detail is None
    else:
        assert sample.detail is not None
        assert detail in sample.detail


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_longer_than_the_limit_is_a_timeout(truth: Truth, transport: str):
    sample = asked(transport, truth.target, new_tokens=200, gap_s=0.01, timeouts=Timeouts(total_s=0.3))
    assert (sample.verdict, sample.detail) == (Verdict.TIMEOUT, "not finished after 0.3 s")
    assert 0 < len(sample.events) < 200


@pytest.mark.parametrize("transport", OURS)
def test_the_first_byte_has_a_limit_of_its_own(truth: Truth, transport: str):
    limits = Timeouts(first_byte_s=0.2, gap_s=5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sample = asked(transport, Target("127.0.0.1", silent.getsockname()[1]), timeouts=limits)
    assert (sample.verdict, sample.detail) == (Verdict.TIMEOUT, "no answer came in 0.2 s")
    with closing(connect(transport, truth.target)) as connection:
        assert ask(connection, timeouts=limits).complete
        headers_only = ask(connection, first_s=0.5, timeouts=limits)  # of a second request too
    assert (headers_only.verdict, headers_only.detail) == (Verdict.TIMEOUT, "no answer came in 0.2 s")
    slow = asked(transport, truth.target, new_tokens=2, first_s=0, gap_s=0.5, timeouts=limits)
    assert slow.complete, "after the body's first byte the gap's limit holds"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_listening_is_a_connection_verdict_with_the_reason(transport: str):
    sample = asked(transport, Target("127.0.0.1", 1))
    assert (sample.verdict, sample.status) == (Verdict.CONNECTION, None)
    assert sample.detail is not None
    assert "Connection refused" in sample.detail


@contextmanager
def refusing(reply: bytes, context: ssl.SSLContext | None = None) -> Iterator[Target]:
    """Every connection gets the reply once its request has begun, and is closed with the rest of it unread: at once, or
    every second one when its client has had the time to read the reply.
    """
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            for wait_s in itertools.cycle((0, 0.1)):
                peer, _ = listener.accept()
                # As servers do. Else Nagle keeps the reply behind the unacknowledged TLS tickets, and `close` drops it.
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(OSError), peer if context is None else context.wrap_socket(peer, server_side=True) as by:
                    by.recv(1000)
                    by.sendall(reply)
                    over.wait(wait_s)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield Target("127.0.0.1", listener.getsockname()[1], tls=context is not None)
        over.set()
        listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`


REFUSED = b"HTTP/1.1 %s\r\ncontent-length: 15\r\nconnection: close\r\n\r\n" + b'{"error":"big"}'
LONG = "word " * 1_600_000  # more than both kernels take before anyone reads


@pytest.mark.parametrize("transport", OURS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("status", "verdict", "detail"),
    [
        (b"413 Content Too Large", Verdict.HTTP_ERROR, "HTTP 413: big"),
        (b"429 Too Many Requests", Verdict.OVERLOADED, "HTTP 429: big"),
    ],
)
def test_a_refusal_that_comes_before_all_was_sent_is_read(
    request: pytest.FixtureRequest, transport: str, tls: bool, status: bytes, verdict: Verdict, detail: str
):
    context = request.getfixturevalue("by_address") if tls else None
    with refusing(REFUSED % status, context) as target, closing(connect(transport, target, INSECURE)) as connection:
        samples = [ask(connection, prompt=LONG) for _ in range(3)]
    assert [(sample.verdict, sample.detail) for sample in samples] == [(verdict, detail)] * 3
    assert [sample.sent_ns for sample in samples] == [None] * 3


@pytest.mark.parametrize("transport", OURS)
def test_a_connection_that_breaks_while_a_request_is_sent_says_that_it_could_not_be(transport: str):
    with refusing(b"") as target:
        sample = asked(transport, target, prompt=LONG)
    assert (sample.verdict, sample.status, sample.sent_ns) == (Verdict.CONNECTION, None, None)
    assert sample.detail is not None
    assert sample.detail.startswith("the request could not be sent: ")


def test_the_hub_client_reads_errors_of_any_shape():
    said = b'{"detail":"no such thing"}'
    reply = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(said), said)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    with answering(reply, head + b"data: [1]\n\n", head + b"data: 7\n\n") as (target, _):
        refused, listed, number = (asked("huggingface_hub", target) for _ in range(3))
    assert (refused.verdict, refused.status) == (Verdict.HTTP_ERROR, 404)
    assert listed.verdict is number.verdict is Verdict.ERROR_IN_STREAM


def test_the_hub_client_is_never_asked_to_say_what_it_cannot(truth: Truth, monkeypatch: pytest.MonkeyPatch):
    connection = connect("huggingface_hub", truth.target)
    from loadtest.transport import hub_client

    said: dict[str, Any] = {}

    class Client:
        def __init__(self, model: str, headers: dict[str, str], timeout: float) -> None:
            said.update(model=model, headers=headers)

        def text_generation(self, prompt: str, **parameters: Any) -> Iterator[Any]:
            said.update(prompt=prompt, parameters=parameters)
            return iter(())

    monkeypatch.setattr(hub_client, "InferenceClient", Client)
    assert ask(connection, id_="r-1").verdict is Verdict.TRUNCATED
    assert said["model"] == f"{truth.target.origin}/generate_stream"
    assert (said["prompt"], said["parameters"]) == (
        PROMPT,
        {"max_new_tokens": 8, "details": True, "stream": True, "truncate": 4},
    )
    assert said["headers"]["x-request-id"] == "r-1"
    assert "x-tokenclock-timing" not in said["headers"]


@pytest.mark.parametrize(("transport", "library"), [("httpx", "httpx"), ("huggingface_hub", "huggingface_hub")])
def test_a_library_that_is_not_installed_is_named(transport: str, library: str):
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from loadtest.transport.choice import connecting\nfrom loadtest.transport.tls import Tls\n"
        f"try: connecting({transport!r}, Tls())\nexcept ModuleNotFoundError as error: print(error.name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == library


# --- one connection, kept and checked --------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", OURS)
def test_one_connection_serves_all_requests_of_a_user(truth: Truth, transport: str):
    with relay(truth.port) as way, closing(connect(transport, way.target)) as connection:
        fresh_ns = connection.ready(5)
        samples = [ask(connection) for _ in range(4)]
    assert fresh_ns is not None
    assert fresh_ns > 0
    assert [(sample.verdict, sample.connect_ns) for sample in samples] == [(Verdict.COMPLETE, None)] * 4
    assert way.connections == 1


@pytest.mark.parametrize("transport", OURS)
def test_a_connection_the_server_closed_meanwhile_is_replaced_before_the_clock_starts(raw_server: Any, transport: str):
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"  # keep-alive by its headers, then closed all the same
    with raw_server(reply, reply) as target, closing(connect(transport, target)) as connection:
        for seen in (first := Seen(), second := Seen()):
            assert b"".join(read.data for read in connection.exchange(HttpRequest("GET", "/"), seen, SHORT)) == b"ok"
            threading.Event().wait(0.1)  # the close arrives
    assert first.connect_ns is not None
    assert second.connect_ns is not None
    assert (second.status, second.headers) == (200, {"content-length": "2"})


@pytest.mark.parametrize("transport", OURS)
def test_after_each_fault_the_next_request_gets_a_connection_that_works(truth: Truth, transport: str):
    with closing(connect(transport, truth.target)) as connection:
        for fault in (
            "truncate",
            "reset",
            "garble_http",
            "stall",
            "http_500",
            "close_before_headers",
            "truncate_clean",
        ):
            broken = ask(connection, fault=fault, timeouts=Timeouts(5, 0.2, 0.2, 5))
            assert not broken.complete
            assert ask(connection).complete, f"after {fault}"


@pytest.mark.parametrize("transport", OURS)
def test_an_exchange_left_early_costs_the_next_one_its_connection_only(truth: Truth, transport: str):
    endpoint = Scheduled(schedule={"jitter": 0, "gap_s": 0.5})  # nothing is there to be read when the next one comes
    with closing(connect(transport, truth.target)) as connection:
        reads = connection.exchange(endpoint.request(PROMPT, 9, "left"), Seen(), SHORT)
        next(reads)
        reads.close()  # type: ignore[attr-defined]
        sample = ask(connection)
    assert sample.complete
    assert sample.connect_ns is not None


def test_httpx_starts_the_clock_at_its_first_write_and_has_sent_after_its_last(raw_server: Any):
    """By a clock that counts its readings: one for `started`, one after each of the two writes, head and body."""
    from loadtest.transport.httpx_client import HttpxConnection

    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as target:
        connection, seen = HttpxConnection(target, Tls().context(), clock=itertools.count().__next__), Seen()
        assert list(connection.exchange(HttpRequest("POST", "/", (), b"{}"), seen, SHORT)) == []
        connection.close()
    assert seen.started_ns is not None
    assert seen.sent_ns == seen.started_ns + 2


@pytest.mark.parametrize("transport", OURS)
@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (b"", ConnectionBroken, "before the response's headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", ConnectionBroken, "before the response's headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", BodyCut, "inside the body"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc", BodyCut, "inside the body"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc", NotHttp, "not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", NotHttp, "not HTTP/1.1"),
    ],
)
def test_a_reply_that_breaks_off_or_is_no_http_says_so(
    raw_server: Any, transport: str, reply: bytes, error: type, message: str
):
    with (
        raw_server(reply) as target,
        closing(connect(transport, target)) as connection,
        pytest.raises(error, match=message),
    ):
        fetch(connection, HttpRequest("GET", "/"), 2)


@pytest.mark.parametrize("transport", OURS)
def test_the_request_is_written_as_it_was_made(transport: str):
    """No header asks for compression, which would hold tokens back; a redirect isn't followed."""
    redirect = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n"
    with answering(redirect) as (target, got), closing(connect(transport, target)) as connection:
        status, body = fetch(connection, HttpRequest("POST", "/there", (("x-request-id", "7"),), b"{}"), 2)
    head, _, _ = bytes(got).partition(b"\r\n\r\n")
    first, *headers = head.decode().lower().split("\r\n")
    assert (status, body) == (307, b"")
    assert first == "post /base/there http/1.1"
    assert sorted(headers) == ["content-length: 2", f"host: 127.0.0.1:{target.port}", "x-request-id: 7"]


@pytest.mark.parametrize("transport", OURS)
def test_events_of_one_read_share_its_id_and_others_do_not(truth: Truth, transport: str):
    buffered = asked(transport, truth.target, fault="coalesce")
    assert len({(t_ns, read) for t_ns, _, read in buffered.events}) == 1
    streamed = asked(transport, truth.target, gap_s=0.1)
    assert len({read for _, _, read in streamed.events}) == 8


@linux
@pytest.mark.parametrize("transport", OURS)
def test_arrivals_are_stamped_by_the_kernel_where_it_does_and_never_without_being_asked(truth: Truth, transport: str):
    with closing(connect(transport, truth.target)) as connection:
        ask(connection)  # the kernel begins to stamp a moment after the first socket of the machine has asked
        assert ask(connection).clock == "kernel"
    with closing(connecting(transport, Tls(), kernel_stamps=False)(truth.target)) as connection:
        assert ask(connection).clock == "user"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("127.0.0.1", silent.getsockname()[1])
        with closing(connecting(transport, Tls(), kernel_stamps=False)(target)) as connection:
            assert ask(connection).clock == "user"


@linux
def test_a_stamp_that_cannot_be_true_is_not_called_the_kernels(truth: Truth):
    from loadtest.transport.httpx_client import HttpxConnection

    class Distrusting(ClockMap):
        def arrival_ns(self, stamp_ns: int, not_before_ns: int, now_ns: int) -> int | None:
            return None

    with closing(HttpxConnection(truth.target, Tls().context(), clock_map=Distrusting())) as connection:
        sample = ask(connection)
    assert (sample.verdict, sample.clock) == (Verdict.COMPLETE, "user")


@linux
@pytest.mark.parametrize("transport", OURS)
def test_a_read_that_comes_late_is_told_when_the_bytes_came(truth: Truth, transport: str):
    endpoint, arrivals = Scheduled(schedule={"jitter": 0, "gap_s": 0.01}), []
    truth.clear()
    with closing(connect(transport, truth.target)) as connection:
        for read in connection.exchange(endpoint.request(PROMPT, 2, "late"), Seen(), SHORT):
            arrivals.append(read.t_ns)
            threading.Event().wait(0.3)  # a process that is busy elsewhere
    (_, (second_sent_ns, _)) = truth.sends()["late"]["sends"]
    assert 0 <= arrivals[1] - second_sent_ns < 0.2e9


# --- TLS, IPv6, proxies ----------------------------------------------------------------------------------------------


@dataclass
class Way:
    """A relay in front of the schedule server, as its clients see it."""

    target: Target
    connections: int = 0


@contextmanager
def relay(
    port: int, context: ssl.SSLContext | None = None, host: str = "127.0.0.1", proxy: bool = False
) -> Iterator[Way]:
    """Carries bytes between its clients and a local port: under TLS, on another address, or as an HTTP proxy does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    way = Way(Target(host, listener.getsockname()[1], tls=context is not None))

    def carry(client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as upstream:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outer = client if context is None else context.wrap_socket(client, server_side=True)
            with outer:
                while True:
                    for source in select.select([outer, upstream], [], [])[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        if proxy and source is outer and data.startswith(b"CONNECT "):
                            threading.Event().wait(TUNNEL_S)
                            outer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                        elif proxy and source is outer:
                            upstream.sendall(data.replace(b" http://elsewhere.example/", b" /"))
                        else:
                            (upstream if source is outer else outer).sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                way.connections += 1
                threading.Thread(target=carry, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield way
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
    listener.close()


@dataclass(frozen=True)
class Certificates:
    """An authority of our own and what it has signed."""

    authority: Path
    served: Callable[[str], ssl.SSLContext]  # a server's context by its certificate's subject alternative name


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj")
    openssl(*new, "/CN=an authority", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")

    def served(name: str) -> ssl.SSLContext:
        (folder / "name").write_text(f"subjectAltName={name}\n")
        openssl(*new, "/CN=a server", "-keyout", "server.key", "-out", "server.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "name")
        openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        return context

    return Certificates(folder / "ca.pem", served)


@pytest.fixture(scope="session")
def by_address(certificates: Certificates) -> ssl.SSLContext:
    """A server's context whose certificate is for 127.0.0.1."""
    return certificates.served("IP:127.0.0.1")


@pytest.mark.parametrize("transport", OURS)
def test_under_tls_a_trusted_server_is_measured_as_any(
    truth: Truth, transport: str, certificates: Certificates, by_address: ssl.SSLContext
):
    truth.clear()
    trust = Tls(certificates.authority)
    with relay(truth.port, by_address) as way, closing(connect(transport, way.target, trust)) as connection:
        assert connection.ready(5) is not None
        samples = [ask(connection, id_=f"tls-{i}", new_tokens=30) for i in range(3)]
    assert [(sample.verdict, len(sample.events), sample.connect_ns) for sample in samples] == [
        (Verdict.COMPLETE, 30, None)
    ] * 3
    assert way.connections == 1
    if sys.platform.startswith("linux"):
        assert {sample.clock for sample in samples[1:]} == {"kernel"}  # as above: the first may come too early
    for sample in samples:
        sends = truth.sends()[sample.id]["sends"]
        assert all(sent <= arrived for (sent, _), (arrived, _, _) in zip(sends, sample.events, strict=True))


@pytest.mark.parametrize("transport", OURS)
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("truncate", Verdict.TRUNCATED),
        ("stall", Verdict.TIMEOUT),
        ("overloaded", Verdict.OVERLOADED),
        ("close_before_headers", Verdict.CONNECTION),
        ("coalesce", Verdict.COMPLETE),
    ],
)
def test_under_tls_faults_have_the_same_verdicts(
    truth: Truth, transport: str, certificates: Certificates, by_address: ssl.SSLContext, fault: str, verdict: Verdict
):
    with relay(truth.port, by_address) as way:
        assert asked(transport, way.target, Tls(certificates.authority), fault=fault).verdict is verdict


@pytest.mark.parametrize("transport", OURS)
def test_under_tls_a_prompt_longer_than_a_record_arrives_whole(
    truth: Truth, transport: str, certificates: Certificates, by_address: ssl.SSLContext
):
    trust = Tls(certificates.authority)
    with relay(truth.port, by_address) as way, closing(connect(transport, way.target, trust)) as connection:
        assert len(Scheduled(schedule={}).tokenize(connection, "word " * 40_000)) == 40_000


@pytest.mark.parametrize("transport", OURS)
def test_an_unknown_authority_is_refused_with_the_remedy_and_insecure_takes_it(
    truth: Truth, transport: str, by_address: ssl.SSLContext
):
    with relay(truth.port, by_address) as way:
        refused = asked(transport, way.target)
        taken = asked(transport, way.target, Tls(verify=False))
    assert (refused.verdict, refused.started_ns) == (Verdict.CONNECTION, None)
    assert refused.detail is not None
    assert refused.detail.startswith(f"127.0.0.1:{way.target.port} isn't trusted: ")
    assert refused.detail.endswith("name its authority with --cacert, or say --insecure")
    assert taken.complete


@pytest.mark.parametrize("transport", OURS)
def test_a_certificate_for_another_host_is_refused(truth: Truth, transport: str, certificates: Certificates):
    with relay(truth.port, certificates.served("DNS:elsewhere.example")) as way:
        sample = asked(transport, way.target, Tls(certificates.authority))
    assert sample.verdict is Verdict.CONNECTION
    assert sample.detail is not None
    assert "isn't trusted" in sample.detail
    assert "127.0.0.1" in sample.detail.partition("isn't trusted")[2]


@pytest.mark.parametrize("transport", OURS)
def test_a_server_of_many_names_is_told_which_one_is_meant(truth: Truth, transport: str, certificates: Certificates):
    named: list[str | None] = []
    context = certificates.served("DNS:localhost")
    context.sni_callback = lambda _connection, name, _context: named.append(name)
    with relay(truth.port, context) as way:
        sample = asked(transport, replace(way.target, host="localhost"), Tls(certificates.authority))
    assert sample.complete
    assert named == ["localhost"]


@pytest.mark.parametrize("transport", OURS)
def test_tls_with_a_server_that_speaks_none_asks_whether_it_is_https(raw_server: Any, transport: str):
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as target:
        sample = asked(transport, Target(target.host, target.port, tls=True))
    assert sample.verdict is Verdict.CONNECTION
    assert sample.detail is not None
    assert "no TLS with" in sample.detail


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_address_of_ip_version_6_is_a_host_like_any(truth: Truth, transport: str):
    try:
        with relay(truth.port, host="::1") as way:
            sample = asked(transport, way.target)
    except OSError as error:
        pytest.skip(f"this machine has no ::1 ({error})")
    assert sample.complete


def test_httpx_goes_through_the_proxy_that_the_environment_names(truth: Truth, monkeypatch: pytest.MonkeyPatch):
    elsewhere = Target("elsewhere.example", 80)
    with relay(truth.port, proxy=True) as way:
        monkeypatch.setenv("http_proxy", way.target.origin)
        with closing(connect("httpx", elsewhere)) as connection:
            samples = [ask(connection) for _ in range(3)]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert asked("httpx", truth.target).complete
    assert [sample.verdict for sample in samples] == [Verdict.COMPLETE] * 3
    assert way.connections == 1
    if sys.platform.startswith("linux"):
        assert samples[-1].clock == "kernel"


def test_a_tunnels_opening_is_a_connects_cost_and_not_the_first_tokens(
    truth: Truth, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
):
    context = certificates.served("DNS:elsewhere.example")
    truth.clear()
    with relay(truth.port, context) as inner, relay(inner.target.port, proxy=True) as way:
        monkeypatch.setenv("https_proxy", way.target.origin)
        trust = Tls(certificates.authority)
        with closing(connect("httpx", Target("elsewhere.example", 443, tls=True), trust)) as connection:
            connection.ready(5)
            first, second = (ask(connection, id_=f"tunnel-{i}", first_s=0.1) for i in range(2))
        distrusted = asked("httpx", Target("elsewhere.example", 443, tls=True))
    assert (first.verdict, second.verdict) == (Verdict.COMPLETE, Verdict.COMPLETE)
    assert first.connect_ns is not None
    assert first.connect_ns >= TUNNEL_S * 1e9
    assert second.connect_ns is None
    assert first.started_ns is not None
    assert truth.sends()["tunnel-0"]["received_ns"] - first.started_ns < TUNNEL_S * 1e9
    assert first.events[0][2] == second.events[0][2], "the tunnel's reads are no reads of the exchange"
    assert distrusted.verdict is Verdict.CONNECTION
    assert distrusted.detail is not None
    assert "--cacert" in distrusted.detail


def test_a_tunnel_that_leads_nowhere_times_out_each_time(monkeypatch: pytest.MonkeyPatch):
    limits = Timeouts(connect_s=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, relay(silent.getsockname()[1], proxy=True) as way:
        monkeypatch.setenv("https_proxy", way.target.origin)
        with closing(connect("httpx", Target("elsewhere.example", 443, tls=True))) as connection:
            samples = [ask(connection, timeouts=limits) for _ in range(2)]
    assert [(sample.verdict, sample.detail) for sample in samples] == [
        (Verdict.TIMEOUT, "no TLS with elsewhere.example in 0.3 s")
    ] * 2


def test_a_proxy_that_refuses_or_cannot_be_used_says_so(raw_server: Any, monkeypatch: pytest.MonkeyPatch):
    with raw_server(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", proxy.origin)
        refused = asked("httpx", Target("elsewhere.example", 443, tls=True))
    assert (refused.verdict, refused.detail) == (Verdict.CONNECTION, "the proxy refuses: 403 Forbidden")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    unusable = asked("httpx", Target("elsewhere.example", 80))
    assert unusable.verdict is Verdict.CONNECTION
    assert unusable.detail is not None
    assert "socks5://127.0.0.1:1080 can't be used" in unusable.detail


@pytest.mark.parametrize("proxy", ["socks://user:hidden-word@127.0.0.1:1080", "http://user:hidden-word@127.0.0.1:port"])
def test_a_proxy_whose_url_is_none_says_so_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConnectionBroken, match=r"127\.0\.0\.1:.* can't be used: name one as http://") as refused:
        asked("httpx", Target("elsewhere.example", 80))
    assert "hidden-word" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("transport", ["httpx", "huggingface_hub", "boto3"])
def test_what_is_not_timed_takes_the_proxies_that_timed_requests_take(
    truth: Truth, transport: str, monkeypatch: pytest.MonkeyPatch
):
    with relay(truth.port, proxy=True) as way:
        monkeypatch.setenv("http_proxy", way.target.origin)
        with closing(controlling(transport, Tls())(Target("elsewhere.example", 80))) as connection:
            assert Scheduled(schedule={}).describe(connection).slots == 4
        with closing(controlling("gevent", Tls())(truth.target)) as connection:
            assert Scheduled(schedule={}).describe(connection).slots == 4
    assert way.connections == 1, "gevent takes no proxies"


@pytest.mark.parametrize("value", ["sk-never-shown\n", "sk-never-shown ", "sk-never-shown-é"])
def test_a_header_that_httpx_cannot_send_is_said_without_its_value(truth: Truth, value: str):
    target = replace(truth.target, headers=(("authorization", value),))
    with closing(connect("httpx", target)) as connection:
        sample = ask(connection)
        with pytest.raises(ConnectionBroken) as refused:
            fetch(connection, HttpRequest("GET", "/info"))
    assert (sample.verdict, sample.detail) == (Verdict.CONNECTION, str(refused.value))
    assert "--header" in str(refused.value)
    assert "never-shown" not in "".join(traceback.format_exception(refused.value))


# --- milliseconds ----------------------------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.parametrize("transport", OURS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_ttft_agrees_with_the_recorded_sends(
    truth: Truth, transport: str, tls: bool, certificates: Certificates, by_address: ssl.SSLContext
):
    truth.clear()
    context, trust = by_address if tls else None, Tls(certificates.authority)
    with relay(truth.port, context) as way, closing(connect(transport, way.target, trust)) as connection:
        samples = [ask(connection, id_=f"{i}", first_s=0.05) for i in range(20)]
    recorded, errors = truth.sends(), []
    for sample in samples:
        record, measured = recorded[sample.id], ttft_s(sample)
        assert measured is not None
        errors.append(measured - (record["sends"][0][0] - record["received_ns"]) / 1e9)
    assert len(errors) == 20
    print(f"\n{transport}, {'TLS' if tls else 'plain'}: TTFT error {statistics.median(errors) * 1e3:.3f} ms")
    assert 0 <= statistics.median(errors) < 0.003  # the relay's two hops included
