"""`tokenclock probe` as a user runs it: what is found of each fault, every exit code, and no key in what it prints.

Method: real processes against the schedule server with its faults, servers that send a script of bytes, a relay that
speaks TLS and a stand-in for AWS. Findings are compared as whole lists, so one too many fails as well. No durations are
asserted but that there are some.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from loadtest.probe import facts
from loadtest.truth import truth
from tests.e2e.conftest import ROOT, SCHEDULE_SERVER, Forked, tokenclock
from tests.loadtest.sagemaker_fixtures import runtime
from tests.loadtest.test_transports import Certificates, by_address, certificates, relay  # noqa: F401  (fixtures)
from tests.schedule_server import framed

pytestmark = pytest.mark.e2e

LINUX = sys.platform.startswith("linux")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
END = b"0\r\n\r\n"
KEY = "sk-never-shown-0123456789"

Piece = bytes | float  # to send, or seconds to wait


@pytest.fixture(autouse=True)
def _no_key_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def scheduled() -> Iterator[str]:
    """The URL of a schedule server."""
    command = [sys.executable, SCHEDULE_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"


def probe(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the object of --json."""
    done = tokenclock("probe", "--json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def found(said: dict[str, Any]) -> list[str]:
    """The codes of the findings. Off Linux no kernel stamps an arrival, which is said of every stream."""
    return [finding["code"] for finding in said["findings"] if LINUX or finding["code"] != "user_clock"]


def schedule(**fields: Any) -> list[str]:
    return ["--header", f"x-schedule: {json.dumps({'jitter': 0, 'gap_s': 0.03, **fields})}"]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "findings"),
    [
        (None, 0, []),
        ("coalesce", 0, ["buffered"]),
        ("role_first", 0, ["empty_first_event"]),
        ("stop_early", 1, ["stopped_early"]),
        ("truncate", 1, ["truncated"]),
        ("truncate_clean", 1, ["truncated"]),
        ("stall", 1, ["timeout"]),
        ("reset", 1, ["connection"]),
        ("error_event", 1, ["error_in_stream"]),
        ("garble", 1, ["error_in_stream"]),
        ("garble_http", 1, ["error_in_stream"]),
        ("http_500", 1, ["http_error"]),
        ("overloaded", 1, ["overloaded"]),
        ("close_before_headers", 1, ["connection"]),
    ],
)
def test_each_fault_is_found_and_fails_the_exit_code_where_the_reply_is_not_complete(
    scheduled: str, fault: str | None, code: int, findings: list[str]
):
    returned, said = probe(scheduled, "--new-tokens", "12", "--idle-timeout", "0.4", *schedule(fault=fault))
    assert (returned, found(said)) == (code, findings)
    (one,) = said["requests"]
    assert (one["verdict"] == "complete") == (code == 0)
    assert one["connection"] == "fresh"
    assert all(one["phases"][name] > 0 for name in ("name_s", "tcp_s", "send_s"))
    if fault is None:
        assert one["got"] == {"input_tokens": 64, "new_tokens": 12, "counted_by": "server"}
        assert [event["tokens"] for event in one["events"]] == [1] * 12
        after = [one["phases"][name] for name in one["phases"] if name not in facts.BEFORE_THE_CLOCK]
        assert sum(after) >= one["latency_s"] - 1e-9  # sums of floats
        assert one["latency_s"] >= one["ttft_s"] == one["events"][0]["at_s"] > 0
        assert one["clock"] == ("kernel" if LINUX else "user")


