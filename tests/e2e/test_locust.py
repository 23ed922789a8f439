"""Plain `locust` in the repository's root works, and our rows stand beside its own without changing what it counts.

Method: the real locust command, headless and with its web page, against the real server; its own JSON is the witness.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import BIN, ROOT

pytestmark = pytest.mark.e2e

SHORT = ("--input-tokens", "30", "--new-tokens", "20")


def rows(stats: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in stats}


def headless(results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "locust", "--headless", "--results-dir", results, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_headless_locust_shows_ttft_itl_and_e2e_beside_its_own_row(server: str, tmp_path: Path):
    done = headless(tmp_path, "-t", "3s", "-u", "2", "--host", server, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    by_kind = rows(json.loads(done.stdout))
    assert set(by_kind) == {"POST", "TTFT", "ITL", "E2E"}
    requests = by_kind["POST"]["num_requests"]
    assert requests > 5
    assert by_kind["POST"]["num_failures"] == 0
    assert by_kind["TTFT"]["num_requests"] == by_kind["E2E"]["num_requests"] == requests
    assert by_kind["ITL"]["num_requests"] == requests * 19
    assert int(re.findall(r"Aggregated\s+(\d+)\s+\d+\(", done.stderr)[-1]) == requests, (
        "our rows were counted as requests"
    )
    means = {kind: row["total_response_time"] / row["num_requests"] for kind, row in by_kind.items()}
    assert 0 < means["TTFT"] < means["E2E"] <= means["POST"]
    assert means["E2E"] == pytest.approx(means["TTFT"] + 19 * means["ITL"], rel=1e-6)
    (folder,) = tmp_path.iterdir()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == requests
    assert {sample["verdict"] for sample in samples} == {"complete"}
    assert (folder / "report.md").exists()


def test_gaps_are_kept_to_three_digits(server: str, tmp_path: Path):
    done = headless(tmp_path, "-t", "2s", "-u", "1", "--host", server, *SHORT, "--json")
    keys = [float(key) for key in rows(json.loads(done.stdout))["ITL"]["response_times"]]
    assert any(key != round(key) for key in keys), "locust's own buckets would be whole milliseconds"


def test_a_dead_endpoint_is_one_sentence_and_exit_code_2(tmp_path: Path):
    done = headless(tmp_path, "-t", "5s", "-u", "2", "--host", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "http://127.0.0.1:1 does not answer: no connection to 127.0.0.1:1: Connection refused" in done.stderr
    assert "Traceback" not in done.stderr


REFUSED = [  # (options, what is said)
    (["--cacert", "/nonexistent.pem"], "/nonexistent.pem holds no certificates that can be read"),
    (
        ["--transport", "huggingface_hub", "-k"],
        "--cacert and --insecure don't reach huggingface_hub: set SSL_CERT_FILE",
    ),
    (["--transport", "boto3", "-k"], "--cacert and --insecure don't reach boto3: set SSL_CERT_FILE"),
    (["-k"], "--cacert and --insecure are for certificates, and nothing here has one"),
]


def test_a_test_that_ends_before_a_request_did_has_measured_nothing_and_exits_with_2(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never answers
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = headless(tmp_path, "-t", "1s", "-u", "1", "--endpoint-type", "tgi", "--host", host)
    assert done.returncode == 2
    assert "no request ended before the test did: give it a longer -t" in done.stderr


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=["no file", "huggingface_hub", "boto3", "no TLS"])
def test_a_transport_that_cannot_trust_as_it_is_told_is_one_sentence_and_exit_code_2(
    tmp_path: Path, options: list[str], said: str
):
    done = headless(tmp_path, "-t", "20s", "-u", "1", "--host", "http://127.0.0.1:1", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_that_the_protocol_has_no_place_for_is_one_sentence_and_exit_code_2(server: str, tmp_path: Path):
    done = headless(tmp_path, "-t", "20s", "-u", "1", "--host", server, "--model", "gpt")
    assert done.returncode == 2
    assert "TGI's protocol names no model, an endpoint has one: leave --model gpt out" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("boto3", ["--host", "sagemaker://good"], "sagemaker"),
        ("huggingface_hub", ["--host", "http://127.0.0.1:1", "--transport", "huggingface_hub"], "hub"),
        ("tokenizers", ["--host", "http://127.0.0.1:1", "--tokenizer", "tokenizer.json"], "tokenizer"),
    ],
)
def test_a_module_that_is_not_installed_is_one_sentence_naming_its_extra(
    tmp_path: Path, module: str, options: list[str], extra: str
):
    command = ["locust", "--headless", "-t", "20s", "-u", "1", "--results-dir", str(tmp_path), *options]
    program = f"import sys; sys.modules[{module!r}] = None; sys.argv = {command!r}; import locust.main as m; m.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 2, done.stderr
    assert f"{module} is not installed: pip install 'tokenclock[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_web_page_starts_a_test_and_shows_our_rows(server: str, tmp_path: Path):
    from loadtest.served import free_port  # the one place that finds a free port

    port = free_port()
    process = subprocess.Popen(
        [BIN / "locust", "--host", server, "--web-port", str(port), *SHORT, "--results-dir", tmp_path],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    page = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert httpx.get(page).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert httpx.post(f"{page}/swarm", data={"user_count": 2, "spawn_rate": 2, "host": server}).json()["success"]
        seen: dict[str, Any] = {}
        while not {"POST", "TTFT", "ITL", "E2E"} <= set(seen):
            assert time.monotonic() < deadline, seen
            time.sleep(0.2)
            seen = rows(httpx.get(f"{page}/stats/requests").json()["stats"])
        assert httpx.post(f"{page}/stop").json()["success"]
        while not list(tmp_path.glob("*/report.md")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stats = httpx.get(f"{page}/stats/requests").json()["stats"]
        total = next(row for row in stats if row["name"] == "Aggregated")
        assert (
            total["num_requests"] == rows(row for row in stats if row["name"] != "Aggregated")["POST"]["num_requests"]
        )
    finally:
        process.terminate()
        try:
            _, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert f"http://127.0.0.1:{port}" in err, "the page is bound to this machine alone"
    assert "loadtest" not in err.partition("Traceback")[2]  # gevent's own web server may complain about a closed socket


def test_workers_that_can_measure_nothing_fail_their_master_too():
    command = [BIN / "locust", "--headless", "--processes", "2", "-t", "3s", "-u", "2", "--host", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr


def test_locusts_own_processes_share_the_load_and_add_up(server: str):
    command = [
        BIN / "locust",
        "--headless",
        "--processes",
        "2",
        "-t",
        "3s",
        "-u",
        "2",
        "--host",
        server,
        *SHORT,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    by_kind = rows(json.loads(done.stdout[done.stdout.index("[\n") :]))  # the workers print an empty list each
    assert by_kind["POST"]["num_requests"] == by_kind["TTFT"]["num_requests"] == by_kind["E2E"]["num_requests"] > 5
