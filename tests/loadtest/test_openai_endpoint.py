"""The reader of OpenAI's chunks takes whatever a stranger sends, and what deceives other load testers has its verdict.

Method: single events against the reader; our server's own transcripts; then every fault over a real socket, where
tests/schedule_server.py sends the literal bytes of a script piece by piece and records each send. The faults are those
that were seen to count as success, or to hang, in the load testers that were read for this one. Only order and counts
are asserted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from loadtest.endpoints.base import Reading
from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.sample import Sample
from loadtest.sse import Parser, ServerSentEvent
from loadtest.transport.base import HttpRequest, Timeouts
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Truth

TRANSCRIPTS = Path(__file__).parents[1] / "contract" / "transcripts"
CHAT = OpenAiEndpoint("chat", "m")


def read(said: Any, event: str = "message") -> Reading:
    data = said if isinstance(said, bytes) else orjson.dumps(said)
    return CHAT.read(ServerSentEvent(event, data, None))


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice], "usage": None} | more


def with_choice(**more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None} | more]}


def usage(asked: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


# --- one event -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reading"),
    [
        (chunk({"role": "assistant", "content": " hi"}), Reading(tokens=1, text=" hi")),
        (chunk({"reasoning_content": "hm"}), Reading(tokens=1)),
        (chunk({"reasoning": "hm", "reasoning_content": "hm", "content": None}), Reading(tokens=1)),
        (chunk({"refusal": "no"}), Reading(tokens=1, text="no")),
        (chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), Reading(tokens=1)),
        ({"choices": [{"index": 0, "text": " hi", "finish_reason": ""}]}, Reading(tokens=1, text=" hi")),
        (with_choice(logprobs={"content": [{"token": "\ufffd"}]}), Reading(tokens=1)),
        (with_choice(logprobs={"tokens": ["a", "b"]}, text="ab"), Reading(tokens=2, text="ab")),
        (with_choice(token_ids=[7, 8, 9]), Reading(tokens=3)),
        (with_choice(delta={"content": "let go"}, token_ids=[]), Reading(tokens=1, text="let go")),
        (chunk({"content": "hi"}, usage=usage(5, 2)), Reading(1, "hi", input_tokens=5, new_tokens=2)),
        (chunk({"content": "."}, "length", usage=usage(5, 9)), Reading(1, ".", True, None, 5, 9, full=True)),
        (chunk({}, "stop"), Reading(finished=True, stopped=True)),
        ({"choices": [{"finish_reason": "stop"}]}, Reading(finished=True, stopped=True)),
        ({"choices": [], "usage": usage(5, 9)}, Reading(input_tokens=5, new_tokens=9)),
        ({"usage": usage(5, 9)}, Reading(input_tokens=5, new_tokens=9)),
    ],
)
def test_what_a_chunk_says(said: Any, reading: Reading):
    assert read(said) == reading


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b" ",
        b"[DONE]",
        chunk({"role": "assistant"}),
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": None, "reasoning_content": None, "tool_calls": []}),
        with_choice(logprobs=None, token_ids=None),
        with_choice(logprobs={"content": []}, token_ids=[]),
        with_choice(finish_reason=""),
        with_choice(message=None),
        {"choices": [], "prompt_filter_results": []},  # Azure's first
        {"choices": [], "usage": None, "error": None},
    ],
)
def test_roles_empty_chunks_and_done_say_nothing(said: Any):
    assert read(said) == Reading()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "too hot", "type": "server_error", "code": 500}}, "server_error: too hot"),
        ({"error": {"message": "too hot", "type": None, "code": 503}}, "503: too hot"),
        ({"error": {"message": "too hot", "http_status_code": 422}}, "too hot"),
        ({"error": "too hot"}, "too hot"),
        ({"error": "too hot", "error_type": "generation"}, "generation: too hot"),
        ({"error": {"code": 7}}, "7: '{\"code\":7}'"),
        ({"object": "error", "message": "too hot", "type": "BadRequestError", "code": 400}, "BadRequestError: too hot"),
        ({"error": {"message": "too hot"}, "choices": [{"delta": {"content": "x"}, "finish_reason": None}]}, "too hot"),
        (chunk({}, "error"), "the generation ended with finish_reason 'error'"),
        (chunk({}, "abort"), "the generation ended with finish_reason 'abort'"),
    ],
)
def test_an_error_in_any_shape_keeps_its_message(said: Any, message: str):
    assert read(said).error == message
    assert read(said).tokens == 0


def test_an_event_named_error_is_one_whatever_it_holds():
    assert read({"message": "too hot"}, "error").error == "too hot"
    assert read(b"too hot", "error").error == "'too hot'"
    assert read(b"", "error").error == "''"
    assert read(chunk({"content": "x"}), "error").error is not None


@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b"\xff",
        b"[DONE",
        [],
        3,
        None,
        {},
        {"usage": None},
        {"error": ""},
        {"choices": None},
        {"choices": {}},
        {"choices": [3]},
        {"choices": [{}]},
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "all of it"}, "finish_reason": "stop"}]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": ["x"]}}]},
        {"choices": [{"text": 3}]},
    ],
)
def test_what_is_no_chunk_is_an_error_with_an_excerpt(said: Any):
    reading = read(said)
    shown = repr((said if isinstance(said, bytes) else orjson.dumps(said)).decode(errors="replace"))
    assert reading.error is not None
    assert shown in reading.error
    assert (reading.tokens, reading.finished) == (0, False)


def test_counts_that_are_no_numbers_are_no_counts():
    for counts in ({"prompt_tokens": "5", "completion_tokens": True}, {"prompt_tokens": -1}, {"x": 1}):
        assert read({"choices": [], "usage": counts}) == Reading()
    assert read(chunk({"content": "x"}, usage=[3])) == Reading(tokens=1, text="x")


def test_named_events_of_servers_and_gateways_are_known():
    assert read({"queue_s": 1}, "tokenclock") == Reading(server={"queue_s": 1})
    assert read([1], "tokenclock") == Reading()
    assert read(b"2026-01-01", "ping") == Reading()
    assert read(chunk({"content": "x"}), "completion") == Reading(tokens=1, text="x")


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("openai_*_stream*.txt")), ids=lambda path: path.stem)
def test_our_servers_own_streams_are_read_as_what_they_are(path: Path):
    """Independent count: the transcript's chunks with text or logprobs, by their text alone."""
    body = path.read_text(encoding="utf-8").split("=== body\n")[1].rstrip("\n") + "\n\n"
    body = re.sub(r"\{\{\w+\}\}", "12", body)
    readings = [CHAT.read(event) for event in Parser().feed(body.encode())]
    assert [reading.error for reading in readings] == [None] * len(readings)
    assert sum(reading.finished for reading in readings) == 1
    pieces = [json.loads(text) for text in re.findall(r'"(?:content|text)":("(?:[^"\\]|\\.)+?")', body)]
    assert pieces
    assert [reading.text for reading in readings if reading.text] == pieces
    assert sum(reading.tokens for reading in readings) == len(pieces)
    counted = re.findall(r'"prompt_tokens":(\d+),"completion_tokens":(\d+)', body)
    assert [(str(r.input_tokens), str(r.new_tokens)) for r in readings if r.new_tokens is not None] == counted


