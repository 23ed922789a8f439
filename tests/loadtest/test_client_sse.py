"""Any split of an event stream's bytes gives the same events, and they are the events of the WHATWG rules.

Method: `oracle` reads the whole bytes at once, line by line, in the words of the standard, and shares nothing with the
parser. Hypothesis draws the stream (fields, comments, multibyte text, three line ends, a byte order mark, a cut at the
end) and the places where it is split. Tolerance: none.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import re
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.sse import MAX_EVENT_BYTES, Parser, ServerSentEvent, SseError

BOM = "\ufeff".encode()


def oracle(stream: bytes) -> tuple[list[ServerSentEvent], bytes]:
    """The events, and the lines after the last blank one."""
    if stream.startswith(BOM):
        stream = stream[len(BOM) :]
    *lines, unfinished_line = re.split(rb"\r\n|\r|\n", stream)
    events = []
    data_buffer, event_type_buffer, last_event_id_buffer = b"", b"", None
    rest = b""
    for line in lines:
        rest += line + b"\n"
        if line == b"":
            if data_buffer != b"":
                kind = event_type_buffer.decode(errors="replace") or "message"
                events.append(ServerSentEvent(kind, data_buffer[:-1], last_event_id_buffer))
            data_buffer, event_type_buffer, rest = b"", b"", b""
            continue
        if line[:1] == b":":
            continue
        if b":" in line:
            field, value = line[: line.index(b":")], line[line.index(b":") + 1 :]
            if value[:1] == b" ":
                value = value[1:]
        else:
            field, value = line, b""
        if field == b"event":
            event_type_buffer = value
        elif field == b"data":
            data_buffer += value + b"\n"
        elif field == b"id" and 0 not in value:
            last_event_id_buffer = value.decode(errors="replace")
    return events, rest + unfinished_line


def parse(*pieces: bytes) -> tuple[list[ServerSentEvent], bytes]:
    parser = Parser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events, parser.close()


def data_of(*pieces: bytes) -> list[bytes]:
    return [event.data for event in parse(*pieces)[0]]


TEXT = st.text("aé語😀 :\0\ufeff{}", max_size=6)
LINE = st.one_of(
    st.just(""),
    st.just(""),
    st.builds("data:{}".format, TEXT),
    st.builds("data: {}".format, TEXT),
    st.builds("{}:{}".format, st.sampled_from(["event", "id", "retry", "", "Data", "data "]), TEXT),
    st.sampled_from(["data", "event", "id", "datax", ": keep-alive"]),
    TEXT,
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Lines with an end each; sometimes a byte order mark before them; sometimes cut, also inside a character."""
    endings = draw(st.sampled_from([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r"]]))
    lines = draw(st.lists(st.tuples(LINE, st.sampled_from(endings)), max_size=12))
    stream = draw(st.sampled_from([b"", b"", BOM, BOM + BOM])) + "".join(a + b for a, b in lines).encode()
    return stream[: draw(st.sampled_from([len(stream), len(stream), max(len(stream) - 1, 0), len(stream) // 2]))]


@st.composite
def split_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams())
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8))), len(stream)]
    return [stream[a:b] for a, b in pairwise(cuts)]  # some pieces are empty


@given(split_streams())
@example([b"data: a\r", b"\n", b"\r", b"\n"])
@example([b"data: a\n", b"\n"])
@example([b"\xef", b"\xbb", b"\xbfdata: a\n\n"])
@example([b"data: a\r", b"", b"\n\r\n"])
def test_any_split_gives_the_events_of_the_standard(pieces: list[bytes]) -> None:
    assert parse(*pieces) == oracle(b"".join(pieces))


@given(streams())
def test_one_byte_at_a_time_gives_the_same_events(stream: bytes) -> None:
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == oracle(stream)


def test_the_drawn_streams_have_events_with_text_in_them() -> None:
    """The two tests above would pass on streams without events: one that the strategy can draw has all sorts."""
    stream = "data:é\ndata: 語\n\n: c\nevent: ping\nid: 7\ndata\n\nretry: 5\ndata: last\n\ndata: cu".encode()
    expected = [
        ServerSentEvent("message", "é\n語".encode(), None),
        ServerSentEvent("ping", b"", "7"),
        ServerSentEvent("message", b"last", "7"),
    ]
    assert oracle(stream) == (expected, b"data: cu")
    assert parse(stream) == (expected, b"data: cu")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_given_by_the_read_that_ends_its_blank_line(end: bytes) -> None:
    parser = Parser()
    assert parser.feed(b"data: a" + end) == []
    assert [event.data for event in parser.feed(end)] == [b"a"]


def test_both_spellings_of_a_data_line_mean_the_same() -> None:
    assert data_of(b"data:x\n\ndata: x\n\ndata:  x\n\n") == [b"x", b"x", b" x"]


def test_data_lines_are_joined_by_lf() -> None:
    assert data_of(b"data: a\r\ndata\rdata:b\n\n") == [b"a\n\nb"]
    events, _ = parse(b"data: a\n\n", b"data: b\rdata: c\n\n")
    assert [event.data for event in events] == [b"a", b"b\nc"]


def test_only_a_block_with_a_data_line_is_an_event() -> None:
    assert data_of(b":\n\nevent: a\n\nid: 1\n\nretry: 9\n\n\n\n\n") == []
    assert data_of(b"data\n\n") == [b""]  # the standard's own example: an empty line of data is data


def test_an_event_name_ends_with_its_event_and_an_id_stays() -> None:
    events, _ = parse(b"event: a\nid: 1\ndata: x\n\ndata: y\n\nevent: lost\n\nid: 2\n\nid: 3\0\ndata: z\n\n")
    assert [(e.event, e.id) for e in events] == [("a", "1"), ("message", "1"), ("message", "2")]


def test_a_cut_mid_event_is_told_from_a_clean_end() -> None:
    assert parse(b"data: a\n\n") == ([ServerSentEvent("message", b"a", None)], b"")
    assert parse(b"data: a\n\n: k\n\n\n")[1] == b""
    assert parse(b"data: a\n\ndata: b\n")[1] == b"data: b\n"
    assert parse("data: é".encode()[:-1])[1] == b"data: \xc3"
    assert parse(b"data: a\r\n\r")[1] == b""


def test_a_byte_order_mark_is_dropped_once_and_only_at_the_start() -> None:
    assert data_of(BOM + b"data: a\n\n", BOM + b"data: b\n\ndata: " + BOM + b"\n\n") == [b"a", BOM]
    assert data_of(BOM, BOM + b"data: a\n\n") == []


def test_an_unfinished_event_over_the_bound_is_an_error_that_names_both_sizes() -> None:
    parser = Parser(max_event_bytes=1000)
    for _ in range(2):  # finished events do not add up
        assert len(parser.feed(b"data: " + b"x" * 990 + b"\n\n")) == 1
    parser.feed(b"data: " + b"x" * 994)
    with pytest.raises(SseError, match=r"1,001 bytes .* may have 1,000"):
        parser.feed(b"x")
    with pytest.raises(SseError, match=r"1,006 bytes .* may have 1,000"):
        Parser(max_event_bytes=1000).feed(b"data: a\n\ndata: " + b"x" * 1000)


def test_an_event_just_under_the_bound_arrives_whole_and_memory_stays_near_it() -> None:
    parser = Parser()
    piece = b"x" * 2**16
    count = MAX_EVENT_BYTES // len(piece) - 1
    tracemalloc.start()
    try:
        parser.feed(b"data: ")
        assert all(parser.feed(piece) == [] for _ in range(count))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * MAX_EVENT_BYTES
    (event,) = parser.feed(b"\n\n")
    assert len(event.data) == count * len(piece)
