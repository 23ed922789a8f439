"""Over HTTP/2 a request has the sample and the verdict that it has over HTTP/1.1, and its clock starts no earlier.

Method: `--transport httpx --http2` against a server of HTTP/2 under TLS on real sockets (http2_front.py), which stands
in front of the server of known schedule and breaks streams and connections off as HTTP/2 does.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from loadtest.sample import Sample
from loadtest.transport.base import ConnectionBroken, HttpRequest, NotHttp, Seen, Target, TimedOut, Timeouts, fetch
from loadtest.transport.choice import connecting, controlling, trusting
from loadtest.transport.http2 import Frames
from loadtest.transport.httpx_client import HttpxConnection
from loadtest.transport.httpx_stream import opening
from loadtest.transport.tls import Tls, TlsError
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Truth
from tests.loadtest.faults import FAULTS
from tests.loadtest.http2_front import Front, http2_front
from tests.loadtest.test_transports import (  # noqa: F401  (fixtures)
    LONG,
    SHORT,
    TUNNEL_S,
    Certificates,
    _no_proxy_of_this_machine,
    ask,
    by_address,
    certificates,
    relay,
)

HTTP2 = Tls(verify=False, http2=True)


def connect(target: Target, tls: Tls = HTTP2) -> HttpxConnection:
    connection = connecting("httpx", tls)(target)
    assert isinstance(connection, HttpxConnection)
    return connection


@pytest.fixture
def front(truth: Truth, certificates: Certificates) -> Iterator[Front]:  # noqa: F811
    with http2_front(truth.port, certificates.served("IP:127.0.0.1")) as serving:
        yield serving


def told(front: Front, *orders: str, **asked: object) -> list[Sample]:
    """The samples of as many requests on one connection, or of one without an order."""
    front.orders.extend(orders)
    with closing(connect(front.target)) as connection:
        samples = []
        for number in range(max(len(orders), 1)):
            samples.append(ask(connection, id_=f"h2-{number}", **asked))  # type: ignore[arg-type]
            threading.Event().wait(0.1)  # what comes behind an answer has come
        return samples


def test_a_clean_stream_is_the_same_and_one_connection_serves_all_requests(truth: Truth, front: Front):
    truth.clear()
    with closing(connect(front.target)) as connection:
        opened_ns = connection.ready(5)
        samples = [ask(connection, id_=f"clean-{i}", new_tokens=20, gap_s=0.01) for i in range(4)]
    assert opened_ns is not None
    assert [(s.verdict, s.detail, s.status, s.connect_ns) for s in samples] == [(Verdict.COMPLETE, None, 200, None)] * 4
    assert [(s.got.input_tokens, s.got.new_tokens, len(s.events)) for s in samples] == [(4, 20, 20)] * 4
    assert front.connections == 1
    recorded = truth.sends()
    for sample in samples:
        record, arrivals = recorded[sample.id], [t for t, _, _ in sample.events]
        assert None not in (sample.started_ns, sample.sent_ns, sample.headers_ns)
        instants = [sample.started_ns, sample.headers_ns, *arrivals, sample.ended_ns]
        assert instants == sorted(instants)  # type: ignore[type-var]
        assert sample.started_ns <= sample.sent_ns  # type: ignore[operator]
        assert sample.started_ns <= record["received_ns"]
        assert all(sent <= arrived for (sent, _), arrived in zip(record["sends"], arrivals, strict=True))
        assert sample.transport == "httpx"
    if sys.platform.startswith("linux"):
        assert {sample.clock for sample in samples} == {"kernel"}


OF_A_PROXY = {  # what comes of a broken answer behind one
    "reset": (Verdict.TRUNCATED, 3, "3 of 8 tokens"),
    "garble_http": (Verdict.TRUNCATED, 3, "3 of 8 tokens"),
    "close_before_headers": (
        Verdict.CONNECTION,
        0,
        "the stream was reset (INTERNAL_ERROR) before the response's headers",
    ),
}


@pytest.mark.parametrize(("fault", "verdict", "events", "detail"), FAULTS, ids=[case[0] for case in FAULTS])
def test_each_fault_has_its_verdict(front: Front, fault: str, verdict: Verdict, events: int, detail: str):
    verdict, events, detail = OF_A_PROXY.get(fault, (verdict, events, detail))
    with closing(connect(front.target)) as connection:
        sample = ask(connection, fault=fault, fault_after=3)
        after = ask(connection)
    assert (sample.verdict, len(sample.events)) == (verdict, events)
    assert detail in (sample.detail or "")
    assert after.complete, "and the next request has a connection that works"


def test_a_stream_that_is_refused_or_left_out_is_a_connection_verdict_with_the_reason(front: Front):
    refused, gone, after = told(front, "refused", "gone", "")
    assert (refused.verdict, refused.detail) == (
        Verdict.CONNECTION,
        "the stream was reset (REFUSED_STREAM) before the response's headers",
    )
    assert (gone.verdict, gone.detail) == (
        Verdict.CONNECTION,
        "the server went away without taking the request (ENHANCE_YOUR_CALM) before the response's headers",
    )
    assert after.complete


def test_a_server_that_goes_away_in_order_finishes_its_stream_and_gets_no_further_one(front: Front):
    samples = told(front, "last", "away", "")
    assert [sample.verdict for sample in samples] == [Verdict.COMPLETE] * 3
    assert [sample.connect_ns is not None for sample in samples] == [True, True, True]
    assert front.connections == 3


def test_frames_between_two_requests_leave_the_connection_alive(front: Front):
    samples = told(front, "idle", "idle", "idle")
    assert [sample.verdict for sample in samples] == [Verdict.COMPLETE] * 3
    assert [sample.connect_ns is None for sample in samples] == [False, True, True]
    assert front.connections == 1
    assert front.pings_answered >= 2


def test_pings_do_not_hide_a_stream_that_is_silent(front: Front):
    (sample,) = told(front, "pings")
    assert (sample.verdict, sample.detail, len(sample.events)) == (Verdict.TIMEOUT, "nothing arrived for 0.4 s", 4)
    assert front.pings_answered > 2, "they came, and were answered"


def test_bytes_that_are_no_frame_end_the_stream_and_keep_what_came(front: Front):
    (sample,) = told(front, "rubbish")
    assert (sample.verdict, len(sample.events)) == (Verdict.ERROR_IN_STREAM, 4)
    assert (sample.detail or "").startswith("not HTTP/2: a frame of 16,777,215 bytes")


def test_a_refusal_that_comes_before_all_was_sent_is_read(front: Front):
    large, after = told(front, "large", "", prompt=LONG, timeouts=Timeouts(5, 20, 20, 40))
    assert (large.verdict, large.detail, large.sent_ns) == (Verdict.HTTP_ERROR, "HTTP 413: big", None)
    assert after.complete
    assert after.got.input_tokens == len(LONG.split()), "many windows long"


def test_a_status_that_is_no_number_costs_its_own_request(front: Front):
    odd, after = told(front, "status", "")
    assert (odd.verdict, (odd.detail or "")[:11]) == (Verdict.ERROR_IN_STREAM, "not HTTP/2:")
    assert after.complete


def test_events_of_one_read_share_its_id_and_others_do_not(front: Front):
    (buffered,) = told(front, "together")
    assert len(buffered.events) == 8
    assert len({(t_ns, read) for t_ns, _, read in buffered.events}) == 1
    (streamed,) = told(front, gap_s=0.1)
    assert len({read for _, _, read in streamed.events}) == 8


def test_an_exchange_left_early_costs_the_next_one_its_connection(front: Front):
    with closing(connect(front.target)) as connection:
        reads = connection.exchange(HttpRequest("GET", "/info"), Seen(), SHORT)
        next(reads)
        reads.close()  # type: ignore[attr-defined]
        sample = ask(connection)
    assert (sample.complete, front.connections) == (True, 2)


def test_the_clock_starts_at_the_request_and_what_opens_a_connection_came_before(front: Front):
    """By a clock that counts its readings, and the frames as they were written."""
    with closing(HttpxConnection(front.target, HTTP2.context(), http2=True)) as connection:
        connection.ready(5)
        stream = connection._backend.stream
        assert stream is not None
        assert stream._frames is not None
        assert stream._frames.settled, "the server's SETTINGS are here"
        done, send, seen = [], stream._wire.send, Seen()  # in their order: readings of the clock, kinds of frames

        def sending(data: bytes, timeout_s: float) -> None:
            done.append(f"frame {data[3]}")
            send(data, timeout_s)

        def reading() -> int:
            done.append(time.monotonic_ns())
            return done[-1]

        stream._wire.send, stream._clock = sending, reading  # type: ignore[method-assign]
        assert b"".join(r.data for r in connection.exchange(HttpRequest("GET", "/info"), seen, SHORT))
    assert done[1] == "frame 1", "the first that is written is HEADERS"
    assert seen.started_ns == done[0], "and the clock was read just before"
    assert seen.sent_ns == done[2], "a request without a body is sent by then, whatever is acknowledged later"
    assert "frame 4" in done[3:], "the server's SETTINGS were"
    assert (seen.http, seen.status) == ("HTTP/2", 200)


def test_a_server_of_http1_alone_is_refused_with_the_remedy(truth: Truth, by_address: ssl.SSLContext):  # noqa: F811
    by_address.set_alpn_protocols(["http/1.1"])
    with relay(truth.port, by_address) as way:
        with closing(connect(way.target)) as connection:
            sample = ask(connection)
        with closing(connect(way.target, Tls(verify=False))) as connection:
            assert ask(connection).complete
    port = way.target.port
    assert (sample.verdict, sample.detail) == (
        Verdict.CONNECTION,
        f"127.0.0.1:{port} offers no HTTP/2 (TLS chose http/1.1): leave --http2 out",
    )
    with pytest.raises(ConnectionBroken, match="is without TLS, which HTTP/2 is spoken under: leave --http2 out"):
        connect(truth.target)


def test_http2_belongs_to_httpx():
    with pytest.raises(TlsError, match=r"--http2 is httpx's, gevent speaks HTTP/1\.1: add --transport httpx"):
        trusting("gevent", None, True, http2=True)


def test_a_server_that_agrees_to_h2_and_says_nothing_times_out_before_the_clock_starts(certificates: Certificates):  # noqa: F811
    context = certificates.served("IP:127.0.0.1")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        relay(silent.getsockname()[1], context) as way,
        closing(connect(way.target)) as connection,
        pytest.raises(TimedOut, match="its SETTINGS didn't come"),
    ):
        connection.ready(0.5)


def test_what_is_not_timed_is_asked_over_http2_too(front: Front):
    with closing(controlling("httpx", HTTP2)(front.target)) as connection:
        assert fetch(connection, HttpRequest("GET", "/info"))[0] == 200


def test_a_header_that_cannot_be_sent_is_said_without_its_value(front: Front):
    value = "sk-never-shown-é"
    target = Target(front.target.host, front.target.port, tls=True, headers=(("authorization", value),))
    with (
        closing(connect(target)) as connection,
        pytest.raises(ConnectionBroken, match="a header can't be sent") as error,
    ):
        fetch(connection, HttpRequest("GET", "/info"))
    assert "never-shown" not in str(error.value)


def test_http2_goes_through_a_proxys_tunnel(
    truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,  # noqa: F811
):
    with (
        http2_front(truth.port, certificates.served("DNS:elsewhere.example")) as front,
        relay(front.target.port, proxy=True) as way,
    ):
        monkeypatch.setenv("https_proxy", way.target.origin)
        with closing(connect(Target("elsewhere.example", 443, tls=True))) as connection:
            samples = [ask(connection, id_=f"tunnel-{i}", first_s=0.1) for i in range(3)]
    assert [sample.verdict for sample in samples] == [Verdict.COMPLETE] * 3
    assert [sample.connect_ns is not None for sample in samples] == [True, False, False]
    assert front.connections == way.connections == 1
    received_ns = [truth.sends()[sample.id]["received_ns"] for sample in samples]
    for sample, received in zip(samples, received_ns, strict=True):
        assert sample.started_ns is not None
        assert sample.started_ns <= received
    first = samples[0]
    assert first.connect_ns is not None
    assert first.connect_ns > TUNNEL_S * 1e9, "the tunnel's reply, which is so late, is a connect's cost"


# --- frames alone ----------------------------------------------------------------------------------------------------


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def test_frames_are_handed_on_whole_and_in_order_however_they_are_split():
    sent = [frame(4), frame(6, b"12345678"), frame(1, b"h", 4, 1), frame(0, b"token", 0, 1), frame(0, b"", 1, 1)]
    for size in range(1, 30):
        frames, got, data = Frames(), [], b"".join(sent)
        frames.outgoing(frame(1, b"h", 1, 1))
        for at in range(0, len(data), size):
            frames.incoming(data[at : at + size])
            while each := frames.for_library():
                got.append(each)
        assert got == sent
        assert frames.answered


@pytest.mark.parametrize(("kind", "payload"), [(3, b""), (3, b"12345"), (7, b"1234"), (8, b"123")])
def test_a_frame_of_another_length_than_its_type_has_is_no_http2(kind: int, payload: bytes):
    frames = Frames()
    frames.incoming(frame(4))
    with pytest.raises(NotHttp, match=f"a frame of type {kind} with {len(payload)} bytes"):
        frames.incoming(frame(kind, payload))


def test_what_opens_a_connection_is_made_by_httpcore_and_the_same_each_time():
    assert opening().startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00")
    assert opening() == opening()
    assert Frames().outgoing(opening()) == b""


def test_a_first_frame_that_is_not_settings_is_no_http2():
    for first in (frame(4, flags=1), frame(6, b"12345678"), b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with pytest.raises(NotHttp, match="not HTTP/2"):
            Frames().incoming(first)


def test_a_reset_behind_a_whole_answer_cuts_nothing_and_one_before_its_end_does():
    for last, cut in ((frame(0, b"x", 1, 1), None), (frame(0, b"x", 0, 1), "the stream was reset (NO_ERROR)")):
        frames = Frames()
        frames.outgoing(frame(1, b"h", 1, 1))
        frames.incoming(frame(4) + frame(1, b"h", 4, 1) + last + frame(3, bytes(4), 0, 1))
        assert frames.cut == cut