# --- the request -----------------------------------------------------------------------------------------------------


def body(endpoint: OpenAiEndpoint) -> dict[str, Any]:
    request = endpoint.request("one two", 7, "id-1")
    assert (request.method, request.path) == ("POST", endpoint.route)
    assert ("x-request-id", "id-1") in request.headers
    return dict(orjson.loads(request.body))


def test_a_request_asks_for_exactly_so_many_tokens_streamed_and_counted():
    common = {"model": "m", "max_tokens": 7, "stream": True, "stream_options": {"include_usage": True}}
    common |= {"temperature": 0, "ignore_eos": True}
    assert body(CHAT) == {"messages": [{"role": "user", "content": "one two"}], **common}
    assert body(OpenAiEndpoint("completions", "m")) == {"prompt": "one two", **common}
    assert (CHAT.route, CHAT.protocol) == ("/v1/chat/completions", "openai-chat")
    assert OpenAiEndpoint("completions", "m").route == "/v1/completions"


def test_extra_body_adds_replaces_and_leaves_out():
    extra = {"max_tokens": None, "max_completion_tokens": "{new_tokens}", "ignore_eos": None, "temperature": 1}
    said = body(OpenAiEndpoint("chat", "m", extra))
    assert (said["max_completion_tokens"], said["temperature"]) == (7, 1)
    assert said.keys() & {"max_tokens", "ignore_eos"} == set()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "m is unknown", "type": "not_found"}}, "not_found: m is unknown"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body"]}]}, '\'{"detail":[{"loc":["body"]}]}\''),
        ({"message": "no Route matched"}, "no Route matched"),
        (b"<html>", "'<html>'"),
        ([], "'[]'"),
        (
            {"error": {"message": "Unrecognized request argument supplied: ignore_eos"}},
            'Unrecognized request argument supplied: ignore_eos (leave it out: extra_body {"ignore_eos":null})',
        ),
        (
            {"error": "Unsupported parameter: 'max_tokens'"},
            "Unsupported parameter: 'max_tokens' (leave it out: extra_body "
            '{"max_tokens":null,"max_completion_tokens":"{new_tokens}"})',
        ),
        ({"error": "max_tokens is too large: 9"}, "max_tokens is too large: 9"),
    ],
)
def test_a_refusal_keeps_its_message_and_names_the_remedy(said: Any, message: str):
    assert CHAT.error_of(said if isinstance(said, bytes) else orjson.dumps(said)) == message


