"""Several processes measure as exactly as one: every sample once, figures from all of them, what is missing is said.

Method: real processes on loopback, killed with -9 or cut off by a proxy, against the truth server, whose own records
say what was really asked. Figures are computed again here, from the file, by numpy alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from loadtest.arrivals import Arrivals
from loadtest.served import free_port
from loadtest.truth.process import Truth, truth
from tests.e2e.conftest import ROOT, tokenclock
from tests.e2e.stalling_proxy import StallingProxy

pytestmark = pytest.mark.e2e

TOKENS = ("--input-tokens", "20", "--new-tokens", "8", "--no-calibrate")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
END_S = 60


@pytest.fixture(scope="module")
def server() -> Iterator[Truth]:
    with truth(first=0.05, gap=0.005) as running:
        yield running


@pytest.fixture
def asked(server: Truth) -> Callable[[], set[str]]:
    """The ids of the requests that the server has seen."""
    server.clear()
    return lambda: {record["request_id"] for record in server.records()}


def run_of(results: Path) -> dict[str, Any]:
    (folder,) = [each for each in results.iterdir() if each.is_dir()]
    run = json.loads((folder / "run.json").read_text())
    jsonschema.validate(run, json.loads((ROOT / "loadtest" / "run.schema.json").read_text()))
    return run


def samples_of(results: Path) -> list[dict[str, Any]]:
    (folder,) = [each for each in results.iterdir() if each.is_dir()]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len({sample["id"] for sample in samples}) == len(samples) > 10, "every request once"
    return samples


def summary_of(results: Path) -> dict[str, Any]:
    (folder,) = [each for each in results.iterdir() if each.is_dir()]
    return json.loads((folder / "summary.json").read_text())


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`tokenclock run`, which is killed at the end if it hasn't ended."""
    command = [sys.executable, "-m", "loadtest", "run", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], Any], seconds: float = END_S) -> None:
    deadline_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def lines(results: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in results.glob("*/samples.jsonl"))


def pids(results: Path) -> dict[int, int]:
    """Of the workers, by their numbers."""
    return {each["process"]: each["pid"] for each in run_of(results)["processes"]}


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_processes_report_what_is_in_their_one_file(server: Truth, asked: Any, tmp_path: Path):
    run_it = ("run", "--url", server.url, "-u", "6", "-t", "4s", "--processes", "2", "--results", str(tmp_path))
    done = tokenclock(*run_it, *TOKENS[:-1], calibrate=True)
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    samples, run, summary = samples_of(tmp_path), run_of(tmp_path), summary_of(tmp_path)
    assert {sample["id"] for sample in samples} == asked() - {None}
    assert {sample["verdict"] for sample in samples} == {"complete"}
    assert run["distributed"]["missing"] == []
    per_process = Counter(sample["process"] for sample in samples)
    assert {each["process"]: each["samples"] for each in run["distributed"]["workers"]} == per_process
    assert [each["users"] for each in run["distributed"]["workers"]] == [3, 3]
    assert sorted(per_process) == [each["process"] for each in run["processes"]] == [0, 1]
    assert len({each["pid"] for each in run["processes"]}) == 2
    assert [entry["process"] for entry in run["client"]] == [0, 1]
    assert run["calibration"]["reason"] is None
    (load,) = run["calibration"]["loads"]
    assert (load["processes"], load["shape"]["concurrency"]) == (2, 3), "each process replayed its share"
    (cell,) = summary["cells"]
    steady = [sample for sample in samples if sample["phase"] == "steady"]
    assert {sample["cell"]["concurrency"] for sample in steady} == {6}
    assert {sample["process"] for sample in steady} == {0, 1}
    values = {
        "ttft_s": [(s["events"][0][0] - s["started_ns"]) / 1e9 for s in steady],
        "latency_s": [(s["events"][-1][0] - s["started_ns"]) / 1e9 for s in steady],
        "itl_s": [(b[0] - a[0]) / 1e9 for s in steady for a, b in zip(s["events"], s["events"][1:], strict=False)],
    }
    for name, own in values.items():
        assert cell["metrics"][name]["n"] == len(own) > 20
        shown = {p: cell["metrics"][name][p] for p in PERCENTILES if cell["metrics"][name][p] is not None}
        assert "p90" in shown
        assert shown == {p: float(np.quantile(own, PERCENTILES[p])) for p in shown}
    wall_s = (max(s["ended_ns"] for s in steady) - min(s["scheduled_ns"] for s in steady)) / 1e9
    assert cell["metrics"]["requests_per_s"]["mean"] == len(steady) / wall_s
    said = re.search(r"6 users 20→8, done \| TTFT p50 ([\d.]+) ms, .* \| (\d+) complete, 0 not \| client", done.stderr)
    assert said is not None, done.stderr
    assert int(said[2]) == len(samples), "all that the workers saw, up to their end"
    first_ns = np.median([sample["events"][0][0] - sample["started_ns"] for sample in samples])
    assert float(said[1]) == pytest.approx(first_ns / 1e6, rel=0.0012)


