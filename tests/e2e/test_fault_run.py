"""Two thousand requests, of which a third misbehave, over a backend that fails: nothing is lost, nothing is left.

Method: a real server process with the demonstration model, whose backend raises at one of so many calls and leaves NaN
in its cache; a seeded crowd of clients. Right texts come from transformers' `generate`, one prompt at a time. What the
process holds is told by itself and by the kernel.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fault_run import PATIENT, Crowd, Texts, series
from tests.server.processes import process, wait_until_ready

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.fault_server")
REQUESTS, CONCURRENCY, TOKENS = 2_000, 32, 12
LIMIT = 20_000  # bytes of a body
PROMPTS = ["The clock", "A", "One two three four five six seven", "Time and again, and again", "tick tock " * 12]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from server.demo import write_model

    folder = tmp_path_factory.mktemp("demo")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def texts(demo_folder: Path) -> Texts:
    """The greedy texts that transformers' own loop gives; end-of-sequence tokens are never chosen."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)

    def greedy(text: str, special: bool) -> list[str]:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=special)["input_ids"]
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        return [tokenizer.decode(new[: count + 1], skip_special_tokens=True) for count in range(TOKENS)]

    def templated(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return Texts(
        {prompt: greedy(prompt, True) for prompt in PROMPTS},
        {prompt: greedy(templated(prompt), False) for prompt in PROMPTS},
    )


def eventually(look: Callable[[], Any], expected: Any) -> None:
    deadline = time.monotonic() + 20
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"{seen} instead of {expected}"
        time.sleep(0.05)


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@pytest.mark.timeout(180)
def test_two_thousand_requests_with_every_fault_leave_nothing_behind(demo_folder: Path, texts: Texts):
    log: list[str] = []
    options = ["--fail-every", "150", "--model", str(demo_folder), "--threads", "1", "--slots", "4", "--port", "0"]
    options += ["--max-total-tokens", "256", "--max-concurrent-requests", "28", "--payload-limit", str(LIMIT)]
    with (
        process(*options, command=COMMAND, log=log) as (running, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        wait_until_ready(client)
        watched = psutil.Process(running.pid)
        long = {"inputs": "tick " * 3000, "parameters": {}}
        assert client.post("/generate", json=long).status_code == 422  # from here on the tokenizer has its thread
        before, descriptors = client.get("/held").json(), watched.num_fds()

        crowd = Crowd(port_of(url), texts, TOKENS, LIMIT, seed=7)
        asyncio.run(crowd.come(REQUESTS, CONCURRENCY))
        tally = crowd.tally
        with socket.create_connection(("127.0.0.1", port_of(url))) as stranger:
            stranger.sendall(b"\x16\x03\x01\x02\x00\x01" + b"\x00" * 200)  # TLS, where there is none
            assert stranger.recv(4096).startswith(b"HTTP/1.1 400 ")

        def idle() -> list[float]:
            metrics = client.get("/metrics").text
            return [series(metrics, name)[""] for name in ("tgi_batch_current_size", "tgi_queue_size")]

        eventually(idle, [0, 0])
        # Every request was counted once, and has one outcome.
        metrics = client.get("/metrics").text
        failures = series(metrics, "tgi_request_failure")
        succeeded = series(metrics, "tgi_request_success")[""]
        asked = REQUESTS + 1  # the long one
        assert sum(tally.ends.values()) == REQUESTS
        assert series(metrics, "tgi_request_count")[""] == asked
        assert succeeded + sum(failures.values()) == asked
        of = {labels.split('"')[1]: count for labels, count in failures.items()}
        print(f"clients saw {tally.ends}; the server counted {succeeded:g} successes and {of}")
        assert of["validation"] == tally.total("400", "413", "422") + 1
        assert of["overloaded"] >= tally.total("429") > 0
        assert of["generation"] >= tally.total("424", "error event") > 20, "the backend failed in earnest"
        assert of["dropped"] > 50
        assert tally.total("complete") <= succeeded
        # Nothing else happened, and who was served was served right.
        ends = {end for kind, end in tally.ends if kind in PATIENT}
        assert ends <= {"complete", "424", "429", "error event"}
        assert tally.total("complete") > 700
        assert tally.wrong == []
        # Every slot is free: four requests run together, and right.
        again = Crowd(port_of(url), texts, TOKENS, LIMIT, seed=8)
        asyncio.run(again.come(40, 4, dict.fromkeys(PATIENT, 1)))
        assert again.tally.wrong == []
        assert set(again.tally.ends) <= {(kind, end) for kind in PATIENT for end in ("complete", "424", "error event")}
        # No task, no thread, no descriptor is left.
        eventually(lambda: client.get("/held").json()["tasks"], before["tasks"])
        assert client.get("/held").json()["threads"] == before["threads"]
        eventually(watched.num_fds, descriptors)
        assert client.get("/health").status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 0
    assert sum('"event":"request"' in line and '"POST"' in line for line in log) == asked + 40, "one line each"
    assert not any("Exception in ASGI" in line or "never retrieved" in line for line in log)


@pytest.mark.timeout(120)
def test_a_server_that_was_killed_starts_again_on_its_port(demo_folder: Path, texts: Texts):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--model", str(demo_folder), "--threads", "1", "--port", str(port)]
    body = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 1500, "ignore_eos": True}}
    for life in range(2):
        with process(*options, command=COMMAND) as (running, url), httpx.Client(base_url=url, timeout=60) as client:
            wait_until_ready(client)
            crowd = Crowd(port, texts, TOKENS, LIMIT, seed=life)
            asyncio.run(crowd.come(12, 4, dict.fromkeys(PATIENT, 1)))
            assert crowd.tally.total("complete") == 12
            assert crowd.tally.wrong == []
            with client.stream("POST", "/generate_stream", json=body) as reply:
                lines = reply.iter_lines()
                next(lines)
                if life == 0:
                    running.kill()  # while it streams, its connections open
                    with pytest.raises(httpx.RemoteProtocolError):
                        list(lines)
                    running.wait(timeout=10)
            if life == 1:
                running.send_signal(signal.SIGTERM)
                assert running.wait(timeout=30) == 0


@pytest.mark.timeout(120)
def test_nothing_grows_with_the_number_of_requests(demo_folder: Path):
    # benchmarks/server_soak.py does the same with as many as an hour brings.
    options = ["--scripted", "--model", str(demo_folder), "--slots", "8", "--port", "0", "--payload-limit", str(LIMIT)]
    with (
        process(*options, command=COMMAND) as (running, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        wait_until_ready(client)
        watched = psutil.Process(running.pid)
        seen = []
        tasks = client.get("/held").json()["tasks"]
        for part in range(3):
            crowd = Crowd(port_of(url), Texts({prompt: [""] * TOKENS for prompt in PROMPTS}), TOKENS, LIMIT, seed=part)
            asyncio.run(crowd.come(1_000, CONCURRENCY))
            eventually(lambda: client.get("/held").json()["tasks"], tasks)
            held = client.get("/held").json()
            seen.append((held["blocks"], held["objects"], len(held["threads"]), watched.num_fds()))
    # A request that left one object behind would leave a thousand.
    blocks, objects, threads, descriptors = (after - before for before, after in zip(*seen[1:], strict=True))
    assert blocks < 300
    assert objects < 300
    assert (threads, descriptors) == (0, 0)
