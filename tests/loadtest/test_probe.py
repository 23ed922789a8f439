"""A probe's findings, facts and waterfall say what was seen: each finding appears where it should and only there.

Method: samples with instants in whole milliseconds, so that phases, bars and sentences are known by hand; one reply
with nothing wrong, and each finding by one change to it. What a connection costs in its parts is also in
test_transports.py; processes and exit codes are in tests/e2e/test_probe_command.py.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from loadtest import redaction
from loadtest.endpoints.base import Reading, excerpt
from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.probe.facts import facts, hidden
from loadtest.probe.findings import CLOSES, DOUBTS, Expected, findings
from loadtest.probe.waterfall import ASCII, BLOCKS, WIDTH, ink_for, render
from loadtest.probe.witness import Noted, Probed, Witness, read_again
from loadtest.sample import Got, Sample
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import ConnectionBroken, HttpRequest, Opened, Read, Seen, Target, Timeouts
from loadtest.transport.choice import connecting
from loadtest.transport.gevent_socket import GeventConnection
from loadtest.transport.tls import Tls
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Scheduled, Truth
from tests.loadtest.test_transports import TUNNEL_S, Certificates, certificates, relay  # noqa: F401  (a fixture)

MS = 1_000_000
START = 1000 * MS
HEADERS = {"content-type": "text/event-stream", "transfer-encoding": "chunked", "server": "uvicorn"}
EXPECTED = Expected(input_tokens=64, new_tokens=11, ends_with_done=True, unverified=False)


def reply(
    at_ms: Sequence[float] = tuple(range(100, 210, 10)),
    *,
    tokens: Sequence[int] | None = None,
    reads: Sequence[int] | None = None,
    before_ms: Sequence[float] = (),  # events without a token
    done: bool = True,
    headers: Mapping[str, str] = HEADERS,
    body_ended: bool = True,
    fresh: bool = True,
    **sample: Any,
) -> Probed:
    """Eleven tokens from 100 ms on, 10 ms apart, on a connection of 8 ms; by default nothing is wrong."""
    tokens = tokens or [1] * len(at_ms)
    reads = reads or range(2, 2 + len(at_ms))
    events = tuple((START + int(t * MS), n, r) for t, n, r in zip(at_ms, tokens, reads, strict=True))
    noted = [Noted(START + int(t * MS), 1, Reading()) for t in before_ms]
    noted += [Noted(t, r, Reading(tokens=n, text=" tok")) for t, n, r in events]
    end_ns = (events[-1][0] if events else START + 20 * MS) + MS
    noted += [Noted(end_ns, 99, Reading(), is_done=True)] if done else []
    base = Sample(
        run="probe",
        id="probe-0",
        process=0,
        user=0,
        cell=Cell(None, None, 1, 64, 11),
        phase="steady",
        got=Got(64, sum(tokens), "server"),
        scheduled_ns=START - 9 * MS,
        connect_ns=8 * MS if fresh else None,
        started_ns=START,
        sent_ns=START + 1 * MS,
        headers_ns=START + 20 * MS,
        events=events,
        first_text_ns=events[0][0] if events else None,
        ended_ns=end_ns,
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
        server={"queue_s": 0.001, "prefill_s": 0.05, "decode_s": 0.1, "batch_sizes": {"1": 11}},
    )
    opened = Opened("192.0.2.7", 1 * MS, 2 * MS, tls_ns=5 * MS, tls="TLSv1.3") if fresh else None
    return Probed(replace(base, **sample), tuple(noted), dict(headers), body_ended, opened)


def failure(verdict: Verdict, detail: str, **more: Any) -> Probed:
    return reply((), verdict=verdict, detail=detail, done=False, got=Got(None, 0, "events"), **more)


def codes(*probed: Probed, expected: Expected = EXPECTED) -> list[str]:
    return [finding.code for finding in findings(probed, expected)]


def sentence(probed: Probed, code: str, expected: Expected = EXPECTED) -> str:
    return next(finding.sentence for finding in findings([probed], expected) if finding.code == code)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in HEADERS.items() if key != name}


BURSTS = [t for burst in range(5) for t in (100 + 80 * burst, 100.1 + 80 * burst, 100.2 + 80 * burst)]
OF_ONE_REPLY: dict[
    str, tuple[Probed, Expected, str]
] = {  # one change to a reply with nothing wrong; part of the sentence
    "redirect": (
        failure(Verdict.HTTP_ERROR, "HTTP 307: no", status=307, headers=HEADERS | {"location": "/there"}),
        EXPECTED,
        "redirects to /there",
    ),
    "compressed": (
        failure(Verdict.ERROR_IN_STREAM, "the answer is compressed", headers=HEADERS | {"content-encoding": "gzip"}),
        EXPECTED,
        "compressed (gzip)",
    ),
    "buffered": (reply(reads=[2] * 8 + [3, 4, 5]), EXPECTED, "8 of 11 token events"),
    "coalesced": (reply(BURSTS), replace(EXPECTED, new_tokens=15), "10 of 14 gaps"),
    "chunk_is_not_token": (reply(got=Got(64, 12, "server")), replace(EXPECTED, new_tokens=12), "12 tokens came in 11"),
    "empty_first_event": (reply(before_ms=[20]), EXPECTED, "would say TTFT 20.00 ms, it is 100.0 ms"),
    "no_usage": (reply(got=Got(None, 11, "events")), EXPECTED, "counts nothing"),
    "prompt_length": (reply(got=Got(71, 11, "server")), EXPECTED, "has 71 tokens by the server's count, 64 were"),
    "fewer_tokens": (reply(), replace(EXPECTED, new_tokens=32), "11 new tokens came, 32 were asked for"),
    "more_tokens": (reply(), replace(EXPECTED, new_tokens=8), "11 new tokens came, 8 were asked for"),
    "no_done": (reply(done=False), EXPECTED, "without [DONE]"),
    "unclean_end": (reply(body_ended=False), EXPECTED, "the body broke off"),
    "user_clock": (reply(clock="user"), EXPECTED, "not by the kernel"),
    "closes": (reply(headers=HEADERS | {"connection": "Close"}), EXPECTED, "closes the connection"),
    "unverified_tls": (reply(), replace(EXPECTED, unverified=True), "--insecure"),
}


# --- findings --------------------------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong():
    assert codes(reply()) == []
    assert codes(reply(), reply(fresh=False), reply(fresh=False)) == []


def test_every_finding_has_a_case():
    assert OF_ONE_REPLY.keys() == DOUBTS.keys() - {"failed"}


@pytest.mark.parametrize("code", OF_ONE_REPLY)
def test_each_finding_is_shown_alone_and_with_its_numbers(code: str):
    probed, expected, part = OF_ONE_REPLY[code]
    (found,) = findings([probed], expected)
    assert found.code == code
    assert part in found.sentence
    assert found.requests == (1,)


@pytest.mark.parametrize(
    ("probed", "expected"),
    [
        (reply(reads=[2] * 5 + [3, 4, 5, 6, 7, 8]), EXPECTED),  # 5 of 11: less than half shared a read
        (reply([*range(100, 150, 5), 900]), EXPECTED),  # one long pause is a pause, no buffer
        (reply([t / 100 for t in BURSTS]), replace(EXPECTED, new_tokens=15)),  # a fast server's gaps are noise
        (reply([100, 100.1, 150, 150.1, 200, 200.1]), replace(EXPECTED, new_tokens=6)),  # too few gaps for a pattern
        (reply(before_ms=[100]), EXPECTED),  # in the first token's own read: no tool is misled
        (reply(got=Got(71, 11, "server")), replace(EXPECTED, input_tokens=None)),  # nobody asked for a length
        (reply(got=Got(64, 11, "server"), tokens=[1] * 11), EXPECTED),
        (reply(done=False), replace(EXPECTED, ends_with_done=False)),  # TGI knows no [DONE]
        (reply(headers=without("transfer-encoding") | {"content-length": "9"}), EXPECTED),
        (reply(headers={}, sent_ns=None), EXPECTED),  # a library's own connection: its headers aren't known
    ],
)
def test_what_is_near_a_finding_is_none(probed: Probed, expected: Expected):
    assert codes(probed, expected=expected) == []


def test_a_count_of_the_reply_alone_leaves_the_prompt_uncounted():
    assert "doesn't count the prompt" in sentence(reply(got=Got(None, 11, "server")), "no_usage")
    assert "doesn't count what it generated" in sentence(reply(got=Got(64, 11, "events")), "no_usage")


def test_a_body_without_framing_means_that_the_connection_closes():
    assert codes(reply(headers=without("transfer-encoding"))) == ["closes"]


def test_a_connection_that_had_to_be_replaced_was_closed_whatever_the_headers_say():
    (found,) = findings([reply(), reply(fresh=True), reply(fresh=False)], EXPECTED)
    assert (found.code, found.sentence, found.requests) == ("closes", CLOSES, (1,))
    cut = failure(Verdict.TRUNCATED, "the body ended after 0 of 11 tokens")
    assert codes(cut, reply(fresh=True)) == ["truncated"], "what broke off is replaced by us"


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.COMPLETE])
def test_every_failure_is_a_finding_with_its_detail_and_a_remedy(verdict: Verdict):
    (found,) = findings([failure(verdict, "the detail")], EXPECTED)
    assert found.code == verdict.value
    assert found.sentence.startswith(f"It ended as {verdict} (the detail): ")
    assert len(found.sentence) > len(f"It ended as {verdict} (the detail): .") + 10


def test_a_refused_key_is_told_apart_from_another_refusal():
    assert "--api-key" in sentence(failure(Verdict.HTTP_ERROR, "HTTP 401: no", status=401), "http_error")
    assert "--api-key" not in sentence(failure(Verdict.HTTP_ERROR, "HTTP 500: no", status=500), "http_error")


def test_a_finding_of_several_requests_is_one_and_names_them():
    found = findings([reply(), reply(clock="user", fresh=False), reply(clock="user", fresh=False)], EXPECTED)
    assert [(each.code, each.requests) for each in found] == [("user_clock", (2, 3))]
    two = findings([failure(Verdict.TIMEOUT, "slow"), failure(Verdict.CONNECTION, "gone")], EXPECTED)
    assert [(each.code, each.requests) for each in two] == [("timeout", (1,)), ("connection", (2,))]


# --- facts -----------------------------------------------------------------------------------------------------------


def told(*probed: Probed, expected: Expected = EXPECTED, **about: Any) -> dict[str, Any]:
    said = {
        "url": "http://host:8080",
        "protocol": "openai-chat",
        "transport": "gevent",
        "seed": 7,
        "notes": ["openai-chat: /v1/chat/completions is there; model m"],
        "asked": {"input_tokens": expected.input_tokens, "new_tokens": expected.new_tokens},
        **about,
    }
    return facts(said, probed, findings(probed, expected))


def test_phases_are_what_each_took_and_add_up_to_the_whole():
    (one,) = told(reply(before_ms=[40]))["requests"]
    ms = {name: seconds and round(seconds * 1e3, 6) for name, seconds in one["phases"].items()}
    assert ms == {
        "name_s": 1,
        "tcp_s": 2,
        "tunnel_s": None,
        "tls_s": 5,
        "http2_s": None,
        "send_s": 1,
        "headers_s": 19,
        "first_event_s": 20,
        "first_token_s": 60,
        "tokens_s": 100,
        "end_s": 1,
    }
    assert (one["connection"], one["address"], one["tls"]) == ("fresh", "192.0.2.7", "TLSv1.3")
    assert one["ttft_s"] == pytest.approx(0.1)
    assert one["tpot_s"] == pytest.approx(0.01)
    assert [event["tokens"] for event in one["events"]] == [0] + [1] * 11 + [0]
    assert one["events"][0] == {"at_s": 0.04, "tokens": 0, "read": 1}
    assert one["text"] == " tok" * 11


def test_a_reply_faster_than_the_send_returns_makes_no_phase_negative():
    (one,) = told(reply(sent_ns=START + 120 * MS))["requests"]
    phases = one["phases"]
    assert (phases["headers_s"], phases["first_event_s"], phases["first_token_s"]) == (0, 0, 0)
    assert phases["send_s"] + phases["tokens_s"] == pytest.approx(0.2), "what it took away is taken from the next"


def test_a_whole_reply_has_no_first_token_and_nothing_wrong_with_that():
    whole = reply([200], tokens=[11], done=False, streamed=False, first_text_ns=None)
    assert codes(whole) == []
    (one,) = told(whole)["requests"]
    assert (one["phases"]["first_event_s"], one["phases"]["first_token_s"], one["ttft_s"]) == (None, None, None)
    assert one["phases"]["tokens_s"] == pytest.approx(0.18)
    assert "whole reply     180.0 ms   200.0 ms" in render(told(whole), ASCII)


def test_what_was_not_seen_is_null_and_no_phase_takes_its_time_twice():
    (one,) = told(reply(fresh=False, sent_ns=None))["requests"]
    assert (one["connection"], one["phases"]["send_s"], one["phases"]["name_s"]) == ("unseen", None, None)
    assert one["phases"]["headers_s"] == pytest.approx(0.02)
    never = failure(Verdict.CONNECTION, "refused", started_ns=None, sent_ns=None, headers_ns=None, fresh=False)
    (none,) = told(never)["requests"]
    assert none["connection"] is None
    assert set(none["phases"].values()) == {None}
    assert none["events"] == []


def test_later_requests_say_that_their_connection_was_open():
    requests = told(reply(), reply(fresh=False))["requests"]
    assert [one["connection"] for one in requests] == ["fresh", "reused"]


def test_medians_are_of_the_complete_requests():
    slow = reply([t + 50 for t in range(100, 210, 10)], fresh=False)
    said = told(reply(), slow, reply(fresh=False), failure(Verdict.TIMEOUT, "x"))
    assert said["medians"]["ttft_s"] == pytest.approx(0.1)
    assert told(failure(Verdict.TIMEOUT, "x"))["medians"] == {"ttft_s": None, "latency_s": None, "tpot_s": None}


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(redaction, "_known", set())
    key = "sk-proj-long enough to be broken at its hyphens and spaces-0123456789"
    redaction.keep(key)
    redaction.keep("0123456")  # digits are in numbers, too
    return key


def test_secrets_are_in_no_string_not_even_broken_over_two_lines(secret: str):
    leaking = failure(
        Verdict.HTTP_ERROR, f"HTTP 401: no such key {secret}", status=401, headers={**HEADERS, "via": f"gate {secret}"}
    )
    said = told(leaking, url=f"http://host/{secret}", notes=[f"a note of {secret}"])
    text = render(said, ASCII)
    for part in ("sk-", "enough", "hyphens", "0123456"):
        assert part not in json.dumps(said)
        assert part not in text
    assert text.count("[hidden]") >= 4
    assert hidden({"n": 0.0123456}) == {"n": 0.0123456}, "numbers stay numbers"


def test_cookies_are_left_out():
    (one,) = told(reply(headers=HEADERS | {"set-cookie": "session=1"}))["requests"]
    assert one["headers"] == HEADERS


# --- the text --------------------------------------------------------------------------------------------------------

GOLDEN = """\
http://host:8080
  openai-chat: /v1/chat/completions is there; model m
  asked for 64 prompt tokens and 11 new ones, over gevent

                    took    ends at