def test_processes_keep_one_schedule_between_them(server: Truth, tmp_path: Path):
    loop = ("--rate", "40", "--arrivals", "gamma", "--burstiness", "0.5", "--seed", "7", "--results", str(tmp_path))
    done = tokenclock("run", "--url", server.url, "-u", "30", "-t", "2s", "--processes", "3", *loop, *TOKENS)
    assert done.returncode in (0, 1), done.stderr
    samples, run = samples_of(tmp_path), run_of(tmp_path)
    arrivals = Arrivals("gamma", 40, 0.5, 7)
    *expected, next_ns = islice(arrivals.offsets_ns(), len(samples) + 1)
    due = sorted((sample["scheduled_ns"], sample["process"]) for sample in samples)
    begin_ns = due[0][0] - expected[0]
    assert [instant - begin_ns for instant, _ in due] == expected
    assert [process for _, process in due] == [number % 3 for number in range(len(due))]
    assert next_ns >= 2e9, "all that was due was sent"
    assert run["open_loop"]["taken"] == len(samples)
    assert run["open_loop"]["unsent"] == 0


def test_workers_that_are_killed_or_leave_take_their_users_with_them_and_it_is_said(
    server: Truth, asked: Any, tmp_path: Path
):
    with started(
        "--url", server.url, "-u", "5", "-t", "5s", "--processes", "3", *TOKENS, "--results", str(tmp_path)
    ) as process:
        until(lambda: lines(tmp_path) > 20)
        of = pids(tmp_path)
        os.kill(of[1], signal.SIGKILL)
        os.kill(of[2], signal.SIGINT)
        _, said = process.communicate(timeout=END_S)
    assert process.returncode == 1, said
    samples, run = samples_of(tmp_path), run_of(tmp_path)
    workers = run["distributed"]["workers"]
    assert sorted(each["users"] for each in workers) == [1, 2, 2]
    killed, left = run["distributed"]["missing"]
    assert f"pid {of[1]}) was gone before the end: {workers[1]['users']} of 5 users vanished with it" in killed
    assert f"pid {of[2]}) left before the end: {workers[2]['users']} of 5 users vanished with it" in left
    for sentence in (killed, left):
        assert sentence in said
        assert sentence in summary_of(tmp_path)["notes"]
    ids = {number: {s["id"] for s in samples if s["process"] == number} for number in of}
    assert [len(ids[number]) for number in sorted(ids)] == [each["samples"] for each in workers]
    assert all(ids.values())
    seen = {each["id"] for each in samples if each["status"]}
    assert seen <= asked()
    first = next(iter(ids[1])).rpartition("-")[0]  # ids of a process begin alike
    assert {each.rpartition("-")[0] for each in asked() - set.union(*ids.values())} <= {first}, "others lost nothing"
    assert [each["end"] is None for each in run["processes"]] == [False, True, False]
    assert [each["whole"] for each in workers] == [True, False, True]


def test_a_stalled_and_cut_network_loses_and_doubles_nothing(server: Truth, asked: Any, tmp_path: Path):
    port = free_port()
    results = tmp_path / "results"
    with (
        started(
            "--master", "--master-bind-host", "127.0.0.1", "--master-port", str(port), "--expect-workers", "2",
            "--url", server.url, "-u", "4", "-t", "12s", *TOKENS, "--results", str(results),
        ) as master,
        StallingProxy(port) as proxy,
        started("--worker", "--master-port", str(port), "--results", str(tmp_path / "a")) as near,
        started("--worker", "--master-port", str(proxy.port), "--results", str(tmp_path / "b")) as far,
    ):  # fmt: skip
        until(lambda: lines(results) > 20)
        before = proxy.forwarded
        assert before > 0
        proxy.stall()
        time.sleep(4)  # longer than locust waits for a heartbeat by itself
        proxy.cut()
        time.sleep(1)
        proxy.heal()
        _, said = master.communicate(timeout=END_S)
        assert proxy.forwarded > before, "it came back"
        assert near.wait(END_S) == far.wait(END_S) == 0
    assert master.returncode == 0 or "the client was the bottleneck" in said, said
    samples, run = samples_of(results), run_of(results)
    assert run["distributed"]["missing"] == []
    assert {sample["id"] for sample in samples} == asked() - {None}
    assert [each["users"] for each in run["distributed"]["workers"]] == [2, 2]
    most = {number: max(s["user"] for s in samples if s["process"] == number) for number in (0, 1)}
    assert most == {0: 1, 1: 1}, "no user was started twice"
    assert not list(tmp_path.glob("?/undelivered*"))


def test_a_server_that_is_killed_leaves_counts_that_add_up(tmp_path: Path):
    with truth(first=0.05, gap=0.005) as server, started(
        "--url", server.url, "-u", "4", "-t", "4s", "--processes", "2", *TOKENS, "--results", str(tmp_path)
    ) as process:  # fmt: skip
        until(lambda: lines(tmp_path) > 20)
        server.process.kill()
        _, said = process.communicate(timeout=END_S)
    assert process.returncode == 1, said
    samples, run, summary = samples_of(tmp_path), run_of(tmp_path), summary_of(tmp_path)
    counts = Counter(sample["verdict"] for sample in samples)
    assert counts["connection"] > 0
    assert counts["complete"] > 20
    assert summary["verdicts"]["counts"] == counts
    assert sum(each["samples"] for each in run["distributed"]["workers"]) == len(samples)
    assert run["distributed"]["missing"] == []


