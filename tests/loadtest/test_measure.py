"""Every fault of a stream gets its own verdict, none counts as success, and what arrived before it is kept.

Method: a server whose schedule and faults are known, in a process of its own (tests/schedule_server.py records each
send); the real transport over real sockets. Only order and counts are asserted here; milliseconds are in
test_timing.py.
"""

from __future__ import annotations

import collections
import socket
import threading
import time
from typing import Any

import gevent
import pytest

from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.transport.base import (
    BodyCut,
    ConnectionBroken,
    HttpRequest,
    NotHttp,
    Seen,
    Target,
    TimedOut,
    Timeouts,
    fetch,
)
from loadtest.transport.gevent_socket import GeventConnection
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Scheduled, Truth
from tests.loadtest.faults import FAULTS

SHORT = Timeouts(connect_s=5, first_byte_s=0.4, gap_s=0.4, total_s=5)


def test_a_good_stream_is_complete_and_its_instants_are_in_order(truth: Truth):
    (sample,) = truth.measure(new_tokens=20)
    assert (sample.verdict, sample.detail, sample.status) == (Verdict.COMPLETE, None, 200)
    assert (sample.got.input_tokens, sample.got.new_tokens, sample.got.counted_by) == (4, 20, "server")
    arrivals = [t for t, _, _ in sample.events]
    assert [tokens for _, tokens, _ in sample.events] == [1] * 20
    assert sample.started_ns is not None
    assert sample.sent_ns is not None
    assert sample.headers_ns is not None
    instants = [sample.scheduled_ns, sample.started_ns, sample.sent_ns, sample.headers_ns, *arrivals, sample.ended_ns]
    assert instants == sorted(instants)
    assert sample.first_text_ns == arrivals[0]
    assert sample.connect_ns is None, "the connection was opened before the clock started"


@pytest.mark.parametrize("fault", [None, "coalesce", "split"])
def test_the_bodys_bytes_are_counted_however_they_come(truth: Truth, fault: str | None):
    endpoint = Scheduled(schedule={"jitter": 0, "fault": fault})
    asked = endpoint.request("one two three four", 6, "plain", 4)
    connection = GeventConnection(truth.target)
    _, body = fetch(connection, asked)
    connection.close()
    (sample,) = truth.measure(new_tokens=6, fault=fault)
    assert sample.body_bytes == len(body) > 6 * 50


def test_arrivals_never_precede_their_sends_and_every_send_arrives(truth: Truth):
    truth.clear()
    samples = truth.measure(new_tokens=30, users=4, each=3, gap_s=0.002)
    recorded = truth.sends()
    assert len(samples) == len(recorded) == 12
    for sample in samples:
        sends = recorded[sample.id]["sends"]
        assert len(sends) == len(sample.events) == 30
        assert sample.started_ns is not None
        assert sample.started_ns <= recorded[sample.id]["received_ns"]
        assert all(sent <= arrived for (sent, _), (arrived, _, _) in zip(sends, sample.events, strict=True))


def test_one_connection_serves_all_requests_of_a_user(truth: Truth):
    samples = truth.measure(each=5)
    assert [sample.verdict for sample in samples] == [Verdict.COMPLETE] * 5
    assert [sample.connect_ns for sample in samples] == [None] * 5


@pytest.mark.parametrize(("fault", "verdict", "events", "detail"), FAULTS)
def test_each_fault_has_its_verdict_and_keeps_what_came_before(
    truth: Truth, fault: str, verdict: Verdict, events: int, detail: str
):
    (sample,) = truth.measure(fault=fault, fault_after=3, timeouts=SHORT)
    assert sample.verdict is verdict
    assert not sample.complete
    assert len(sample.events) == events
    assert sample.detail is not None
    assert detail in sample.detail


def test_a_fault_costs_its_own_request_only(truth: Truth):
    samples = [
        sample
        for fault in ("truncate", "reset", "garble_http", "stall", None)
        for sample in truth.measure(users=2, each=1, fault=fault, timeouts=SHORT)
    ]
    assert [sample.complete for sample in samples] == [False] * 8 + [True] * 2


def test_a_request_longer_than_the_limit_is_a_timeout_though_it_never_falls_silent(truth: Truth):
    (sample,) = truth.measure(new_tokens=200, gap_s=0.01, timeouts=Timeouts(total_s=0.3))
    assert sample.verdict is Verdict.TIMEOUT
    assert sample.detail == "not finished after 0.3 s"
    assert 0 < len(sample.events) < 200


def test_events_of_one_read_share_its_id_and_others_do_not(truth: Truth):
    (buffered,) = truth.measure(fault="coalesce")
    assert buffered.complete
    assert len(buffered.events) == 8
    assert len({read for _, _, read in buffered.events}) == 1
    (streamed,) = truth.measure(gap_s=0.1)
    assert len({read for _, _, read in streamed.events}) == 8


