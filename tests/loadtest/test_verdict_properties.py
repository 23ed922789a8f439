"""However the bytes of a reply are cut into reads, its tokens, their reads, its text, counts and verdict are the same.

Method: hypothesis builds replies from a small grammar of both protocols and knows what each piece of it means; `judged`
works the verdict out from those meanings and from where each event ends, and reads no byte. The bytes go through the
parser, the endpoint and `measure` itself over a connection in memory. Tolerance: none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from loadtest.endpoints.base import Endpoint, Reading
from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import BodyCut, ConnectionBroken, HttpRequest, Read, Seen, TimedOut, Timeouts
from loadtest.verdict import Verdict

ENDPOINTS: dict[str, Endpoint] = {
    "tgi": TgiEndpoint(),
    "chat": OpenAiEndpoint("chat", "m"),
    "completions": OpenAiEndpoint("completions", "m"),
}
ENDS = {"clean": None, "cut": BodyCut, "broken": ConnectionBroken, "silent": TimedOut}


@dataclass(frozen=True)
class Piece:
    """A piece of a stream: its lines without their ends, and what it means. Without lines it is a blank line."""

    lines: tuple[bytes, ...] = ()
    tokens: int = 0
    text: str = ""
    finished: bool = False
    full: bool = False  # it ends with the length that was asked for, by the server's word
    failed: bool = False
    counts: tuple[int, int] | None = None  # of the prompt, of the reply

    def rendered(self, end: bytes) -> bytes:
        return b"".join(line + end for line in self.lines) + end


@dataclass(frozen=True)
class Reply:
    """What one request gets: pieces with their line ends, how many bytes of them arrive, and how the body ends."""

    protocol: str
    pieces: tuple[tuple[Piece, bytes], ...]
    demanded: int = 4
    bom: bool = False
    arrives: float = 1  # this part of the bytes
    ends: str = "clean"

    @property
    def whole(self) -> bytes:
        return b"\xef\xbb\xbf" * self.bom + b"".join(piece.rendered(end) for piece, end in self.pieces)

    @property
    def body(self) -> bytes:
        return self.whole[: round(self.arrives * len(self.whole))]

    def arrived(self) -> Iterator[tuple[int, Piece]]:
        """The pieces that count, each with the number of bytes that must have come for it."""
        ended, there = 3 * self.bom, len(self.body)
        for piece, end in self.pieces:
            ended += len(piece.rendered(end))
            needs = ended - len(end) + 1  # CRLF: its CR already ends the line
            if needs <= there:
                yield needs, piece


def judged(reply: Reply) -> tuple[Verdict, int]:
    """The verdict, and the number of new tokens that it is about."""
    pieces = [piece for _, piece in reply.arrived()]
    finished = any(piece.finished for piece in pieces)
    tokens = sum(piece.tokens for piece in pieces)
    counts = [piece.counts[1] for piece in pieces if piece.counts and piece.counts[1]]  # zero is no count
    demanded = reply.demanded
    if finished and tokens and counts:
        tokens = counts[-1]
    elif any(piece.full for piece in pieces) and 4 * tokens >= demanded:
        demanded = 0  # nobody counted but us, and tokens without a text may have had no event
    if any(piece.failed for piece in pieces):
        return Verdict.ERROR_IN_STREAM, tokens
    if not finished or (reply.protocol != "tgi" and reply.ends != "clean"):
        unfinished = {"silent": Verdict.TIMEOUT, "broken": Verdict.CONNECTION}
        return unfinished.get(reply.ends, Verdict.TRUNCATED), tokens
    if not tokens:
        return Verdict.EMPTY, 0
    return (Verdict.COMPLETE if tokens >= demanded else Verdict.STOPPED_EARLY), tokens


# --- the grammar -----------------------------------------------------------------------------------------------------

TEXT = st.text('aé語😀 \n\r"\\{}:', max_size=4)
LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
QUIET = st.sampled_from(
    [
        Piece(),
        *(Piece((line,)) for line in (b":", b": keep-alive", b"retry: 3", b"id: 7", b"data:", b"<html>", b"\xff")),
    ]
)
ERRORS: list[tuple[bytes, Any]] = [
    (b"", {"error": "too hot", "error_type": "generation"}),
    (b"", {"error": {"message": "too hot", "type": "server_error", "code": 500}}),
    (b"", {"error": {"message": "too hot", "http_status_code": 422}}),
    (b"", {"object": "error", "message": "too hot", "type": "x", "code": 400}),
    (b"error", {"message": "too hot"}),
    (b"error", "too hot"),
    (b"error", {"choices": [], "message": "too hot"}),
    (b"", {"error": {"message": "too hot"}, "usage": {"prompt_tokens": 5, "completion_tokens": 4}}),
    (b"", {"error": "too hot", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}),
    (b"", {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}),
]
GARBAGE = [b"{", b"null", b"[]", b"3", b"too hot", b"\xff\xfe", b'{"choices":[{"del', b'{"status":"ok"}', b'"choices"']


@st.composite
def event(draw: st.DrawFn, value: Any, name: bytes = b"", **means: Any) -> Piece:
    """An event of one data line or several, with or without a space, perhaps after a comment or its name."""
    option = draw(st.sampled_from([0, 0, orjson.OPT_INDENT_2]))
    data = value if isinstance(value, bytes) else orjson.dumps(value, option=option)
    space = draw(st.sampled_from([b" ", b" ", b""]))
    lines = [b"data:" + space + line for line in data.split(b"\n")]
    if name:
        lines.insert(draw(st.sampled_from([0, len(lines)])), b"event: " + name)
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), b": of the event")
    return Piece(tuple(lines), **means)


@st.composite
def tgi_token(draw: st.DrawFn, last: bool = False) -> Piece:
    text, special = draw(TEXT), draw(st.sampled_from([False, False, True]))
    value: dict[str, Any] = {"index": 1, "token": {"id": 5, "text": text, "special": special}, "generated_text": None}
    counts = draw(st.sampled_from([None, (5, 4), (5, 3), (5, 0)])) if last else None
    if last:
        value["generated_text"] = "all"
        value["details"] = counts and {"input_length": counts[0], "generated_tokens": counts[1]}
    return draw(event(value, tokens=1, text="" if special else text, finished=last, counts=counts))


@st.composite
def openai_chunk(draw: st.DrawFn, kind: str, last: bool = False) -> Piece:
    """A role, reasoning, text or nothing, tokens listed or not; perhaps with the counts so far."""
    holds = draw(st.sampled_from([{"text"}, {"listed"}, {"thought"}, {"role"}, {"text", "thought", "listed"}]))
    text = draw(TEXT) if "text" in holds else ""
    thought = draw(TEXT) if kind == "chat" and "thought" in holds else ""
    listed = draw(st.integers(1, 3)) if "listed" in holds else 0
    role = kind == "chat" and draw(st.booleans())
    finish = draw(st.sampled_from(["length", "eos_token"] if last else [None, None, ""]))
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if kind == "chat":
        delta = {"content": text} | ({"reasoning_content": thought} if thought else {})
        choice["delta"] = delta | ({"role": "assistant"} if role else {})
    else:
        choice["text"] = text
    match draw(st.integers(0, 1)), kind:
        case 0, _:
            choice["token_ids"] = [7] * listed
        case 1, "chat":
            choice["logprobs"] = {"content": [{"token": "x"}] * listed}
        case _:
            choice["logprobs"] = {"tokens": ["x"] * listed}
    counts = draw(st.sampled_from([None, None, (5, 1), (5, 4)]))
    value = {"choices": [choice], "usage": counts and {"prompt_tokens": counts[0], "completion_tokens": counts[1]}}
    tokens = listed or int(bool(text or thought))
    full = finish == "length"
    return draw(event(value, tokens=tokens, text=text, finished=last, full=full, counts=counts))


@st.composite
def usage(draw: st.DrawFn) -> Piece:
    asked, made = 5, draw(st.sampled_from([4, 4, 5, 3, 0]))
    said: dict[str, Any] = {"usage": {"prompt_tokens": asked, "completion_tokens": made}}
    said |= draw(st.sampled_from([{"choices": []}, {}]))
    return draw(event(said, counts=(asked, made)))


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Mostly a proper reply; some lack their finish, hold an error or garbage, or break off anywhere."""
    protocol = draw(st.sampled_from(sorted(ENDPOINTS)))
    token = tgi_token() if protocol == "tgi" else openai_chunk(protocol)
    if protocol == "tgi":
        empty = event({"index": 0, "token": None, "generated_text": None})
        last, tail = tgi_token(last=True), st.just(Piece())
    else:
        empty = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        bare = event(
            {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]}, finished=True, full=True
        )
        last, tail = st.one_of(bare, openai_chunk(protocol, last=True)), usage()
    pieces = draw(st.lists(draw(st.sampled_from([st.one_of(token, token, QUIET, empty)] * 5 + [QUIET])), max_size=6))
    if draw(st.integers(0, 6)):
        pieces.append(draw(last))
    pieces += draw(st.lists(st.one_of(tail, QUIET), max_size=2))
    if protocol != "tgi" and draw(st.booleans()):
        pieces.append(draw(event(b"[DONE]")))
    match draw(st.sampled_from(["good"] * 5 + ["error", "garbage"])):
        case "error":
            name, value = draw(st.sampled_from(ERRORS))
            pieces.insert(draw(st.integers(0, len(pieces))), draw(event(value, name, failed=True)))
        case "garbage":
            pieces.insert(draw(st.integers(0, len(pieces))), draw(event(draw(st.sampled_from(GARBAGE)), failed=True)))
    return Reply(
        protocol,
        tuple((piece, draw(LINE_ENDS)) for piece in pieces),
        draw(st.sampled_from([1, 1, 2, 4, 9])),
        draw(st.sampled_from([False, False, True])),
        draw(st.sampled_from([1.0, 1.0, 1.0, draw(st.floats(0, 1))])),
        draw(st.sampled_from(["clean"] * 4 + sorted(ENDS))),
    )


