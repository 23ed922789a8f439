"""The truth server is true: every token once, as scheduled, stamped before it can arrive, whatever its clients do.

Method: the server runs as its own process; http.client reads what is well formed, bare sockets do what a client should
not. Tolerance: no upper bound on any time, but in the test marked `timing`. Lower bounds and order hold on any machine,
because all stamps come from one system-wide monotonic clock.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.prompts import WORDS, Prompts, probe_text, word_lengths
from loadtest.sse import ServerSentEvent
from loadtest.truth import Schedule, Truth, truth
from loadtest.truth.wire import MOST_BODY_BYTES, MOST_HEAD_BYTES

FAST = {"first": 0.004, "gap": 0.002, "jitter": 0.5, "seed": 7}
AS_FAST = Schedule(first_s=0.004, gap_s=0.002, jitter=0.5, seed=7)
ROUNDING_NS = 50_000  # a kernel stamp comes over from another clock
PATIENCE_S = 30


@pytest.fixture(scope="module")
def running() -> Iterator[Truth]:
    with truth(**FAST, openai=True) as server:
        yield server
    assert server.process.returncode == 0


@pytest.fixture
def server(running: Truth) -> Truth:
    running.clear()
    return running


@pytest.fixture
def client(server: Truth) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    yield connection
    connection.close()


def demand(tokens: int | None, inputs: str = "one two three") -> dict[str, Any]:
    return {"inputs": inputs, "parameters": {"max_new_tokens": tokens, "details": True, "ignore_eos": True}}


def ask(client: HTTPConnection, path: str, body: Any, request_id: str = "r1") -> None:
    client.request("POST", path, json.dumps(body), {"x-request-id": request_id})


def post(client: HTTPConnection, path: str, body: Any, request_id: str = "r1") -> tuple[int, bytes]:
    ask(client, path, body, request_id)
    response = client.getresponse()
    return response.status, response.read()


def data(body: bytes) -> list[bytes]:
    """What each event says, in order; every event must have the exact framing."""
    assert body.endswith(b"\n\n")
    blocks = body[:-2].split(b"\n\n")
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [block[6:] for block in blocks]


def raw(server: Truth, *sent: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    for each in sent:
        sock.sendall(each)
    return sock


def raw_request(tokens: int, request_id: str = "r1") -> bytes:
    body = json.dumps(demand(tokens)).encode()
    head = f"POST /generate_stream HTTP/1.1\r\nX-Request-Id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def everything(sock: socket.socket) -> bytes:
    """Until the server closes."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until_end(sock: socket.socket, streams: int = 1) -> bytes:
    """Until the chunked terminator of so many streams."""
    parts = bytearray()
    end = b"\r\n0\r\n\r\n"
    while not (parts.endswith(end) and parts.count(end) == streams):
        part = sock.recv(65536)
        assert part, "closed before the end"
        parts += part
    return bytes(parts)


def wait_for(server: Truth, true: Callable[[dict[str, Any]], bool], request_id: str = "r1") -> dict[str, Any]:
    """The record, once that is true of it."""
    patience = time.monotonic() + PATIENCE_S
    while True:
        (record,) = [each for each in server.records() if each["request_id"] == request_id]
        if true(record):
            return record
        assert time.monotonic() < patience, {**record, "due_ns": None, "sent_ns": None}
        time.sleep(0.01)


def indexes(stream: bytes) -> list[int]:
    return [int(each.split(b",")[0]) for each in stream.split(b'{"index":')[1:]]


def test_waits_are_a_base_times_a_uniform_factor_drawn_from_the_seed_and_the_id():
    schedule = Schedule(first_s=0.2, first_spread=0.25, gap_s=0.02, jitter=0.5, seed=3)
    waits = schedule.waits("abc", 1000)
    draws = random.Random("3:abc")
    expected = [0.2 * (1 + 0.25 * draws.uniform(-1, 1)), *(0.02 * (1 + 0.5 * draws.uniform(-1, 1)) for _ in range(999))]
    assert waits == pytest.approx([1e9 * each for each in expected], abs=2)
    assert 150e6 <= waits[0] <= 250e6
    assert 10e6 <= min(waits[1:]) < 11e6
    assert 29e6 < max(waits[1:]) <= 30e6
    assert waits == schedule.waits("abc", 1000)
    assert waits[:10] == schedule.waits("abc", 10), "a longer stream begins as a shorter one"
    assert waits != schedule.waits("abd", 1000)