def test_characters_cut_between_two_reads_are_read_whole(truth: Truth):
    (sample,) = truth.measure(fault="split", gap_s=0.01)
    assert sample.complete
    assert len(sample.events) == 8


def test_an_event_without_a_token_is_no_first_token(truth: Truth):
    truth.clear()
    (sample,) = truth.measure(fault="role_first", first_s=0.1)
    assert sample.complete
    assert len(sample.events) == 8
    first_token_sent = next(t for t, tokens in truth.sends()[sample.id]["sends"] if tokens)
    assert sample.events[0][0] >= first_token_sent


def measured(target: Target) -> Sample:
    """One request for eight tokens on a connection of its own."""
    connection = GeventConnection(target)
    order = Order("x", Cell(None, None, 1, 4, 8), "steady", "a", 0)
    sample = measure(connection, TgiEndpoint(), order, run="r", process=0, user=0, timeouts=SHORT)
    connection.close()
    return sample


def test_nobody_listening_is_a_connection_verdict_with_the_reason(truth: Truth):
    sample = measured(Target("127.0.0.1", 1))
    assert (sample.verdict, sample.status, sample.started_ns) == (Verdict.CONNECTION, None, None)
    assert sample.detail == "no connection to 127.0.0.1:1: Connection refused"


@pytest.mark.parametrize("sent", [1, 2, 5, 30])
def test_a_killed_greenlet_leaves_a_cancelled_sample_with_all_that_came(truth: Truth, sent: int):
    endpoint = Scheduled(schedule={"jitter": 0, "first_s": 0.01, "gap_s": 0.002, "fault": "stall", "fault_after": sent})
    order = Order("x", Cell(None, None, 1, 4, 1000), "steady", "a", 0)
    kept: list[Sample] = []

    def user() -> None:
        connection = GeventConnection(truth.target)
        kept.append(measure(connection, endpoint, order, run="r", process=0, user=0, timeouts=Timeouts()))

    greenlet = gevent.spawn(user)
    gevent.sleep(0.3)
    greenlet.kill()
    (sample,) = kept
    assert sample.verdict is Verdict.CANCELLED
    assert len(sample.events) == sent


# --- the transport alone, against bytes that are known ---------------------------------------------------------------


def whole(target: Target, timeout_s: float = 2) -> tuple[int, bytes]:
    connection = GeventConnection(target)
    try:
        return fetch(connection, HttpRequest("GET", "/"), timeout_s)
    finally:
        connection.close()


def test_a_body_ends_as_its_framing_says(raw_server: Any):
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\ntrailer: 1\r\n\r\n"
    sized = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcdeNOT ME"
    closed = b"HTTP/1.1 200 OK\r\n\r\nabcde"
    for reply in (chunked, sized, closed):
        with raw_server(reply) as target:
            assert whole(target) == (200, b"abcde")


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (b"", ConnectionBroken, "before the response's headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", ConnectionBroken, "before the response's headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", BodyCut, "inside the body"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc", BodyCut, "inside the body"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotHttp, "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc", NotHttp, "not HTTP/1.1"),
    ],
)
def test_a_reply_that_breaks_off_or_is_no_http_says_so(raw_server: Any, reply: bytes, error: type, message: str):
    with raw_server(reply) as target, pytest.raises(error, match=message):
        whole(target)


def test_a_connection_the_server_closed_meanwhile_is_replaced_before_the_clock_starts(raw_server: Any):
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"  # keep-alive by its headers, then closed all the same
    with raw_server(reply, reply) as target:
        connection = GeventConnection(target)
        first, second = Seen(), Seen()
        assert b"".join(read.data for read in connection.exchange(HttpRequest("GET", "/"), first, SHORT)) == b"ok"
        gevent.sleep(0.1)
        assert b"".join(read.data for read in connection.exchange(HttpRequest("GET", "/"), second, SHORT)) == b"ok"
        connection.close()
    assert second.connect_ns is not None
    assert second.started_ns is not None
    assert second.status == 200


def test_a_server_that_accepts_and_says_nothing_times_out():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimedOut, match=r"0\.2 s"):
        whole(Target("127.0.0.1", listener.getsockname()[1]), timeout_s=0.2)


def test_replies_that_only_announce_another_are_passed_over(raw_server: Any):
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\ncontent-length: 99\r\n\r\n"
    reply = b"HTTP/1.1 100 Continue\r\n\r\n" + hints + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    with raw_server(reply) as target:
        connection, seen = GeventConnection(target), Seen()
        body = b"".join(read.data for read in connection.exchange(HttpRequest("GET", "/"), seen, SHORT))
        connection.close()
    assert (seen.status, body, seen.headers) == (200, b"ok", {"content-length": "2"})


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        (b"content-type: application/json", "the answer is application/json, not text/event-stream: boom"),
        (b"content-type: text/event-stream\r\ncontent-encoding: gzip", "the answer is compressed (gzip)"),
    ],
)
def test_a_200_that_is_no_readable_stream_says_what_it_is(raw_server: Any, headers: bytes, detail: str):
    body = b'{"error":"boom"}'
    reply = b"HTTP/1.1 200 OK\r\n" + headers + b"\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with raw_server(reply) as target:
        sample = measured(target)
    assert sample.verdict is Verdict.ERROR_IN_STREAM
    assert sample.detail is not None
    assert detail in sample.detail


