"""The port is bound first, /health tells the truth, SIGTERM loses nobody, and a bad start is one sentence.

Method: real processes, real signals, real sockets for the process; an app in a thread for what a process can't show.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api import replies
from server.backends.base import Sampling, Step
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.processes import COMMAND, eventually, process, wait_until_ready
from tests.server.scripted import ScriptedBackend


@contextmanager
def long_stream(client: httpx.Client) -> Iterator[Iterator[str]]:
    """The lines of a stream of 2,000 tokens, of which the first has arrived."""
    body = {"inputs": "a", "parameters": {"max_new_tokens": 2000, "ignore_eos": True}}
    with client.stream("POST", "/generate_stream", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        yield lines


@pytest.mark.e2e
def test_health_is_503_from_the_first_moment_until_the_model_is_loaded(demo_folder: Path):
    with process("--model", str(demo_folder)) as (running, url), httpx.Client(base_url=url, timeout=10) as client:
        reply = client.get("/health")
        assert (reply.status_code, reply.json()["error"]) == (503, "loading")
        refused = client.post("/generate", json={"inputs": "a"})
        assert (refused.status_code, refused.json()["error"]) == (503, "loading")
        assert client.get("/info").json()["phase"] == "loading"
        assert wait_until_ready(client) == {503, 200}
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0


@pytest.mark.e2e
def test_sigterm_new_requests_get_503_running_ones_finish_within_the_grace_time_then_exit_0(demo_folder: Path):
    with (
        process("--model", str(demo_folder), "--slots", "2", "--threads", "1") as (running, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        wait_until_ready(client)
        body = {"inputs": "a", "parameters": {"max_new_tokens": 600, "ignore_eos": True, "details": True}}
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/generate", json=body, timeout=60)))
            for _ in range(3)  # two run, one waits for a slot
        ]
        for thread in threads:
            thread.start()
        while not {"tgi_batch_current_size 2.0", "tgi_queue_size 1.0"} <= {*client.get("/metrics").text.splitlines()}:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        while (
            late := client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}})
        ).status_code != 503:
            pass  # the signal is on its way
        assert late.json() == {"error": "shutting down", "error_type": "healthcheck"}
        assert client.get("/health").status_code == 503
        for thread in threads:
            thread.join()
        assert running.wait(timeout=20) == 0
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["details"]["generated_tokens"] for answer in answers] == [600, 600, 600]


@pytest.mark.e2e
def test_requests_longer_than_the_grace_time_end_with_an_error_event(demo_folder: Path):
    with (
        process("--model", str(demo_folder), "--grace-s", "0.3") as (running, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        wait_until_ready(client)
        with long_stream(client) as lines:
            running.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data:")]
        assert 0 < len(rest) < 1999
        assert rest[-1] == 'data: {"error":"the server was stopped","error_type":"healthcheck"}'
        assert running.wait(timeout=20) == 0


@pytest.mark.e2e
def test_sigterm_while_the_model_loads_ends_it_at_once(demo_folder: Path):
    with process("--model", str(demo_folder)) as (running, url):
        assert httpx.get(f"{url}/health").status_code == 503
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=10) == 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--model", "/no/such/folder"],
            "there is no model folder /no/such/folder: name an existing folder, or a hub id",
        ),
        (["--model", "."], ". is a folder without config.json"),
        (["--slots", "0"], "--slots 0: Input should be greater than or equal to 1"),
        (["--slots", "many"], "--slots many: Input should be a valid integer"),
        (["--backend", "tpu"], "--backend tpu: Input should be 'cpu'"),
        (
            ["--max-total-tokens", "100000"],
            "attends over at most 4096 positions; --max-total-tokens 100000 passes them",
        ),
        (["--max-concurrent-requests", "2", "--slots", "4"], "max_concurrent_requests 2 is below slots 4"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_bad_start_is_one_sentence_and_exit_code_2(demo_folder: Path, options: list[str], sentence: str):
    if "--model" not in options:
        options = ["--model", str(demo_folder), *options]
    ended = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.e2e
def test_a_taken_port_is_one_sentence_and_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"cannot bind 127.0.0.1:{port}: Address already in use; choose another --host or --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def scripted(tokenizer_folder: Path, backend: ScriptedBackend) -> Any:
    return lambda settings: (backend, Tokenizer.load(str(tokenizer_folder)))


def test_a_backend_that_cannot_go_on_ends_its_requests_with_424_and_health_with_503_for_good(
    serve: Any, splitting_folder: Path
):
    backend = ScriptedBackend(fail_after=5)
    settings = Settings(slots=4, max_total_tokens=100)
    with serve(settings, scripted(splitting_folder, backend)) as client:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
        for _ in range(3):  # then its self-check fails, too
            assert client.get("/health").status_code == 200
            reply = client.post("/generate", json=body)
            assert (reply.status_code, reply.json()["error_type"]) == (424, "generation")
            assert "the device is gone" in reply.json()["error"]
        while client.get("/health").status_code == 200:
            pass  # the self-check runs
        for _ in range(3):
            for reply in (client.get("/health"), client.post("/generate", json=body)):
                assert reply.status_code == 503
                assert reply.json()["error"].startswith("unhealthy: the backend cannot go on: 3 decode calls in a row")


def test_a_backend_that_breaks_mid_stream_ends_the_stream_with_an_error_event(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend(fail_after=2))) as client:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
        events = client.post("/generate_stream", json=body).text.strip().split("\n\n")
    assert len(events) == 4, "three tokens, then the error"
    assert '"error_type":"generation"' in events[-1]


def test_a_parameter_the_backend_lacks_is_refused_by_name(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend())) as client:
        reply = client.post("/generate", json={"inputs": "a", "parameters": {"repetition_penalty": 1.2}})
    assert reply.status_code == 422
    assert "`repetition_penalty` is not supported by this backend" in reply.json()["error"]


def test_a_client_that_leaves_frees_its_slot_for_the_next(serve: Any, demo_folder: Path):
    with serve(Settings(model=str(demo_folder), slots=1, max_total_tokens=4096, threads=1)) as client:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 4000, "ignore_eos": True}}
        with client.stream("POST", "/generate_stream", json=body) as reply:
            next(reply.iter_lines())
        answer = client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
        assert answer.status_code == 200
        assert 'tgi_request_failure{err="dropped"} 1.0' in client.get("/metrics").text


def test_more_requests_than_the_server_takes_get_429_and_the_others_finish(serve: Any, demo_folder: Path):
    settings = Settings(model=str(demo_folder), slots=1, max_total_tokens=1000, max_concurrent_requests=2, threads=1)
    with serve(settings) as client:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 400, "ignore_eos": True}}
        replies: list[httpx.Response] = []
        url = str(client.base_url)
        threads = [
            threading.Thread(target=lambda: replies.append(httpx.post(f"{url}/generate", json=body, timeout=60)))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(reply.status_code for reply in replies)
        assert statuses.count(200) >= 2
        assert statuses.count(200) + statuses.count(429) == 5
        assert statuses.count(429) >= 1
        assert all(r.json()["error_type"] == "overloaded" for r in replies if r.status_code == 429)


def test_a_client_that_hangs_up_on_a_plain_request_frees_its_slot_too(serve: Any, demo_folder: Path):
    with serve(Settings(model=str(demo_folder), slots=1, max_total_tokens=4096, threads=1)) as client:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 4000, "ignore_eos": True}}
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                client.post("/generate", json=body, timeout=0.3)
        answer = client.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 2}})
        assert answer.status_code == 200
        assert 'tgi_request_failure{err="dropped"} 3.0' in client.get("/metrics").text


STUCK = """
import sys, time
sys.path.insert(0, {root!r})
from server.app import create_app
from server.lifecycle import run
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.scripted import ScriptedBackend
import logging
class Stuck(ScriptedBackend):
    def prefill(self, *arguments):
        print("stuck", flush=True)
        time.sleep(60)