def test_without_spread_and_jitter_waits_are_exact_and_a_drain_has_none():
    assert Schedule(0.2, 0, 0.02, 0).waits("any", 3) == [200_000_000, 20_000_000, 20_000_000]
    assert Schedule(0, 0.5, 0, 0.5).waits("any", 3) == [0, 0, 0]


@pytest.mark.parametrize("wrong", [{"first_s": -1}, {"gap_s": -0.1}, {"jitter": 1.1}, {"first_spread": -0.1}])
def test_a_schedule_that_cannot_be_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"neither may be negative|both lie in 0\.\.1"):
        Schedule(**wrong)  # type: ignore[arg-type]


def test_a_stream_has_every_token_once_and_tgis_last_event(client: HTTPConnection):
    status, body = post(client, "/generate_stream", demand(5))
    assert status == 200
    readings = [TgiEndpoint().read(ServerSentEvent("message", each, None)) for each in data(body)]
    assert [(each.tokens, each.text) for each in readings] == [(1, " token")] * 5
    assert [each.finished for each in readings] == [False] * 4 + [True]
    assert (readings[-1].input_tokens, readings[-1].new_tokens) == (3, 5)
    said = [json.loads(each) for each in data(body)]
    assert [each["index"] for each in said] == [1, 2, 3, 4, 5]
    assert said[-1]["generated_text"] == " token" * 5
    assert said[-1]["details"] == {"finish_reason": "length", "generated_tokens": 5, "seed": None, "input_length": 3}


def test_every_stamp_lies_between_its_due_time_and_its_arrival(server: Truth):
    before_ns = time.monotonic_ns()
    arrivals: list[int] = []
    with raw(server, raw_request(20)) as sock:
        stream = b""
        while not stream.endswith(b"0\r\n\r\n"):
            stream += sock.recv(65536)
            arrivals += [time.monotonic_ns()] * (stream.count(b'{"index":') - len(arrivals))
    record = wait_for(server, lambda record: record["outcome"] == "complete")
    assert len(arrivals) == len(record["sent_ns"]) == len(record["due_ns"]) == 20
    assert before_ns - ROUNDING_NS <= record["received_ns"] <= record["headers_ns"]
    assert all(due <= sent for due, sent in zip(record["due_ns"], record["sent_ns"], strict=True))
    assert all(sent < arrival for sent, arrival in zip(record["sent_ns"], arrivals, strict=True))
    late = sorted(sent - due for due, sent in zip(record["due_ns"], record["sent_ns"], strict=True))
    assert record["late_ns"] == {"p50": late[9], "p99": late[19], "max": late[19]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="receive stamps are Linux's")
def test_a_request_is_received_when_its_last_segment_comes_in(server: Truth):
    request = raw_request(2)
    with raw(server, request[:-1]) as sock:
        time.sleep(0.03)
        last_ns = time.monotonic_ns()
        sock.sendall(request[-1:])
        until_end(sock)
    (record,) = server.records()
    assert record["received_clock"] == "kernel"
    assert record["received_ns"] >= last_ns - ROUNDING_NS


def test_a_connection_is_kept_and_requests_behind_one_another_are_answered_in_order(server: Truth):
    with raw(server, raw_request(3, "a") + raw_request(2, "b")) as sock:
        assert indexes(until_end(sock, 2)) == [1, 2, 3, 1, 2]
        sock.sendall(raw_request(1, "c"))
        assert indexes(until_end(sock)) == [1]
    assert [record["request_id"] for record in server.records()] == ["a", "b", "c"]


def test_many_streams_at_once_each_keep_their_own_schedule(server: Truth):
    socks = [raw(server, raw_request(25, f"r{i}")) for i in range(40)]
    for sock in socks:
        assert indexes(until_end(sock)) == list(range(1, 26))
        sock.close()
    records = {record["request_id"]: record for record in server.records()}
    assert len(records) == 40
    for name, record in records.items():
        dues = [record["received_ns"], *record["due_ns"]]
        assert [b - a for a, b in pairwise(dues)] == AS_FAST.waits(name, 25)
        assert len(record["sent_ns"]) == 25
        assert record["sent_ns"] == sorted(record["sent_ns"])
        assert all(due <= sent for due, sent in zip(record["due_ns"], record["sent_ns"], strict=True))
        assert (record["outcome"], record["delayed"]) == ("complete", [])


