"""The double is honest: counts, order and faults of `schedule_server` are what was asked, on the raw socket.

Method: the server runs as its own process; http.client reads what is well formed, a bare socket reads every fault.
Tolerance: no upper bound on any time. Lower bounds and order hold on any machine: no send before it is due, and no byte
here before its send there, because both stamps come from one system-wide monotonic clock.
"""

from __future__ import annotations

import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).parents[1] / "schedule_server.py"
FAST = {"first_s": 0.002, "gap_s": 0.001, "jitter": 0.0}


def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, SERVER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["port"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process, port = start("--schedule", json.dumps(FAST))
    with process:  # leaving it closes stdin and waits
        yield port
    assert process.returncode == 0


@pytest.fixture
def client(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    call(connection, "DELETE", "/truth")
    yield connection
    connection.close()


def call(client: HTTPConnection, method: str, path: str, body: Any = None, **schedule: Any) -> tuple[int, bytes]:
    headers = {"x-schedule": json.dumps(schedule), "x-request-id": "r1"} if schedule else {}
    client.request(method, path, None if body is None else json.dumps(body), headers)
    response = client.getresponse()
    return response.status, response.read()


def demand(tokens: int, **parameters: Any) -> dict[str, Any]:
    return {"inputs": "one two three", "parameters": {"max_new_tokens": tokens, **parameters}}


def events(body: bytes) -> list[Any]:
    """Each data line's JSON, in order; every event must have TGI's exact framing."""
    assert body.endswith(b"\n\n")
    blocks = body[:-2].split(b"\n\n")
    assert all(block.startswith(b"data: ") for block in blocks)
    return [json.loads(block[6:]) for block in blocks]


def truth(client: HTTPConnection) -> Any:
    (record,) = json.loads(call(client, "GET", "/truth")[1])
    return record


def tokens_sent(record: Any) -> list[int]:
    return [tokens for _, tokens in record["sends"]]


def raw(port: int, tokens: int, patience_s: float = 20, **schedule: Any) -> tuple[list[tuple[int, bytes]], str]:
    """(arrival in ns, bytes) of every read, and how it ended: closed, reset or silent. We ask for a close."""
    body = json.dumps(demand(tokens)).encode()
    head = "POST /generate_stream HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    head += f"x-schedule: {json.dumps(schedule)}\r\ncontent-length: {len(body)}\r\n\r\n"
    reads: list[tuple[int, bytes]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        connection.settimeout(patience_s)
        try:
            while data := connection.recv(2**16):
                reads.append((time.monotonic_ns(), data))
        except TimeoutError:
            return reads, "silent"
        except ConnectionResetError:
            return reads, "reset"
    return reads, "closed"


def body_of(reads: list[tuple[int, bytes]]) -> bytes:
    """What came after the headers, chunk framing included."""
    head, _, body = b"".join(data for _, data in reads).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return body


def token_indices(body: bytes) -> list[int]:
    return [int(index) for index in re.findall(rb'data: {"index":(\d+),"token":{', body)]


def test_the_stream_is_tgis_and_has_as_many_tokens_as_asked(client: HTTPConnection) -> None:
    status, body = call(client, "POST", "/generate_stream", demand(5, details=True))
    seen = events(body)
    assert (status, [event["index"] for event in seen]) == (200, [1, 2, 3, 4, 5])
    assert all(list(event) == ["index", "token", "generated_text", "details"] for event in seen)
    assert all(list(event["token"]) == ["id", "text", "logprob", "special"] for event in seen)
    assert all(event["generated_text"] is None and event["details"] is None for event in seen[:-1])
    assert seen[-1]["generated_text"] == "".join(event["token"]["text"] for event in seen)
    assert seen[-1]["details"] == {"finish_reason": "length", "generated_tokens": 5, "seed": None, "input_length": 3}


def test_details_come_only_where_asked_for(client: HTTPConnection) -> None:
    assert events(call(client, "POST", "/generate_stream", demand(2))[1])[-1]["details"] is None


def test_the_truth_has_one_stamp_for_each_event_none_before_it_is_due(client: HTTPConnection) -> None:
    call(client, "POST", "/generate_stream", demand(6), first_s=0.01, gap_s=0.03)
    record = truth(client)
    assert (record["request_id"], record["fault"], tokens_sent(record)) == ("r1", None, [1] * 6)
    stamps = [t for t, _ in record["sends"]]
    due = [record["received_ns"] + int(1e6 * (10 + 30 * i)) for i in range(6)]
    assert all(t >= d - 1000 for t, d in zip(stamps, due, strict=True))  # 1 µs of float rounding
    order = [record["received_ns"], record["headers_ns"], *stamps, record["ended_ns"]]
    assert order == sorted(order)


def test_server_stamps_and_client_stamps_are_of_one_clock(port: int, client: HTTPConnection) -> None:
    before = time.monotonic_ns()
    reads, _ = raw(port, 5, gap_s=0.01)
    after = time.monotonic_ns()
    record = truth(client)
    assert len(record["sends"]) == 5
    assert before <= record["received_ns"] < record["ended_ns"] <= after
    body = b""
    for arrival, data in reads:
        body += data
        arrived = len(token_indices(body))
        assert all(sent <= arrival for sent, _ in record["sends"][:arrived])
    assert arrived == 5


def test_jitter_is_seeded_and_stays_within_its_factor(client: HTTPConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"first_s": 0.01, "gap_s": 0.01, "jitter": 0.5}
    for seed in (1, 1, 2):
        call(client, "POST", "/generate_stream", demand(8), **waits, seed=seed)
    records = json.loads(call(client, "GET", "/truth")[1])
    assert [tokens_sent(record) for record in records] == [[1] * 8] * 3
    for record in records:
        assert record["sends"][-1][0] - record["received_ns"] >= 8 * 0.01e9 * 0.5
    monkeypatch.syspath_prepend(SERVER.parent)
    Schedule = importlib.import_module("schedule_server").Schedule  # noqa: N806
    dues = [[d for d, _ in zip(Schedule(**waits, seed=s).due_ns(0), range(200), strict=False)] for s in (1, 1, 2)]
    assert dues[0] == dues[1] != dues[2]
    gaps = [b - a for a, b in zip([0, *dues[0]], dues[0], strict=False)]
    assert 5e6 - 1 <= min(gaps) < 6e6 < 14e6 < max(gaps) <= 15e6 + 1


def test_a_connection_serves_many_requests(client: HTTPConnection) -> None:
    sockets = set()
    for _ in range(3):
        assert len(events(call(client, "POST", "/generate_stream", demand(2))[1])) == 2
        sockets.add(client.sock)
    assert len(sockets) == 1
    assert None not in sockets


def test_streams_run_side_by_side(port: int, client: HTTPConnection) -> None:
    """The second is asked for later and ends while the first waits for its first token."""
    other = HTTPConnection("127.0.0.1", port, timeout=20)
    slow = {"x-schedule": json.dumps({"first_s": 1.0})}
    other.request("POST", "/generate_stream", json.dumps(demand(1)), slow)
    call(client, "POST", "/generate_stream", demand(3))
    assert len(events(other.getresponse().read())) == 1
    other.close()
    records = json.loads(call(client, "GET", "/truth")[1])
    ended = {len(record["sends"]): record["ended_ns"] for record in records}
    assert sorted(ended) == [1, 3]
    assert ended[3] < ended[1]


def test_tokenize_gives_one_token_per_word_with_character_offsets(client: HTTPConnection) -> None:
    text = "é  two\nthree"
    tokens = json.loads(call(client, "POST", "/tokenize", {"inputs": text})[1])
    assert [(t["text"], t["start"], t["stop"]) for t in tokens] == [("é", 0, 1), ("two", 3, 6), ("three", 7, 12)]
    assert all(text[t["start"] : t["stop"]] == t["text"] for t in tokens)


def test_info_health_and_unknown_paths(client: HTTPConnection) -> None:
    info = json.loads(call(client, "GET", "/info")[1])
    assert (info["max_total_tokens"], info["slots"]) == (4096, 4)
    assert call(client, "GET", "/health") == (200, b"")
    assert call(client, "GET", "/nothing")[0] == 404


@pytest.mark.parametrize(
    "schedule",
    [
        {"fault": "unheard_of"},
        {"frist_s": 1},
        {"jitter": 2},
        {"gap_s": -1},
        {"fault": "truncate", "fault_after": 4},
        {"fault": "stop_early", "fault_after": 0},
    ],
)
def test_a_schedule_that_cannot_happen_is_refused(client: HTTPConnection, schedule: dict[str, Any]) -> None:
    status, body = call(client, "POST", "/generate_stream", demand(4), **schedule)
    assert (status, json.loads(body)["error_type"]) == (422, "validation")
    assert call(client, "GET", "/truth")[1] == b"[]"


def test_without_a_fault_the_raw_body_ends_with_the_terminator_and_one_final_event(port: int) -> None:
    """The control for every fault below."""
    reads, ending = raw(port, 6)
    body = body_of(reads)
    assert (token_indices(body), ending) == ([1, 2, 3, 4, 5, 6], "closed")
    assert body.endswith(b"\r\n0\r\n\r\n")
    assert body.count(b'"generated_text":" ') == 1


@pytest.mark.parametrize(
    ("fault", "indices", "ending", "last_bytes", "sent"),
    [
        ("truncate", [1, 2], "closed", b"}\n\n\r\n", [1, 1]),
        ("truncate_clean", [1, 2], "closed", b"}\n\n\r\n0\r\n\r\n", [1, 1]),
        ("reset", [1, 2], "reset", b"}\n\n\r\n", [1, 1]),
        ("stall", [1, 2], "silent", b"}\n\n\r\n", [1, 1]),
        ("garble_http", [1, 2], "closed", b"}\n\n\r\nzz\r\n", [1, 1, 0]),
        ("error_event", [1, 2], "closed", b'"error_type":"generation"}\n\n\r\n0\r\n\r\n', [1, 1, 0]),
    ],
)
def test_a_fault_after_two_of_six_tokens(
    port: int, client: HTTPConnection, fault: str, indices: list[int], ending: str, last_bytes: bytes, sent: list[int]
) -> None:
    reads, ended = raw(port, 6, 1.0 if fault == "stall" else 20, fault=fault, fault_after=2, gap_s=0.02)
    body = body_of(reads)
    assert (token_indices(body), ended) == (indices, ending)
    assert body.endswith(last_bytes)
    assert b'"generated_text":" ' not in body  # no final event
    record = truth(client)
    assert (record["fault"], tokens_sent(record)) == (fault, sent)
    assert (record["ended_ns"] is not None) == body.endswith(b"0\r\n\r\n")


def test_garble_is_one_event_that_is_not_json_in_a_stream_that_goes_on(port: int, client: HTTPConnection) -> None:
    reads, ending = raw(port, 6, fault="garble", fault_after=2)
    body = body_of(reads)
    assert (token_indices(body), ending) == ([1, 2, 3, 4, 5, 6], "closed")
    assert body.endswith(b"0\r\n\r\n")
    bad = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ") and not line.endswith(b"}")]
    assert len(bad) == 1
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(bad[0])
    assert tokens_sent(truth(client)) == [1, 1, 0, 1, 1, 1, 1]


def test_stop_early_is_a_proper_end_with_fewer_tokens(client: HTTPConnection) -> None:
    body = call(client, "POST", "/generate_stream", demand(6, details=True), fault="stop_early", fault_after=2)[1]
    first, last = events(body)
    assert first["generated_text"] is None
    assert last["generated_text"] == first["token"]["text"] + last["token"]["text"]
    assert (last["details"]["finish_reason"], last["details"]["generated_tokens"]) == ("eos_token", 2)


def test_empty_is_a_clean_end_without_an_event(port: int, client: HTTPConnection) -> None:
    reads, ending = raw(port, 6, fault="empty")
    assert (body_of(reads), ending) == (b"0\r\n\r\n", "closed")
    assert truth(client)["sends"] == []


def test_close_before_headers_sends_not_one_byte(port: int, client: HTTPConnection) -> None:
    assert raw(port, 6, fault="close_before_headers") == ([], "closed")
    assert truth(client)["headers_ns"] is None


@pytest.mark.parametrize(
    ("fault", "status", "error_type"), [("http_500", 500, "incomplete_generation"), ("overloaded", 429, "overloaded")]
)
def test_errors_before_the_stream_have_a_status_and_tgis_body(
    client: HTTPConnection, fault: str, status: int, error_type: str
) -> None:
    seen, body = call(client, "POST", "/generate_stream", demand(6), fault=fault)
    error = json.loads(body)
    assert (seen, list(error), error["error_type"]) == (status, ["error", "error_type"], error_type)
    assert truth(client)["sends"] == []


def test_coalesce_sends_every_event_at_once_when_the_last_is_due(port: int, client: HTTPConnection) -> None:
    reads, ending = raw(port, 6, fault="coalesce", first_s=0.02, gap_s=0.02)
    body = body_of(reads)
    assert (token_indices(body), ending) == ([1, 2, 3, 4, 5, 6], "closed")
    assert body.endswith(b"0\r\n\r\n")
    record = truth(client)
    ((stamp, tokens),) = record["sends"]
    assert tokens == 6
    assert stamp - record["received_ns"] >= 0.12e9 - 1000
    assert min(arrival for arrival, data in reads if b"data:" in data) >= stamp


def test_split_cuts_every_event_inside_a_character(port: int, client: HTTPConnection) -> None:
    reads, ending = raw(port, 6, fault="split", gap_s=0.04)
    body = body_of(reads)
    assert (token_indices(body), ending) == ([1, 2, 3, 4, 5, 6], "closed")
    assert tokens_sent(truth(client)) == [0, 1] * 6
    assert any(data.endswith("é".encode()[:1]) for _, data in reads)  # some read ends there, all do on a calm machine


def test_role_first_sends_an_event_without_a_token_before_the_first(port: int, client: HTTPConnection) -> None:
    seen = events(call(client, "POST", "/generate_stream", demand(3), fault="role_first", first_s=0.05)[1])
    assert [event["index"] for event in seen] == [0, 1, 2, 3]
    assert [event["token"] is None for event in seen] == [True, False, False, False]
    record = truth(client)
    assert tokens_sent(record) == [0, 1, 1, 1]
    assert record["sends"][1][0] - record["received_ns"] >= 0.05e9 - 1000


def test_an_http_library_calls_a_truncated_body_incomplete(client: HTTPConnection) -> None:
    with pytest.raises(IncompleteRead):
        call(client, "POST", "/generate_stream", demand(6), fault="truncate", fault_after=2)


def test_the_server_goes_on_after_clients_that_leave(port: int, client: HTTPConnection) -> None:
    for _ in range(3):
        assert raw(port, 50, 0.05, first_s=0.01, gap_s=0.1)[1] == "silent"
    assert len(events(call(client, "POST", "/generate_stream", demand(3))[1])) == 3


@pytest.mark.parametrize("way", ["SIGTERM", "stdin"])
def test_it_stops_on_sigterm_and_when_stdin_closes(way: str) -> None:
    process, port = start()
    with process, socket.create_connection(("127.0.0.1", port), timeout=20):
        if way == "SIGTERM":
            process.terminate()
        else:
            assert process.stdin is not None
            process.stdin.close()
        assert process.wait(20) == (-signal.SIGTERM if way == "SIGTERM" else 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=20)


def test_a_bad_default_schedule_is_refused_at_the_start() -> None:
    done = subprocess.run(
        [sys.executable, SERVER, "--schedule", '{"fault": "unheard_of"}'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no fault 'unheard_of'" in done.stderr