logging.basicConfig(level=logging.INFO)
settings = Settings(port=0, grace_s=0.3)
run(create_app(settings, lambda _: (Stuck(), Tokenizer.load({folder!r}))), settings)
"""


@pytest.mark.e2e
def test_a_step_that_does_not_end_is_left_behind_and_its_clients_are_told(splitting_folder: Path):
    program = STUCK.format(root=str(Path(__file__).parents[2]), folder=str(splitting_folder))
    with (
        process(command=[sys.executable, "-c", program]) as (running, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert running.stdout is not None
        wait_until_ready(client)
        with client.stream("POST", "/generate_stream", json={"inputs": "a", "parameters": {}}) as reply:
            assert running.stdout.readline() == "stuck\n"
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            assert "the server was stopped" in reply.read().decode()
        assert running.wait(timeout=30) == 0
        assert time.monotonic() - began < 30, "what SageMaker allows"


LONG = {"inputs": "hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}


@contextmanager
def hanging(serve: Any, folder: Path, step_timeout_s: float) -> Iterator[tuple[httpx.Client, threading.Event]]:
    """A server whose decode steps don't come back until the event is set, or the test is over."""
    leave = threading.Event()

    def before(verb: str) -> None:
        if verb == "decode":
            leave.wait(60)

    backend = scripted(folder, ScriptedBackend(before=before))
    with serve(Settings(step_timeout_s=step_timeout_s), backend) as client:
        try:
            yield client, leave
        finally:
            leave.set()