@pytest.mark.parametrize("gap", [0.0002, 0])
def test_a_reader_that_stops_gets_all_in_the_end_and_is_on_the_record(gap: float):
    with truth(first=0.001, gap=gap, event_bytes=60_000) as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            sock.settimeout(PATIENCE_S)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(raw_request(300))
            record = wait_for(server, lambda record: record["delayed"])
            assert record["outcome"] == "open"
            with raw(server, raw_request(2, "other")) as other:
                assert indexes(until_end(other)) == [1, 2], "nobody else waits for it"
            if gap:
                wait_for(server, lambda record: len(record["sent_ns"]) == 300)
            stream = until_end(sock)
        assert indexes(stream) == list(range(1, 301))
        record = wait_for(server, lambda record: record["outcome"] == "complete")
        assert len(record["sent_ns"]) == 300
        assert record["sent_ns"] == sorted(record["sent_ns"])
        assert record["delayed"] == sorted(set(record["delayed"]))
        assert record["delayed"][-1] < 300


def test_a_drain_sends_several_tokens_with_one_stamp():
    with truth(first=0.001, gap=0) as server, raw(server, raw_request(100)) as sock:
        assert indexes(until_end(sock)) == list(range(1, 101))
        record = wait_for(server, lambda record: record["outcome"] == "complete")
        assert len(set(record["due_ns"])) == 1
        assert [record["sent_ns"].count(stamp) for stamp in dict.fromkeys(record["sent_ns"])] == [32, 32, 32, 4]


def test_a_client_that_leaves_is_cut_and_nobody_else_notices(server: Truth):
    with raw(server, raw_request(5000)) as sock:
        assert sock.recv(65536)
    record = wait_for(server, lambda record: record["outcome"] != "open")
    assert record["outcome"] == "cut"
    assert len(record["sent_ns"]) < len(record["due_ns"]) == 5000
    with raw(server, raw_request(2, "next")) as sock:
        assert indexes(until_end(sock)) == [1, 2]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00 a TLS greeting", 400),
        (b"generate please\r\n\r\n", 400),
        (b"GET /info HTTP/1.0\r\n\r\n", 400),
        (b"GET /info HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"POST /tokenize HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (MOST_BODY_BYTES + 1), 413),
        (b"POST /tokenize HTTP/1.1\r\ncontent-length: 1%b\r\n\r\n" % (b"0" * 5000), 413),
        (b"GET /info HTTP/1.1\r\na: " + b"a" * MOST_HEAD_BYTES, 431),
    ],
)
def test_what_is_not_a_request_gets_its_status_and_the_connection_closes(server: Truth, sent: bytes, status: int):
    with raw(server, sent, b"more of it") as sock:
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 4") == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate_stream", [], 422),
        ("/generate_stream", {"inputs": 1}, 422),
        ("/generate_stream", demand(0), 422),
        ("/generate_stream", demand(True), 422),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}, 400),
        ("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": "2"}, 422),
        ("/generate", demand(1), 404),
    ],
)
def test_a_refused_request_leaves_the_connection_open(client: HTTPConnection, path: str, body: Any, status: int):
    refused, why = post(client, path, body)
    assert refused == status
    assert json.loads(why)["error"]
    sock = client.sock
    assert post(client, "/generate_stream", demand(1))[0] == 200
    assert client.sock is sock


def test_a_body_that_is_not_json_is_refused(client: HTTPConnection):
    client.request("POST", "/generate_stream", b"{")
    assert client.getresponse().status == 400


def test_a_request_that_asks_to_close_is_answered_whole_first(server: Truth):
    request = raw_request(3).replace(b"X-Request-Id", b"Connection: close\r\nX-Request-Id")
    with raw(server, request) as sock:
        stream = everything(sock)
    assert indexes(stream) == [1, 2, 3]
    assert stream.endswith(b"\r\n0\r\n\r\n")
    assert server.records()[0]["outcome"] == "complete"