def test_what_came_before_broken_framing_in_the_same_read_is_kept(raw_server: Any):
    reply = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    with raw_server(reply) as target:
        connection = GeventConnection(target)
        stream = connection.exchange(HttpRequest("GET", "/"), Seen(), SHORT)
        assert next(iter(stream)).data == b"abc"
        with pytest.raises(NotHttp):
            next(iter(stream))
        connection.close()


def test_a_redirect_is_not_followed_and_says_where_to_measure_instead(raw_server: Any):
    reply = (
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: https://elsewhere/generate_stream\r\ncontent-length: 0\r\n\r\n"
    )
    with raw_server(reply) as target:
        sample = measured(target)
    assert sample.verdict is Verdict.HTTP_ERROR
    assert sample.detail == ("HTTP 307: redirects to 'https://elsewhere/generate_stream': measure that URL itself")


@pytest.mark.parametrize(
    ("timeouts", "fault", "detail"),
    [
        (Timeouts(first_byte_s=0.2), {"first_s": 1.0}, "no answer came in 0.2 s"),
        (Timeouts(gap_s=0.2), {"fault": "stall"}, "nothing arrived for 0.2 s"),
        (Timeouts(total_s=0.3), {"gap_s": 0.02}, "not finished after 0.3 s"),
    ],
)
def test_every_timeout_has_its_own_sentence(truth: Truth, timeouts: Timeouts, fault: dict[str, Any], detail: str):
    (sample,) = truth.measure(new_tokens=100, timeouts=timeouts, **fault)
    assert (sample.verdict, sample.detail) == (Verdict.TIMEOUT, detail)


def test_a_deadline_that_moves_with_every_byte_is_kept_to_the_last(truth: Truth):
    """40 gaps of 60 ms with a limit of 200 ms on one: the timer behind it was set at the first."""
    (sample,) = truth.measure(new_tokens=40, gap_s=0.06, timeouts=Timeouts(gap_s=0.2))
    assert sample.complete


def test_reads_that_nobody_takes_are_left_to_the_kernel_and_come_in_order(raw_server: Any):
    body = bytes(range(256)) * 40_000  # 10 MB, more than a wire reads ahead
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with raw_server(reply) as target:
        connection, got = GeventConnection(target), bytearray()
        for read in connection.exchange(HttpRequest("GET", "/"), Seen(), SHORT):
            if len(got) < 300_000:
                gevent.sleep(0.02)  # a reader that is slow at first
            got += read.data
        connection.close()
    assert bytes(got) == body


def test_a_body_ends_when_its_last_byte_comes_though_that_is_none_of_its_text():
    """The end of a chunked body may have a read of its own; a user's next request counts from it."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(head + b"2\r\n\n\n\r\n")
                time.sleep(0.2)
                peer.sendall(b"0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        connection, seen = GeventConnection(Target("127.0.0.1", listener.getsockname()[1])), Seen()
        (read,) = connection.exchange(HttpRequest("GET", "/"), seen, SHORT)
        connection.close()
        thread.join(5)
    assert seen.body_ended
    assert (seen.ended_ns or 0) - read.t_ns > 0.15e9


def test_a_refusal_that_comes_before_all_was_sent_is_read():
    reply = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        connection, seen = GeventConnection(Target("127.0.0.1", listener.getsockname()[1])), Seen()
        reads = list(connection.exchange(HttpRequest("POST", "/", (), bytes(8_000_000)), seen, SHORT))
        connection.close()
        thread.join(5)
    assert seen.status == 413
    assert b"".join(read.data for read in reads) == b"big"


@pytest.mark.parametrize(
    ("port", "tls", "authority"), [(443, True, "h"), (80, False, "h"), (80, True, "h:80"), (443, False, "h:443")]
)
def test_a_schemes_own_port_is_not_in_the_host_header(port: int, tls: bool, authority: str):
    assert Target("h", port, tls=tls).authority == authority
    assert Target("::1", port, tls=tls).authority == authority.replace("h", "[::1]")


def test_a_reader_that_always_finds_something_is_timed_out_too(raw_server: Any):
    body = bytes(10_000_000)
    with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)) as target:
        connection, begun = GeventConnection(target), time.monotonic()
        reads = connection.exchange(HttpRequest("GET", "/"), Seen(), Timeouts(total_s=0.2))
        with pytest.raises(TimedOut, match=r"not finished after 0\.2 s"):
            collections.deque((gevent.sleep(0.01) for _ in reads), maxlen=0)
        connection.close()
    assert time.monotonic() - begun < 5