# --- what is under test ----------------------------------------------------------------------------------------------


class InMemory:
    """A connection whose reads are given; `Read.t_ns` is the read's number, in microseconds."""

    transport_name = "memory"

    def __init__(self, reads: list[bytes], ends: str = "clean") -> None:
        self.reads, self.ends = reads, ENDS[ends]

    def ready(self, timeout_s: float) -> int | None:
        return None

    def exchange(self, request: HttpRequest, seen: Seen, *limits: Any, **more: Any) -> Iterator[Read]:
        seen.started_ns = seen.sent_ns = seen.headers_ns = 0
        seen.status, seen.headers = 200, {"content-type": "text/event-stream"}
        for number, data in enumerate(self.reads):
            yield Read(1000 * number, number, data)
        if self.ends is not None:
            raise self.ends("as the test wants")
        seen.body_ended = True

    def close(self) -> None: ...


class Listening:
    """An endpoint that keeps the text it reads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self.text = endpoint, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoint, name)

    def read(self, event: ServerSentEvent) -> Reading:
        reading = self._endpoint.read(event)
        self.text += reading.text
        return reading


def measured(protocol: str, reads: list[bytes], demanded: int, ends: str) -> tuple[Sample, str]:
    endpoint: Any = Listening(ENDPOINTS[protocol])
    order = Order("x", Cell(None, None, 1, 5, demanded), "steady", "one two", 0)
    sample = measure(
        InMemory(reads, ends), endpoint, order, run="r", process=0, user=0, timeouts=Timeouts(), clock=lambda: 10**9
    )
    return sample, endpoint.text


def pieces_of(data: bytes, cuts: list[float]) -> list[bytes]:
    places = [0, *sorted(round(cut * len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]  # some are empty


def held_to_the_grammar(reply: Reply, reads: list[bytes]) -> None:
    """The one assertion of this file: all that `measure` says of these reads is what the grammar means."""
    sample, text = measured(reply.protocol, reads, reply.demanded, reply.ends)
    ends = [0]
    for data in reads:
        ends.append(ends[-1] + len(data))

    def read_of(byte: int) -> int:
        return next(number for number, end in enumerate(ends[1:]) if end >= byte)

    arrived = [(read_of(needs), piece) for needs, piece in reply.arrived()]
    verdict, tokens = judged(reply)
    assert sample.verdict is verdict, sample.detail
    assert sample.events == tuple((1000 * read, piece.tokens, read) for read, piece in arrived if piece.tokens)
    assert text == "".join(piece.text for _, piece in arrived)
    assert sample.first_text_ns == next((1000 * read for read, piece in arrived if piece.text), None)
    assert sample.got.new_tokens == tokens
    assert sample.got.input_tokens == (5 if any(piece.counts for _, piece in arrived) else None)
    assert (sample.detail is None) == (verdict is Verdict.COMPLETE)


CUTS = st.lists(st.floats(0, 1), max_size=8)


@given(replies(), CUTS)
@settings(max_examples=500)
def test_any_cut_gives_what_the_grammar_means(reply: Reply, cuts: list[float]):
    held_to_the_grammar(reply, pieces_of(reply.body, cuts))


@given(replies())
def test_one_byte_at_a_time_gives_the_same(reply: Reply):
    held_to_the_grammar(reply, [reply.body[i : i + 1] for i in range(len(reply.body))])


@given(replies(), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12), CUTS)
@example(Reply("chat", ()), 0, 0, b"data: [[[", [])
def test_garbage_anywhere_costs_its_own_request_only_and_reads_the_same_however_cut(
    reply: Reply, place: float, lost: int, garbage: bytes, cuts: list[float]
):
    at = round(place * len(reply.body))
    body = reply.body[:at] + garbage + reply.body[at + lost :]
    whole, text = measured(reply.protocol, [body], reply.demanded, reply.ends)
    parts, text_of_parts = measured(reply.protocol, pieces_of(body, cuts), reply.demanded, reply.ends)
    assert text == text_of_parts
    assert [tokens for _, tokens, _ in whole.events] == [tokens for _, tokens, _ in parts.events]
    assert (whole.verdict, whole.detail, whole.got) == (parts.verdict, parts.detail, parts.got)


def rich(protocol: str) -> Reply:
    """A complete reply of three tokens, with all that ends one."""
    if protocol == "tgi":
        token: Any = {"token": {"id": 5, "text": "é", "special": False}, "generated_text": None}
        last = token | {"generated_text": "éé", "details": {"generated_tokens": 3, "input_length": 5}}
        tail: list[Piece] = []
        counts = (5, 3)
    else:
        name = {"chat": "delta", "completions": "text"}[protocol]
        said: Any = {"chat": {"content": "é"}, "completions": "é"}[protocol]
        token = {"choices": [{name: said, "finish_reason": None}]}
        last = {"choices": [{name: said, "finish_reason": "length"}]}
        counted = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
        tail = [Piece((b"data: " + orjson.dumps(counted),), counts=(5, 3)), Piece((b"data: [DONE]",))]
        counts = None
    pieces = [Piece((b"data: " + orjson.dumps(token),), 1, "é")] * 2
    pieces.append(Piece((b": x", b"data:" + orjson.dumps(last)), 1, "é", finished=True, counts=counts))
    return Reply(protocol, tuple((piece, b"\r\n") for piece in [*pieces, *tail]), demanded=3)


@pytest.mark.parametrize(("name", "value"), [*ERRORS, *((b"", value) for value in GARBAGE)])
@pytest.mark.parametrize("protocol", sorted(ENDPOINTS))
def test_each_error_and_each_garbage_spoils_an_otherwise_complete_reply(protocol: str, name: bytes, value: Any):
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    spoiler = Piece((b"event: " + name, b"data: " + data) if name else (b"data: " + data,), failed=True)
    good = rich(protocol)
    held_to_the_grammar(good, [good.body])
    assert judged(good)[0] is Verdict.COMPLETE
    for place in range(len(good.pieces) + 1):
        spoilt = replace(good, pieces=(*good.pieces[:place], (spoiler, b"\n"), *good.pieces[place:]))
        held_to_the_grammar(spoilt, [spoilt.body])
        assert judged(spoilt)[0] is Verdict.ERROR_IN_STREAM


# --- the tests above can fail ----------------------------------------------------------------------------------------

STREAMED = {
    Verdict.COMPLETE,
    Verdict.STOPPED_EARLY,
    Verdict.TRUNCATED,
    Verdict.ERROR_IN_STREAM,
    Verdict.EMPTY,
    Verdict.TIMEOUT,
    Verdict.CONNECTION,
}


def test_the_grammar_reaches_every_verdict_of_a_stream():
    drawn: Counter[tuple[str, Verdict]] = Counter()

    @given(replies())
    @settings(max_examples=600, derandomize=True, database=None, phases=[Phase.generate])
    def draw(reply: Reply) -> None:
        drawn[reply.protocol, judged(reply)[0]] += 1

    draw()
    assert {verdict for _, verdict in drawn} == STREAMED
    assert {protocol for protocol, verdict in drawn if verdict is Verdict.COMPLETE} == set(ENDPOINTS)
    assert sum(count for (_, verdict), count in drawn.items() if verdict is Verdict.COMPLETE) > 20


@pytest.mark.parametrize("protocol", sorted(ENDPOINTS))
def test_every_byte_a_rich_reply_may_be_cut_at(protocol: str):
    """Reads of seven bytes; the verdict turns at the finish and nowhere else."""
    reply = rich(protocol)
    size = len(reply.whole)
    seen = []
    for arrives in range(size + 1):
        cut = replace(reply, arrives=arrives / size)
        assert len(cut.body) == arrives
        held_to_the_grammar(cut, [cut.body[i : i + 7] for i in range(0, arrives, 7)])
        seen.append(judged(cut)[0])
    assert seen == sorted(seen, key=[Verdict.TRUNCATED, Verdict.COMPLETE].index)
    assert {Verdict.TRUNCATED, Verdict.COMPLETE} == set(seen)