@contextmanager
def openai(answer: Callable[[dict[str, Any], Any], list[Piece]], models: int = 200) -> Iterator[str]:
    """An OpenAI endpoint: `answer` gets a request's body and headers, and says what goes back; then it closes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def json(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self.json(404, {})
            elif models == 200:
                self.json(200, {"data": [{"id": "m"}]})
            else:
                self.json(models, {"error": {"message": f"refused: {self.headers['authorization']}"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for piece in answer(body, self.headers):
                if isinstance(piece, bytes):
                    self.wfile.write(piece)
                else:
                    time.sleep(piece)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions"
        server.shutdown()


def event(value: Any) -> bytes:
    return framed(b"data: %b\n\n" % (value if isinstance(value, bytes) else json.dumps(value).encode()))


def token(text: str = " x", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def usage(prompt: int, new: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": new}})


DONE = event(b"[DONE]")
ROLE = event({"choices": [{"delta": {"role": "assistant"}}]})
TOKENS: list[Piece] = [token(), 0.03, token(), 0.03, token(), 0.03, token(" x", "length"), 0.01]
BURSTS: list[Piece] = [piece for _ in range(5) for piece in (0.15, token(), 0.002, token(), 0.002, token())]

SCRIPTS: dict[str, tuple[list[Piece], int, list[str]]] = {  # what is sent, new tokens asked for, what is found
    "well": ([HEAD, b"\r\n", *TOKENS, usage(1, 4) + DONE + END], 4, []),
    "no usage": ([HEAD, b"\r\n", *TOKENS, DONE + END], 4, ["no_usage"]),
    "no done": ([HEAD, b"\r\n", *TOKENS, usage(1, 4) + END], 4, ["no_done"]),
    "more tokens than events": (
        [HEAD, b"\r\n", *TOKENS, usage(1, 9) + DONE + END],
        9,
        ["chunk_is_not_token"],
    ),
    "fewer tokens than asked": (
        [HEAD, b"\r\n", token(), 0.03, token(" x", "stop") + usage(1, 2) + DONE + END],
        8,
        ["fewer_tokens"],
    ),
    "more tokens than asked": ([HEAD, b"\r\n", *TOKENS, usage(1, 4) + DONE + END], 3, ["more_tokens"]),
    "bursts": (
        [HEAD, b"\r\n", *BURSTS, 0.15, token(" x", "length") + usage(1, 16) + DONE + END],
        16,
        ["coalesced"],
    ),
    "closing": ([HEAD, b"connection: close\r\n\r\n", *TOKENS, usage(1, 4) + DONE + END], 4, ["closes"]),
    "role first": (
        [HEAD, b"\r\n", ROLE, 0.05, *TOKENS, usage(1, 4) + DONE + END],
        4,
        ["empty_first_event"],
    ),
    "compressed": ([HEAD, b"content-encoding: gzip\r\n\r\n", framed(b"\x1f\x8b\x08"), END], 4, ["compressed"]),
    "redirect": (
        [b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"],
        4,
        ["redirect"],
    ),
    "401": ([b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}"], 4, ["http_error"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_thing_that_looks_wrong_is_found_and_no_other(name: str):
    pieces, new_tokens, findings = SCRIPTS[name]
    with openai(lambda body, headers: pieces) as url:
        code, said = probe(url, "--prompt", "hi", "--new-tokens", str(new_tokens))
    assert found(said) == findings
    assert code == (1 if name in ("compressed", "redirect", "401") else 0)
    assert said["asked"] == {"input_tokens": None, "new_tokens": new_tokens}


def test_a_reply_that_was_asked_for_whole_is_one_event_and_nothing_is_wrong_with_that():
    choice = {"index": 0, "message": {"role": "assistant", "content": " x x"}, "finish_reason": "length"}
    said = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 4}}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said)
    with openai(lambda body, headers: [head, 0.02, said]) as url:
        code, whole = probe(url, "--prompt", "hi", "--new-tokens", "4", "--no-stream")
    (one,) = whole["requests"]
    assert (code, found(whole)) == (0, []), whole
    assert (one["streamed"], one["ttft_s"], one["text"]) == (False, None, " x x")
    assert [event["tokens"] for event in one["events"]] == [4]
    assert one["phases"]["tokens_s"] > 0


def test_a_body_that_breaks_off_behind_the_last_token_is_found(scheduled: str):
    last = {
        "token": {"id": 1, "text": " x"},
        "generated_text": " x",
        "details": {"generated_tokens": 1, "input_length": 1},
    }

    class Server(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"model_id": "m", "max_total_tokens": 100}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.wfile.write(HEAD + b"\r\n" + event(last))
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code, said = probe(f"http://127.0.0.1:{server.server_address[1]}", "--prompt", "hi", "--new-tokens", "1")
        server.shutdown()
    assert (code, found(said)) == (0, ["unclean_end"])


def test_a_prompt_of_another_length_than_asked_is_found_with_both_numbers():
    def answer(body: dict[str, Any], headers: Any) -> list[Piece]:
        words = len(body["messages"][0]["content"].split()) if "messages" in body else 0
        length = words + (body.get("max_tokens") == 4)  # it counts one more when it matters
        last = [token(" x", "length"), usage(length, body.get("max_tokens", 1)) + DONE + END]
        return [HEAD, b"\r\n", *([token(), 0.01] * (body.get("max_tokens", 1) - 1)), *last]

    with openai(answer) as url:
        code, said = probe(url, "--input-tokens", "20", "--new-tokens", "4")
    assert (code, found(said)) == (0, ["prompt_length"])
    assert "has 21 tokens by the server's count, 20 were asked for" in said["findings"][0]["sentence"]


def test_a_server_that_takes_no_other_request_ids_than_uuids_is_probed_like_any():
    """llama-cpp-python's, which answers 400 without a word to others."""

    def answer(body: dict[str, Any], headers: Any) -> list[Piece]:
        try:
            uuid.UUID(headers["x-request-id"])
        except ValueError:
            return [b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"]
        return [HEAD, b"\r\n", *TOKENS, usage(1, 4) + DONE + END]

    with openai(answer) as url:
        code, said = probe(url, "--prompt", "hi", "--new-tokens", "4")
    assert (code, [one["verdict"] for one in said["requests"]]) == (0, ["complete"])


def test_an_endpoint_that_refuses_to_count_prompts_is_asked_all_the_same():
    refusal = b'HTTP/1.1 500 Internal Server Error\r\ncontent-length: 19\r\n\r\n{"error": "no luck"}'
    with openai(lambda body, headers: [refusal]) as url:
        code, said = probe(url)
    assert (code, found(said)) == (1, ["http_error"])
    assert "no luck" in said["findings"][0]["sentence"]
    assert any("no prompt could be counted" in note and "no luck" in note for note in said["notes"])


# --- what it can't ask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["http://127.0.0.1:1"], "Connection refused"),
        (["ftp://127.0.0.1:1"], "only http:// and https://"),
        (["http://127.0.0.1:1", "--prompt", "x", "--input-tokens", "3"], "leave --input-tokens out"),
        (["http://127.0.0.1:1", "--prompt", "x", "--tokenizer", "t.json"], "leave --tokenizer out"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence_and_exit_code_2(forked: Forked, arguments: list[str], reason: str):
    done = forked("probe", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("transport", ["gevent", "huggingface_hub"])  # on our loop, and blocking
def test_ctrl_c_shows_what_was_seen_until_then(scheduled: str, transport: str):
    httpx.delete(f"{scheduled}/truth")
    options = ["-n", "3", "--transport", transport, *schedule(fault="stall")]
    command = [sys.executable, "-m", "loadtest", "probe", scheduled, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        deadline = time.monotonic() + 30
        while not streams(scheduled):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert "verdict      cancelled, HTTP 200" in out
    assert "3 new, counted by the events" in out
    assert "\ngiven up" in out


def streams(url: str) -> list[dict[str, Any]]:
    """What the schedule server has recorded of requests whose stream stalls, and has begun."""
    records = httpx.get(f"{url}/truth").json()
    return [record for record in records if record["fault"] == "stall" and len(record["sends"]) == 3]


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    head = HEAD + b"server: caf\xe9\r\n\r\n"
    with openai(lambda body, headers: [head, *TOKENS, usage(1, 4) + DONE + END]) as url:
        done = tokenclock("probe", url, "--prompt", "hi", "--new-tokens", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "server: caf\\xe9" in done.stdout


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--json", "text"])
def test_a_key_is_never_shown_although_the_server_repeats_it(monkeypatch: pytest.MonkeyPatch, form: str):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    got: list[str] = []

    def refused(body: dict[str, Any], headers: Any) -> list[Piece]:
        got.append(headers["authorization"])
        said = json.dumps({"error": {"message": f"no such key: {headers['authorization']}"}}).encode()
        return [b"HTTP/1.1 403 Forbidden\r\nvia: %b\r\ncontent-length: %d\r\n\r\n%b" % (KEY.encode(), len(said), said)]

    def repeated(body: dict[str, Any], headers: Any) -> list[Piece]:
        got.append(headers["authorization"])
        header = b"server: %b\r\nset-cookie: %b\r\n\r\n" % (KEY.encode(), KEY.encode())
        return [HEAD, header, token(f" {KEY}"), token(KEY, "length"), usage(1, 2) + DONE + END]

    options = ["--json"] if form == "--json" else []
    for answer, models, code in ((refused, 200, 1), (repeated, 200, 0), (refused, 401, 2)):
        with openai(answer, models) as url:
            done = tokenclock("probe", url, "--prompt", "hi", "--new-tokens", "2", *options)
        assert done.returncode == code, done.stderr
        assert KEY not in done.stdout + done.stderr
        assert "[hidden]" in done.stdout + done.stderr
    assert set(got) == {f"Bearer {KEY}"}


# --- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["gevent", "httpx", "huggingface_hub"])
def test_one_connection_carries_all_requests_and_the_first_pays_for_it(scheduled: str, transport: str):
    code, said = probe(scheduled, "-n", "3", "--new-tokens", "4", "--transport", transport, *schedule())
    assert code == 0
    assert said["transport"] == transport
    ours = transport != "huggingface_hub"
    expected = ["fresh", "reused", "reused"] if ours else ["unseen"] * 3
    assert [one["connection"] for one in said["requests"]] == expected
    assert [one["phases"]["tcp_s"] is not None for one in said["requests"]] == [ours, False, False]
    assert found(said) == ([] if ours else (["user_clock"] if LINUX else []))
    assert said["medians"]["ttft_s"] == sorted(one["ttft_s"] for one in said["requests"])[1]


def test_tls_is_a_phase_of_its_own_and_verified(
    scheduled: str,
    certificates: Certificates,  # noqa: F811
    by_address: Any,  # noqa: F811
):
    with relay(int(scheduled.rpartition(":")[2]), by_address) as way:
        url = way.target.origin
        _, trusted = probe(url, "--cacert", str(certificates.authority), "-n", "2", *schedule())
        _, tunnelled = probe(url, "--cacert", str(certificates.authority), "--transport", "httpx")
        _, insecure = probe(url, "-k", *schedule())
        refused = tokenclock("probe", url)
    first, second = trusted["requests"]
    for one in (first, tunnelled["requests"][0]):
        assert one["phases"]["tls_s"] > 0
        assert one["tls"].startswith("TLSv1.")
    assert second["phases"]["tls_s"] is None
    assert (found(trusted), found(insecure)) == ([], ["unverified_tls"])
    assert refused.returncode == 2
    assert "--cacert" in refused.stderr


@pytest.mark.parametrize("transport", ["gevent", "boto3"])
def test_a_sagemaker_endpoint_is_probed_like_any(monkeypatch: pytest.MonkeyPatch, transport: str):
    with truth(first=0.02, gap=0.005) as container, runtime(container.url) as aws:
        for name, value in aws.environ().items():
            monkeypatch.setenv(name, value)
        code, said = probe("sagemaker://good", "--transport", transport, "--new-tokens", "6")
        wrong, refused = probe("sagemaker://no-such-endpoint", "--transport", transport, "--prompt", "hi")
    (one,) = said["requests"]
    assert code == 0, said
    assert one["got"] == {"input_tokens": 64, "new_tokens": 6, "counted_by": "server"}
    assert one["connection"] == ("fresh" if transport == "gevent" else "unseen")
    assert (wrong, refused["requests"][0]["verdict"]) == (1, "http_error")


# --- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_waterfall_is_readable_at_80_columns_in_whatever_the_terminal_shows(
    scheduled: str, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "probe", scheduled, "-n", "2", "--new-tokens", "12", *schedule()],
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=60,
        env=os.environ,
    )
    text = done.stdout.decode(encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert ("█" in text, "#" in text) == (encoding == "utf-8", encoding == "ascii")
    rows = re.findall(r"^(\w[\w ()]*?) {2,}\d+\.\d+ ms +-?\d+\.\d+ ms  ", text.split("ends at")[1], re.M)
    after = ["send", "headers", "first event", "first token", "last token", "end"]
    assert rows in (["name (DNS)", "connect", *after], after)  # of the median request, whichever it was
    assert "64 in the prompt, 12 new, counted by the server" in text
    if LINUX:
        assert text.endswith("\n\nNothing looks wrong.\n")