name (DNS)      1.000 ms  -7.000 ms  #
connect         2.000 ms  -5.000 ms  #
TLS             5.000 ms   0.000 ms   #
send            1.000 ms   1.000 ms    #
headers         19.00 ms   20.00 ms    ####
first event     20.00 ms   40.00 ms        ####
first token     60.00 ms   100.0 ms            ############
last token      100.0 ms   200.0 ms                        #####################
end             1.000 ms   201.0 ms                                            #

gaps         ##########
             10 gaps, median 10.00 ms, longest 10.00 ms, before token event 2

verdict      complete, HTTP 200
tokens       64 in the prompt, 11 new, counted by the server
times        TTFT 100.0 ms, latency 200.0 ms, TPOT 10.00 ms
server says  queue 1.000 ms, prefill 50.00 ms, decode 100.0 ms
text         ' tok tok tok tok tok tok tok tok tok tok tok'
headers      server: uvicorn
             content-type: text/event-stream
             transfer-encoding: chunked
clock        the kernel's receive stamps; a fresh connection to 192.0.2.7,
             TLSv1.3

What looks wrong
- The first event has no token: a tool that counts it would say TTFT 40.00 ms,
  it is 100.0 ms.
"""


def test_a_waterfall_reads_as_this():
    assert render(told(reply(before_ms=[40])), ASCII) == GOLDEN


SEVERAL = """\
request                   TTFT      latency         TPOT  verdict
1        fresh        100.0 ms     200.0 ms     10.00 ms  complete, 64 -> 11
2        reused       150.0 ms     250.0 ms     10.00 ms  complete, 64 -> 11
3        reused       120.0 ms     220.0 ms     10.00 ms  complete, 64 -> 11
median   of 3         120.0 ms     220.0 ms     10.00 ms