# --- whole streams over a real socket --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted(OpenAiEndpoint):
    """OpenAI's protocol, with what the server shall send in a header."""

    schedule: str = "{}"

    def request(self, *asked: Any) -> HttpRequest:
        plain = super().request(*asked)
        return replace(plain, headers=(*plain.headers, ("x-schedule", self.schedule)))


Play = Callable[..., Sample]


@pytest.fixture
def play(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(pieces) is the sample of a request for 20 tokens whose body's pieces are sent one by one."""

    def scripted(schedule: dict[str, Any]) -> Scripted:
        return Scripted("chat", "m", schedule=json.dumps(schedule))

    monkeypatch.setitem(type(truth).measure.__globals__, "Scheduled", scripted)

    def played(pieces: list[bytes], **schedule: Any) -> Sample:
        truth.clear()
        script = [piece.decode("latin-1") for piece in pieces]
        # The pieces before a fault must have left the kernel's queue when a reset comes: a gap that a test can afford.
        schedule = {"first_s": 0.005, "gap_s": 0.002, "script": script, **schedule}
        (sample,) = truth.measure(new_tokens=20, timeouts=Timeouts(5, 1, 0.5, 10), **schedule)
        return sample

    return played


def said(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n"


ROLE = said(chunk({"role": "assistant", "content": ""}))
FINISH = said(chunk({}, "length"))
USAGE = said({"choices": [], "usage": usage(4, 20)})
DONE = said(b"[DONE]")
FAILED = {"message": "CUDA out of memory", "type": "server_error", "code": 500}


def texts(count: int, first: int = 0) -> list[bytes]:
    return [said(chunk({"content": f" é{i}"})) for i in range(first, first + count)]


GOOD = [ROLE, *texts(20), FINISH, USAGE, DONE]

#: name: what is sent, how, and what it is: verdict, token events, a part of the detail
FAULTS: dict[str, tuple[list[bytes], dict[str, Any], Verdict, int, str | None]] = {
    "5 of 20 tokens, then a clean close": ([ROLE, *texts(5)], {}, Verdict.TRUNCATED, 5, "after 5 of 20 tokens"),
    "5 of 20 tokens, then an error event and DONE": (
        [ROLE, *texts(5), said({"error": FAILED}), DONE],
        {},
        Verdict.ERROR_IN_STREAM,
        5,
        "server_error: CUDA out of memory",
    ),
    "an error object without choices is no usage": (
        [said({"error": FAILED, "usage": usage(4, 20)})],
        {},
        Verdict.ERROR_IN_STREAM,
        0,
        "server_error: CUDA out of memory",
    ),
    "an event named error": (
        [*texts(5), b'event: error\ndata: {"message": "worker died"}\n\n', DONE],
        {},
        Verdict.ERROR_IN_STREAM,
        5,
        "worker died",
    ),
    "an error after every token and the finish": (
        [*texts(20), FINISH, said({"error": "worker died"}), DONE],
        {},
        Verdict.ERROR_IN_STREAM,
        20,
        "worker died",
    ),
    "a finish that says error": ([*texts(20), said(chunk({}, "error"))], {}, Verdict.ERROR_IN_STREAM, 20, "'error'"),
    "an object that is no chunk": (
        [*texts(5), said({"status": "oops"}), *texts(15), FINISH],
        {},
        Verdict.ERROR_IN_STREAM,
        20,
        """'{"status":"oops"}'""",
    ),
    "a splintered event, then the rest": (
        [*texts(5), b'data: {"choices":[{"del\n\n', *texts(15), FINISH, DONE],
        {},
        Verdict.ERROR_IN_STREAM,
        20,
        """not JSON: '{"choices":[{"del'""",
    ),
    "the whole reply as one event": (
        [said({"choices": [{"message": {"content": "all"}, "finish_reason": "length"}], "usage": usage(4, 20)})],
        {},
        Verdict.ERROR_IN_STREAM,
        0,
        "as if `stream` had not been asked for",
    ),
    "a TCP abort": ([*texts(5), *texts(15)], {"fault": "reset", "fault_after": 5}, Verdict.CONNECTION, 5, "reset"),
    "a close inside the body": (
        [*texts(5), *texts(15)],
        {"fault": "truncate", "fault_after": 5},
        Verdict.TRUNCATED,
        5,
        "after 5 of 20 tokens",
    ),
    "a close inside the body after the finish": (
        [*texts(20), FINISH, USAGE],
        {"fault": "truncate", "fault_after": 21},
        Verdict.TRUNCATED,
        20,
        "before the stream's own end",
    ),
    "a reset after the finish": (
        [*texts(20), FINISH, USAGE],
        {"fault": "reset", "fault_after": 21},
        Verdict.CONNECTION,
        20,
        "reset",
    ),
    "silence after 5 tokens": (
        [*texts(5), *texts(15)],
        {"fault": "stall", "fault_after": 5},
        Verdict.TIMEOUT,
        5,
        "nothing arrived for 0.5 s",
    ),
    "a body that never ends after the finish": (
        [*texts(20), FINISH, USAGE],
        {"fault": "stall", "fault_after": 21},
        Verdict.TIMEOUT,
        20,
        "nothing arrived for 0.5 s",
    ),
    "a cut inside a line": (
        [*texts(5), texts(1)[0][:40]],
        {},
        Verdict.TRUNCATED,
        5,
        "after 5 of 20 tokens",
    ),
    "a cut inside a character": (
        [*texts(5), texts(1)[0][: texts(1)[0].index(b"\xa9")]],
        {},
        Verdict.TRUNCATED,
        5,
        "after 5 of 20 tokens",
    ),
    "a cut before the blank line of the finish": (
        [*texts(20), FINISH[:-1]],
        {},
        Verdict.TRUNCATED,
        20,
        "after 20 of 20 tokens",
    ),
    "usage alone": ([USAGE, DONE], {}, Verdict.TRUNCATED, 0, "after 0 of 20 tokens"),
    "a role, a finish and usage, no token": ([ROLE, FINISH, USAGE, DONE], {}, Verdict.EMPTY, 0, "without a token"),
    "DONE without a finish": ([*texts(20), DONE], {}, Verdict.TRUNCATED, 20, "before the stream's own end"),
    "a finish after 5 tokens": (
        [*texts(5), said(chunk({}, "stop")), said({"choices": [], "usage": usage(4, 5)}), DONE],
        {},
        Verdict.STOPPED_EARLY,
        5,
        "5 of 20 tokens",
    ),
    "a length of 20 by the server's word, in 5 chunks that nobody counts": (
        [*texts(5), FINISH, DONE],
        {},
        Verdict.COMPLETE,
        5,
        None,
    ),
    "a length of 20 by the server's word, in 4 chunks, which hold 16 tokens at most": (
        [*texts(4), FINISH, DONE],
        {},
        Verdict.STOPPED_EARLY,
        4,
        "4 of 20 tokens",
    ),
    "usage that knows of fewer tokens than chunks": (
        [*texts(20), FINISH, said({"choices": [], "usage": usage(4, 19)}), DONE],
        {},
        Verdict.STOPPED_EARLY,
        20,
        "19 of 20 tokens",
    ),
    "an empty body": ([b"\n"], {}, Verdict.TRUNCATED, 0, "after 0 of 20 tokens"),
    "a reply without DONE": (GOOD[:-1], {}, Verdict.COMPLETE, 20, None),
    "a reply without usage": ([*texts(20), FINISH, DONE], {}, Verdict.COMPLETE, 20, None),
    "empty choices before, between and after": (
        [said({"choices": []}), *texts(10), said({"choices": []}), *texts(10), FINISH, said({"choices": []}), DONE],
        {},
        Verdict.COMPLETE,
        20,
        None,
    ),
    "CRLF": ([piece.replace(b"\n", b"\r\n") for piece in GOOD], {}, Verdict.COMPLETE, 20, None),
    "CR": ([piece.replace(b"\n", b"\r") for piece in GOOD], {}, Verdict.COMPLETE, 20, None),
    "data without a space": ([piece.replace(b"data: ", b"data:") for piece in GOOD], {}, Verdict.COMPLETE, 20, None),
    "comments that keep alive": (
        [b": OPENROUTER PROCESSING\n\n", b":\n\n", *GOOD[:9], b":\n\n", *GOOD[9:]],
        {},
        Verdict.COMPLETE,
        20,
        None,
    ),
    "TGI's empty finish reasons": (
        [*(said({"choices": [{"text": f" {i}", "finish_reason": ""}]}) for i in range(20)), FINISH],
        {},
        Verdict.COMPLETE,
        20,
        None,
    ),
    "an HTTP error": ([b"x"], {"fault": "http_500"}, Verdict.HTTP_ERROR, 0, "incomplete_generation: Incomplete"),
    "overload": ([b"x"], {"fault": "overloaded"}, Verdict.OVERLOADED, 0, "overloaded: Model is overloaded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_deceives_others_has_its_verdict(play: Play, name: str):
    pieces, schedule, verdict, events, detail = FAULTS[name]
    sample = play(pieces, **schedule)
    assert (sample.verdict, len(sample.events)) == (verdict, events), sample.detail
    if detail is None:
        assert sample.detail is None
    else:
        assert detail in str(sample.detail)


def test_the_servers_count_comes_after_the_finish_and_counts(play: Play):
    assert play(GOOD).got == play([*texts(20), said(chunk({}, "length", usage=usage(4, 20)))]).got
    sample = play(GOOD)
    assert (sample.got.input_tokens, sample.got.new_tokens, sample.got.counted_by) == (4, 20, "server")
    uncounted = play([*texts(20), FINISH, DONE]).got
    assert (uncounted.input_tokens, uncounted.new_tokens, uncounted.counted_by) == (None, 20, "events")


def test_the_counts_of_every_chunk_leave_the_last_one_standing(play: Play):
    """vLLM's continuous_usage_stats."""
    chunks = [said(chunk({"content": "x"}, usage=usage(4, i))) for i in range(1, 21)]
    got = play([*chunks, FINISH, USAGE, DONE]).got
    assert (got.new_tokens, got.counted_by) == (20, "server")


def test_a_role_that_comes_early_is_no_first_token(play: Play, truth: Truth):
    sample = play(GOOD, first_s=0.005, gap_s=0.02)
    sends = [t for t, _ in truth.sends()[sample.id]["sends"]]
    assert sample.complete
    assert sample.events[0][0] >= sends[1] >= sends[0] + 15_000_000


def test_reasoning_counts_as_a_first_token_and_not_as_visible_text(play: Play, truth: Truth):
    thinking = [said(chunk({"reasoning_content": "hm"})) for _ in range(5)]
    sample = play([ROLE, *thinking, *texts(15), FINISH, USAGE], gap_s=0.01)
    sends = [t for t, _ in truth.sends()[sample.id]["sends"]]
    assert sample.complete
    assert len(sample.events) == 20
    assert sample.first_text_ns == sample.events[5][0] >= sends[6]
    assert sends[1] <= sample.events[0][0] < sends[6]


def test_a_reply_in_one_burst_is_complete_and_seen_to_be_buffered(play: Play):
    sample = play(GOOD, fault="coalesce")
    assert sample.complete
    assert len(sample.events) == 20
    assert len({read_id for _, _, read_id in sample.events}) == 1


@pytest.mark.parametrize("listed", [{"token_ids": [1, 2, 3, 4]}, {"logprobs": {"content": [{"token": "x"}] * 4}}])
def test_several_tokens_in_a_chunk_are_one_event_of_so_many(play: Play, listed: dict[str, Any]):
    sample = play([*(said(with_choice(**listed)) for _ in range(5)), FINISH, DONE])
    assert sample.complete
    assert [tokens for _, tokens, _ in sample.events] == [4] * 5
    assert sample.first_text_ns is None, "tokens without text are tokens, not text"


def test_a_character_cut_between_two_sends_is_read_whole(play: Play):
    whole = b"".join(GOOD)
    cuts = [m.start() for m in re.finditer(b"\xa9", whole)]
    sample = play([whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)])
    assert sample.complete
    assert len(sample.events) == 20