def test_prompts_of_exact_length_can_be_made_for_it(client: HTTPConnection):
    client.request("GET", "/info")
    info = json.loads(client.getresponse().read())
    assert (info["slots"], info["max_total_tokens"]) == (None, 1_000_000)
    pieces = json.loads(post(client, "/tokenize", {"inputs": probe_text()})[1])
    lengths, around = word_lengths([SimpleNamespace(start=each["start"], stop=each["stop"]) for each in pieces])
    assert (set(lengths), set(lengths.values()), around) == (set(WORDS), {1}, 0)
    prompt = Prompts(lengths, around, seed=1).draw(256)
    assert len(json.loads(post(client, "/tokenize", {"inputs": prompt})[1])) == 256
    last = json.loads(data(post(client, "/generate_stream", demand(1, prompt))[1])[-1])
    assert last["details"]["input_length"] == 256
    client.request("GET", "/health")
    assert client.getresponse().status == 200


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_openais_chunks_have_their_shape(client: HTTPConnection, server: Truth, chat: bool, usage: bool):
    asked: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 4}
    asked |= {"messages": [{"role": "user", "content": "one two three"}]} if chat else {"prompt": "one two three"}
    asked |= {"stream_options": {"include_usage": True}} if usage else {}
    *said, done = data(post(client, "/v1/chat/completions" if chat else "/v1/completions", asked)[1])
    assert done == b"[DONE]"
    chunks = [json.loads(each) for each in said]
    assert {each["object"] for each in chunks} == {"chat.completion.chunk" if chat else "text_completion"}
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert all(("usage" in each) == usage for each in chunks)
    choices = [each["choices"][0] for each in chunks]
    if chat:
        assert choices.pop(0)["delta"] == {"role": "assistant", "content": ""}
    assert [each["delta"]["content"] if chat else each["text"] for each in choices] == [" token"] * 4
    assert [each["finish_reason"] for each in choices] == [None] * 3 + ["length"]
    assert len(server.records()[0]["sent_ns"]) == 4


def test_without_its_option_openai_is_not_served_and_defaults_apply():
    with truth(first=0, gap=0.001, tokens_default=3, event_bytes=500) as server:
        client = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        assert post(client, "/v1/completions", {"prompt": "a", "stream": True})[0] == 404
        events = data(post(client, "/generate_stream", demand(None))[1])
        client.close()
    assert len(events) == 3
    assert [len(b"data: \n\n" + each) for each in events[:2]] == [500, 500]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
def test_it_ends_with_0_and_writes_its_record(how: str, tmp_path: Path):
    file = tmp_path / "truth.jsonl"
    with truth(**FAST, record=file) as server, raw(server, raw_request(2, "whole")) as sock:
        until_end(sock)
        with raw(server, raw_request(100_000, "under way")) as other:
            assert other.recv(10)
            if how == "stdin":
                assert server.process.stdin is not None
                server.process.stdin.close()
            else:
                server.process.send_signal(signal.Signals[how])
            assert server.process.wait(5) == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["request_id"], each["outcome"]) for each in records] == [("whole", "complete"), ("under way", "open")]


def test_it_hears_no_signal_of_its_parents_terminal_and_dies_with_it():
    program = (
        "from loadtest.truth.process import truth\n"
        "with truth() as server: print(server.process.pid, server.port, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert os.getpgid(pid) != parent.pid
        parent.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    pytest.fail("the truth server is still there")


def test_a_wrong_option_is_an_error_and_not_a_server():
    with pytest.raises(RuntimeError, match="did not start: it ended with 2"), truth(jitter=2):
        pass


def test_it_can_be_started_where_gevent_has_patched_everything():
    pytest.importorskip("gevent")
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from loadtest.truth import truth\n"
        "with truth(gap=0.001) as server: print(server.records())\n"
        "print(server.process.returncode)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, timeout=60
    )
    assert done.stdout.split() == ["[]", "0"]


@pytest.mark.timing
def test_half_of_all_tokens_leave_within_a_millisecond():
    with truth(gap=0.02) as server:
        socks = [raw(server, raw_request(50, f"r{i}")) for i in range(64)]
        for sock in socks:
            until_end(sock)
            sock.close()
        late_ns = sorted(
            sent - due
            for record in server.records()
            for due, sent in zip(record["due_ns"], record["sent_ns"], strict=True)
        )
    assert len(late_ns) == 3200
    assert late_ns[1600] < 1_000_000