request 3, the one of the median TTFT

                    took    ends at
connect           reused
send            1.000 ms   1.000 ms  #
"""


def later(ms: float) -> Probed:
    return reply([t + ms for t in range(100, 210, 10)], fresh=False)


def test_several_requests_are_a_line_each_and_the_waterfall_is_of_the_median_one():
    text = render(told(reply(), later(50), later(20)), ASCII)
    assert SEVERAL in text
    assert text.endswith("\nNothing looks wrong.\n")


def test_the_waterfall_is_of_the_first_that_failed():
    text = render(told(reply(), later(50), failure(Verdict.TIMEOUT, "nothing arrived for 1 s", fresh=False)), ASCII)
    assert "request 3, the first that isn't complete" in text
    assert "3        reused              -            -            -  timeout, ? -> 0" in text
    assert "median   of 2         125.0 ms" in text
    assert "\ngiven up " in text
    assert "gaps" not in text
    assert "(request 3)" in text.split("What looks wrong")[1]


def test_a_request_that_never_began_has_no_bars():
    never = failure(
        Verdict.CONNECTION,
        "Connection refused",
        started_ns=None,
        sent_ns=None,
        headers_ns=None,
        status=None,
        headers={},
        fresh=False,
    )
    text = render(told(never), ASCII)
    assert "ends at" not in text
    assert "verdict      connection, no answer\n             Connection refused\n" in text
    assert "no connection" in text


def test_a_sparkline_is_as_high_as_its_gap_and_shows_the_longest_of_those_that_share_a_mark():
    uneven = render(told(reply([100, 100, 101.6, 103.6, 110.6], got=Got(64, 5, "server"))), ASCII)
    assert "gaps         _::#" in uneven
    many = [100 + i for i in range(135)] + [240 + i for i in range(6)]  # 140 gaps; of the 135th, 6 ms
    text = render(told(reply(many)), ASCII)
    (line,) = (line for line in text.splitlines() if line.startswith("gaps"))
    assert line == "gaps         " + ".." * 22 + "#" + ".."
    assert "each mark is the longest of 3" in " ".join(text.split())


def test_no_line_is_wider_than_80_columns_whatever_a_stranger_says():
    long = "x" * 300 + " " + "words and words " * 30
    probed = failure(Verdict.HTTP_ERROR, long, headers=HEADERS | {"server": long, "location": long})
    text = render(told(probed, reply(fresh=False), url="http://" + "host." * 60, notes=[long]), BLOCKS)
    assert max(map(len, text.splitlines())) <= WIDTH == 80


def test_what_a_stranger_says_cannot_write_on_the_terminal():
    nasty = "\x1b[2Jgone\r\n\x07" + "\u202e" + "\x9b1m"
    said = told(failure(Verdict.HTTP_ERROR, nasty, headers=HEADERS | {"server": nasty}), url=nasty, notes=[nasty])
    said["requests"][0]["text"] = nasty
    text = render(said, BLOCKS)
    assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    assert "\\x1b[2Jgone" in text


def test_only_ascii_is_written_where_nothing_else_can_be_shown():
    assert ink_for("utf-8") is BLOCKS
    assert ink_for("ascii") is ink_for("latin-1") is ink_for(None) is ink_for("no such") is ASCII
    said = told(reply(before_ms=[40]))
    said["requests"][0]["text"] = "é"
    assert render(said, ASCII).isascii()
    assert "'é'" in render(said, BLOCKS)
    assert "▇" not in render(said, BLOCKS)
    assert "██████████\n" in render(said, BLOCKS)


# --- what a sample doesn't keep --------------------------------------------------------------------------------------


def test_the_second_reading_sees_every_event_and_the_sample_is_as_without_it(truth: Truth):
    endpoint = Scheduled(schedule={"jitter": 0, "fault": "role_first"})
    order = Order("probe", Cell(None, None, 1, 4, 8), "steady", "one two three four", 0)
    with closing(Witness(GeventConnection(truth.target))) as witness:
        first, second = (
            witness.probed(
                measure(witness, endpoint, order, run="probe", process=0, user=0, timeouts=Timeouts()), endpoint
            )
            for _ in range(2)
        )
    for probed in (first, second):
        assert [event.reading.tokens for event in probed.events] == [0] + [1] * 8
        assert [(e.t_ns, e.reading.tokens, e.read_id) for e in probed.events[1:]] == list(probed.sample.events)
        assert probed.headers["x-accel-buffering"] == "no"
        assert probed.body_ended
    assert first.text == " é1 é2 é3 é4 é5 é6 é7 é8"
    assert first.sample.transport == "gevent"
    assert first.opened is not None
    assert second.opened is None, "it was open"


def test_an_event_that_cannot_be_read_ends_no_probe():
    openai = OpenAiEndpoint("chat", "m")
    body = [b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', b"data: [1\n\n", b"data: [DONE]\n\n"]
    events = list(read_again([Read(i, i, data) for i, data in enumerate(body)], openai))
    assert [(event.reading.tokens, event.reading.error is not None, event.is_done) for event in events] == [
        (1, False, False),
        (0, True, False),
        (0, False, True),
    ]
    assert list(read_again([Read(1, 1, b"x" * (16 * 2**20 + 1))], openai)) == []
    (broken,) = read_again([Read(1, 1, b"data: {}\n\n")], Fragile("chat", "m"))
    assert "no key 'choices'" in (broken.reading.error or "")


class Fragile(OpenAiEndpoint):
    def read(self, event: ServerSentEvent) -> Reading:
        raise KeyError("no key 'choices'")


def test_a_fresh_connection_knows_its_parts_and_they_are_not_more_than_the_whole(truth: Truth):
    with closing(GeventConnection(truth.target)) as connection:
        seen = [Seen(), Seen()]
        for each in seen:
            list(connection.exchange(HttpRequest("GET", "/health"), each, Timeouts()))
    first, second = seen
    assert first.opened is not None
    assert first.connect_ns is not None
    assert (first.opened.address, first.opened.tls, first.opened.tls_ns, first.opened.tunnel_ns) == (
        "127.0.0.1",
        None,
        None,
        None,
    )
    assert 0 < first.opened.name_ns + first.opened.tcp_ns <= first.connect_ns
    assert (second.connect_ns, second.opened) == (None, None)


def test_tls_and_a_proxys_tunnel_are_parts_of_their_own(
    truth: Truth,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,  # noqa: F811
):
    context, trust = certificates.served("DNS:elsewhere.example"), Tls(certificates.authority)
    with relay(truth.port, context) as inner, relay(inner.target.port, proxy=True) as way:
        monkeypatch.setenv("https_proxy", way.target.origin)
        monkeypatch.delenv("no_proxy", raising=False)
        with closing(connecting("httpx", trust)(Target("elsewhere.example", 443, tls=True))) as connection:
            seen = [Seen(), Seen()]
            for each in seen:
                list(connection.exchange(HttpRequest("GET", "/health"), each, Timeouts()))
    first, second = seen
    assert first.opened is not None
    assert first.connect_ns is not None
    parts = (first.opened.name_ns, first.opened.tcp_ns, first.opened.tunnel_ns, first.opened.tls_ns)
    assert all(part is not None and part > 0 for part in parts)
    assert (first.opened.tunnel_ns or 0) >= TUNNEL_S * 1e9 > sum(parts) - (first.opened.tunnel_ns or 0)
    assert sum(parts) <= first.connect_ns
    assert (first.opened.tls or "").startswith("TLSv1.")
    assert second.opened is None


def test_the_parts_of_a_connection_come_one_after_the_other(
    truth: Truth,
    certificates: Certificates,  # noqa: F811
):
    """By a clock that counts its readings: of the whole the parts lack the first one and the last."""
    with relay(truth.port, certificates.served("IP:127.0.0.1")) as way:
        context = Tls(certificates.authority).context()
        with closing(GeventConnection(way.target, context, clock=itertools.count().__next__)) as connection:
            seen = Seen()
            list(connection.exchange(HttpRequest("GET", "/health"), seen, Timeouts()))
    assert seen.opened is not None
    assert (seen.opened.name_ns, seen.opened.tcp_ns) == (1, 2)  # with a reading of what time is left for it
    assert seen.connect_ns == 1 + 1 + 2 + (seen.opened.tls_ns or 0) + 1


def test_a_name_with_several_addresses_is_tried_through(truth: Truth, monkeypatch: pytest.MonkeyPatch):
    from loadtest.transport import dial

    dead, alive = ("127.0.0.2", 1), ("127.0.0.1", truth.port)
    addresses = [dead, alive]
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(dial.socket, "getaddrinfo", lambda *_, **__: [(*kind, address) for address in addresses])
    with closing(GeventConnection(truth.target)) as connection:
        seen = Seen()
        list(connection.exchange(HttpRequest("GET", "/health"), seen, Timeouts()))
    assert (seen.status, seen.opened and seen.opened.address) == (200, "127.0.0.1")
    addresses[:] = [dead, dead]
    with (
        closing(GeventConnection(truth.target)) as connection,
        pytest.raises(ConnectionBroken, match="Connection refused"),
    ):
        connection.ready(5)


def test_the_fields_are_those_that_are_documented():
    from loadtest.probe import facts as module

    said = told(reply())
    names = [*said, *said["asked"], *said["requests"][0], *said["requests"][0]["phases"], *said["medians"]]
    documented = re.findall(r"\w+", (module.__doc__ or "").split("Seconds are")[0])
    assert len(names) > 30
    assert [name for name in names if name not in documented] == []


def test_an_excerpt_that_is_cut_inside_a_secret_shows_no_part_of_it(secret: str):
    said = excerpt(b"x" * 190 + secret.encode())
    assert "sk-" not in said
    assert len(excerpt(b"y" * 5000)) == 202