def test_a_killed_master_leaves_a_readable_file_and_no_process(server: Truth, tmp_path: Path):
    with started(
        "--url", server.url, "-u", "4", "-t", "60s", "--processes", "2", *TOKENS, "--results", str(tmp_path)
    ) as process:
        until(lambda: lines(tmp_path) > 20)
        workers = pids(tmp_path)
        process.kill()
        until(lambda: all(map(ended, workers.values())))
    samples_of(tmp_path)
    (folder,) = [each for each in tmp_path.iterdir() if each.is_dir()]
    assert tokenclock("report", str(folder)).returncode == 0
    assert "the run was interrupted" in summary_of(tmp_path)["notes"]


def test_ctrl_c_ends_all_processes_with_a_report(server: Truth, asked: Any, tmp_path: Path):
    with started(
        "--url", server.url, "-u", "4", "-t", "60s", "--processes", "2", *TOKENS, "--results", str(tmp_path)
    ) as process:
        until(lambda: lines(tmp_path) > 20)
        workers = pids(tmp_path)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=END_S)
    assert process.returncode == 130, said
    assert all(map(ended, workers.values()))
    assert "report:" in out
    samples, run = samples_of(tmp_path), run_of(tmp_path)
    assert run["interrupted"]
    assert run["distributed"]["missing"] == []
    assert {sample["id"] for sample in samples if sample["status"]} <= asked() <= {sample["id"] for sample in samples}


def test_a_worker_that_lacks_a_key_is_told_to_bring_one(server: Truth, tmp_path: Path):
    port = str(free_port())
    with (
        started(
            "--master", "--master-bind-host", "127.0.0.1", "--master-port", port, "--url", server.url, "-u", "1",
            "-t", "2s", "--api-key", "sk-secret-of-the-master", *TOKENS, "--results", str(tmp_path / "results"),
        ) as master,
        started("--worker", "--master-port", port, "--results", str(tmp_path / "a")) as worker,
    ):  # fmt: skip
        _, said = master.communicate(timeout=END_S)
        worker.wait(END_S)
    assert master.returncode == 2
    assert "the master was given --api-key, and keys are never sent: give it to this worker too" in said
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


OLDER = """
from loadtest.distributed import worker  # first: it patches
import sys
from loadtest.distributed.share import Share
stop = Share.stop
def without(*said):
    answer = stop(*said)
    del answer["seen"]
    return answer
Share.stop = without
from loadtest.__main__ import main
main(sys.argv[1:])
"""


def test_a_worker_that_says_less_of_its_end_than_ours_ends_no_run(server: Truth, tmp_path: Path):
    port, results = str(free_port()), tmp_path / "results"
    older = [sys.executable, "-c", OLDER, "run", "--worker", "--master-port", port, "--results", str(tmp_path / "a")]
    with (
        started(
            "--master", "--master-bind-host", "127.0.0.1", "--master-port", port, "--url", server.url, "-u", "4",
            "-t", "1s", *TOKENS, "--allow", "saturated", "--results", str(results),
        ) as master,
        subprocess.Popen(older, stderr=subprocess.PIPE, text=True, cwd=ROOT) as worker,
    ):  # fmt: skip
        _, said = master.communicate(timeout=END_S)
        worker.communicate(timeout=END_S)
    assert (master.returncode, worker.returncode) == (0, 0), said
    assert not run_of(results)["interrupted"]
    samples_of(results)


def test_locusts_own_processes_leave_every_sample_at_their_master(server: Truth, asked: Any, tmp_path: Path):
    port = str(free_port())
    command = [
        sys.executable, "-m", "locust", "--headless", "--processes", "2", "-t", "6s", "-u", "4", "-r", "4", "--json",
        "--host", server.url, "--input-tokens", "20", "--new-tokens", "8", "--results-dir", str(tmp_path),
        "--master-port", port, "--master-bind-port", port,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_S, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    samples, run = samples_of(tmp_path), run_of(tmp_path)
    assert {sample["id"] for sample in samples} == asked() - {None}
    assert run["distributed"]["missing"] == []
    assert {sample["process"] for sample in samples} == {0, 1}
    assert {s["process"] for s in samples if s["phase"] == "steady" and s["cell"]["concurrency"] == 4} == {0, 1}
    table = json.loads(done.stdout[done.stdout.index("[\n") :])  # the workers print an empty list each
    complete = [sample for sample in samples if sample["verdict"] == "complete"]
    by_kind = {row["method"]: row for row in table}
    assert by_kind["POST"]["num_requests"] == by_kind["TTFT"]["num_requests"] == len(complete)
    assert by_kind["ITL"]["num_requests"] == 7 * len(complete)
    ttft_ms = sum((s["events"][0][0] - s["started_ns"]) / 1e6 for s in complete)
    assert by_kind["TTFT"]["total_response_time"] == pytest.approx(ttft_ms, rel=1e-9)