def test_a_call_that_does_not_come_back_is_a_lost_backend(serve: Any, splitting_folder: Path):
    with hanging(serve, splitting_folder, step_timeout_s=0.2) as (client, leave):
        reply = client.post("/generate", json=LONG)
        assert (reply.status_code, reply.json()["error_type"]) == (424, "generation")
        for reply in (client.get("/health"), client.post("/generate", json=LONG)):
            assert reply.status_code == 503
            assert "a call of it takes longer than 0.2 s" in reply.json()["error"]
        told = re.findall(
            r"^(?:tgi_request_(?:count|failure)|tokenclock_aborted).* [1-9].*$", scraped(client), re.MULTILINE
        )
        assert told == [
            "tgi_request_count 2.0",
            'tgi_request_failure{err="generation"} 1.0',
            'tgi_request_failure{err="healthcheck"} 1.0',
            'tokenclock_aborted_requests_total{cause="generation"} 1.0',
        ]
        leave.set()
        assert client.get("/health").status_code == 503
        eventually(lambda: "tokenclock_slots_in_use 0.0" in scraped(client))
        assert all(line in scraped(client) for line in told), "when the engine hears of it, it is counted already"


def test_a_text_whose_client_left_while_a_call_hung_is_counted(serve: Any, splitting_folder: Path):
    with hanging(serve, splitting_folder, step_timeout_s=1) as (client, _):
        with client.stream("POST", "/generate_stream", json=LONG) as reply:
            next(reply.iter_lines())
        eventually(lambda: client.get("/health").status_code == 503)
        failed = re.findall(r'^tgi_request_failure\{err="(.*)"\} 1.0$', scraped(client), re.MULTILINE)
        assert failed in (["dropped"], ["generation"]), "by who was first to know; never none, never both"


def scraped(client: httpx.Client) -> str:
    return client.get("/metrics").text


class SlowBackend(ScriptedBackend):
    """Takes its time over every prompt."""

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        time.sleep(0.7)
        return super().prefill(slot, token_ids, sampling)


@pytest.mark.parametrize("route", ["/generate_stream", "/v1/completions"])
def test_a_silent_stream_is_kept_alive_with_comments(
    serve: Any, splitting_folder: Path, monkeypatch: pytest.MonkeyPatch, route: str
):
    monkeypatch.setattr(replies, "SILENCE_S", 0.2)
    with serve(Settings(), scripted(splitting_folder, SlowBackend())) as client:
        body: dict[str, Any] = {"inputs": "hello", "parameters": {"max_new_tokens": 3, "ignore_eos": True}}
        if route.startswith("/v1"):
            body = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True, "temperature": 0, "stream": True}
        stream = client.post(route, json=body).text
    blocks = stream.removesuffix("\n\n").split("\n\n")
    assert blocks[:2] == [":", ":"]
    assert all(block.startswith("data: ") for block in blocks if block != ":")
    assert blocks.index(":") == 0, "the stream begins before its first token"
    assert blocks.count(":") <= 4


def test_a_stream_that_speaks_needs_no_comments(serve: Any, splitting_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies, "SILENCE_S", 0.4)

    class Steady(ScriptedBackend):
        def decode(self) -> Mapping[int, Step]:
            time.sleep(0.05)
            return super().decode()

    with serve(Settings(), scripted(splitting_folder, Steady())) as client:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}
        stream = client.post("/generate_stream", json=body).text
    assert stream.count("data: ") == 20, "a second of tokens"
    assert ":\n\n" not in stream


def test_a_backend_that_fails_leaves_counters_that_add_up(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend(fail_after=2))) as client:
        client.post("/generate", json={"inputs": "hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}})
        metrics = client.get("/metrics").text
    assert "tgi_request_count 1.0" in metrics
    assert 'tgi_request_failure{err="generation"} 1.0' in metrics
    assert "tgi_queue_size 0.0" in metrics


@pytest.mark.e2e
def test_a_second_signal_cuts_running_requests_with_an_error_and_still_ends_in_order(demo_folder: Path):
    with (
        process("--model", str(demo_folder), "--threads", "1") as (running, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        wait_until_ready(client)
        with long_stream(client) as lines:
            running.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two signals at the same instant are one to the kernel
            running.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data:")]
        assert "the server was stopped" in rest[-1]
        assert running.wait(timeout=10) == 0


@pytest.mark.e2e
@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_model_file_is_one_sentence_and_exit_code_2(demo_folder: Path, tmp_path: Path, broken: str):
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    ended = subprocess.run([*COMMAND, "--model", str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"tokenclock-server: {folder}" in ended.stderr
