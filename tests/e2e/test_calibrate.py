"""`tokenclock calibrate` and the calibration of every run: a client that is starved, a server that is late.

Method: figures are compared with each other and with what was done to a process, never with a clock's idea of fast.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from loadtest.truth.process import truth
from tests.e2e.conftest import ROOT, Forked, tokenclock

pytestmark = pytest.mark.e2e

QUICK = ("calibrate", "--ttft", "30", "--gap", "5", "--new-tokens", "20", "-t", "2s")
SHORT = ("-u", "1", "-t", "1s", "--new-tokens", "4", "--input-tokens", "9", "--allow", "saturated")
#: A greenlet that keeps the loop from everything else for 40 of every 43 ms, as a plug-in with a loop of its own might:
#: every tick of the monitor, which come 5 ms apart, meets it.
STARVED = """
from loadtest.loads import say  # first: it patches
import sys, time, gevent
def busy():
    while True:
        until_s = time.monotonic() + 0.04
        while time.monotonic() < until_s: pass
        gevent.sleep(0.003)
gevent.spawn(busy)
from loadtest.__main__ import main
main(sys.argv[1:])
"""


def calibrated(*arguments: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = tokenclock(*QUICK, "--json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or '"saturated": true' in done.stdout, done.stderr
    return json.loads(done.stdout), done


@pytest.mark.parametrize(
    ("arguments", "concurrency", "protocol"),
    [
        (("-u", "4", "--no-search"), 4, "tgi"),
        (("-u", "2", "--no-search", "--endpoint-type", "openai-chat", "--event-bytes", "400"), 2, "openai-chat"),
        (("--rate", "20", "--no-search", "--endpoint-type", "openai-completions"), 13, "openai-completions"),
        (("-u", "2", "--no-search", "--transport", "httpx"), 2, "tgi"),
    ],
    ids=["closed loop", "chat", "open loop", "httpx"],
)
def test_a_load_is_replayed_and_its_errors_are_told(arguments: tuple[str, ...], concurrency: int, protocol: str):
    said, _ = calibrated(*arguments)
    (load,) = said["loads"]
    assert (load["shape"]["concurrency"], load["shape"]["protocol"]) == (concurrency, protocol)
    assert load["verdicts"].keys() == {"complete"}
    assert load["paired"] >= 10
    assert load["errors"]["ttft_s"]["n"] == load["errors"]["latency_s"]["n"] == load["paired"]
    assert load["errors"]["itl_s"]["n"] == 19 * load["paired"]
    assert 0 < load["errors"]["ttft_s"]["p50"] < 0.03, "what an error of the pairing would be: a whole TTFT"
    assert load["cpu_us_per_token"] > 0
    assert load["server_stamps"] == (1 if sys.platform == "linux" else 0)
    assert said["highest"] is None


def test_a_terminal_has_a_table_and_the_highest_load():
    done = tokenclock(*QUICK, "-u", "2", "--bound", "1000", "--search-time", "7s", "--allow", "saturated")
    assert done.returncode == 0, done.stderr
    for row in ("TTFT ", "gaps ", "end-to-end "):
        assert any(line.startswith(row) for line in done.stdout.splitlines()), done.stdout
    assert "the truth server's own lateness, in no error: p99" in done.stdout
    assert "whose errors stay under 1.00 s at p99" in done.stdout


def test_a_starved_client_is_seen_as_saturated_and_fails_unless_told_otherwise():
    command = [sys.executable, "-c", STARVED, *QUICK, "-u", "4", "--no-search"]
    failed, allowed = (
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
        for more in ((), ("--allow", "saturated"))
    )
    assert "client saturated: " in failed.stdout, failed.stderr
    assert "of the event loop's lag is " in failed.stdout
    assert "remedy: fewer users" in failed.stdout
    assert failed.returncode == 1
    assert "client saturated: " in allowed.stdout
    assert allowed.returncode == 0


def test_a_server_that_is_made_late_is_not_blamed_on_the_client():
    command = [sys.executable, "-m", "loadtest", *QUICK, "-t", "4s", "-u", "4", "--no-search", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        server = the_truth_server_of(process.pid)
        with suppress(ProcessLookupError):  # it is gone when its client has what it wants
            while process.poll() is None:  # it stands still for 150 of every 300 ms
                os.kill(server, signal.SIGSTOP)
                time.sleep(0.15)
                os.kill(server, signal.SIGCONT)
                time.sleep(0.15)
        out, _ = process.communicate(timeout=60)
    (load,) = json.loads(out)["loads"]
    late_s, errors = load["server_late_s"]["p99"], load["errors"]
    assert load["paired"] >= 20
    assert late_s > 0.1
    assert not load["schedule_kept"]
    for name in ("ttft_s", "itl_s", "latency_s"):
        assert errors[name]["judged"] < late_s / 4, name


def the_truth_server_of(parent: int) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                about, words = (path / "stat").read_text(), (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(about.rpartition(")")[2].split()[1]) == parent and b"loadtest.truth" in words:
                return int(path.name)
        time.sleep(0.02)
    raise AssertionError("there is no truth server")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="there is no other core")
def test_a_client_that_is_kept_to_a_core_leaves_the_server_another():
    core, *others = sorted(os.sched_getaffinity(0))
    program = (
        f"from loadtest.calibrate.replay import free_core\nimport os\nprint(free_core())\n"
        f"os.sched_setaffinity(0, {{{core}}})\nprint(free_core(), os.sched_getaffinity(0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    free, kept = done.stdout.splitlines()
    if len(others) + 1 == os.cpu_count():
        assert free == "None", "the system may choose"
    assert int(kept.split()[0]) != core
    assert kept.endswith(f"{{{core}}}"), "it stays where it was put"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a run with its calibration, of a server whose gaps are 5 ms and whose events have 500 bytes."""
    results = tmp_path_factory.mktemp("results")
    with truth(first=0.03, gap=0.005, event_bytes=500) as server:
        sizes = ("-u", "3", "-t", "2s", "--new-tokens", "20", "--input-tokens", "9", "--allow", "saturated")
        done = tokenclock("run", "--url", server.url, *sizes, "--results", str(results), calibrate=True)
    assert done.returncode == 0, done.stderr
    (folder,) = results.iterdir()
    return folder, done


def test_a_run_calibrates_itself_at_its_own_load_and_says_so_apart_from_the_interval(run: Any):
    folder, done = run
    about = json.loads((folder / "run.json").read_text())
    jsonschema.Draft202012Validator(json.loads((ROOT / "loadtest" / "run.schema.json").read_text())).validate(about)
    (load,) = about["calibration"]["loads"]
    assert about["calibration"]["reason"] is None
    assert load["cells"] == ["3 users 9→20"]
    assert (load["shape"]["concurrency"], load["shape"]["tokens"], load["shape"]["input_tokens"]) == (3, 20, 9)
    assert load["shape"]["gap_s"] == pytest.approx(0.005, rel=0.5)
    assert load["shape"]["event_bytes"] == pytest.approx(500, rel=0.1), "the last one is a little larger"
    assert load["paired"] >= 10
    report = (folder / "report.md").read_text()
    assert "## The client's own error" in report
    assert "**Client error**, calibrated on loopback at 3 in flight" in report
    assert "It is no part of the intervals above." in report
    assert "client's error, calibrated on loopback at 3 in flight" in done.stdout


def test_its_requests_are_in_no_sample_of_the_run(run: Any):
    folder, _ = run
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["run"] for sample in samples} == {folder.name}
    reports = {"report.html", "report.md", "summary.csv", "summary.json", "summary.vllm.jsonl"}
    assert {each.name for each in folder.iterdir()} - reports == {"run.json", "samples.jsonl"}


def test_the_load_of_a_run_is_replayed_from_its_folder(run: Any):
    folder, _ = run
    done = tokenclock("calibrate", "--like", str(folder), "-t", "2s", "--no-search", "--json", "--allow", "saturated")
    assert done.returncode == 0, done.stderr
    (load,) = json.loads(done.stdout)["loads"]
    assert load["cells"] == ["3 users 9→20"]
    assert (load["shape"]["concurrency"], load["shape"]["tokens"]) == (3, 20)


def test_a_run_without_calibration_says_so(tmp_path: Path):
    with truth(first=0.01, gap=0.002) as server:
        done = tokenclock("run", "--url", server.url, *SHORT, "--results", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    said = f"not calibrated in this run: --no-calibrate was said; `tokenclock calibrate --like {folder}` does it"
    assert said in done.stdout
    assert done.returncode == 0


def a_short_run(program: str, url: str, results: Path) -> subprocess.CompletedProcess[str]:
    """program: Python that changes something, and then runs the command line of its arguments."""
    command = [sys.executable, "-c", program, "run", "--url", url, *SHORT, "--results", str(results)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_run_whose_calibration_fails_is_whole_and_says_why(tmp_path: Path):
    """There is no second process: what starts one is made to fail."""
    without = (
        "from loadtest.loads import say\nimport subprocess, sys\n"
        "def none(*_, **__): raise OSError(11, 'no more processes')\n"
        "subprocess.Popen = none\nfrom loadtest.__main__ import main\nmain(sys.argv[1:])"
    )
    with truth(first=0.01, gap=0.002) as server:
        done = a_short_run(without, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not calibrated in this run: there is nothing to measure the clock by: [Errno 11] no more" in done.stdout
    assert "complete " in done.stdout


def test_ctrl_c_in_a_runs_calibration_leaves_a_whole_run(tmp_path: Path):
    with truth(first=0.01, gap=0.002) as server:
        command = [sys.executable, "-m", "loadtest", "run", "--url", server.url, *SHORT, "--results", str(tmp_path)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        ) as process:
            the_truth_server_of(process.pid)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all that belongs to it
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "not calibrated in this run: interrupted" in out
    assert "Traceback" not in err
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "run.json").read_text())["interrupted"] is False


def test_ctrl_c_between_the_last_request_and_the_calibration_is_heard(tmp_path: Path):
    program = (
        "from loadtest.run import Recorder\nimport gevent, os, signal, sys\n"
        "close = Recorder.close\n"
        "def closed(*said, **more):\n"
        "    close(*said, **more)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    gevent.sleep(0.1)\n"
        "Recorder.close = closed\n"
        "from loadtest.__main__ import main\nmain(sys.argv[1:])"
    )
    with truth(first=0.01, gap=0.002) as server:
        done = a_short_run(program, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not calibrated in this run: interrupted" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "run.json").read_text())["interrupted"] is False


def told_at(sentence: str, number: int, results: Path, *processes: str) -> tuple[dict[str, Any], str]:
    """A run that Prometheus scraped once, and that gets a signal when it says this: run.json, and all it said."""
    program = (
        "from loadtest.loads import say\nimport sys\nfrom loadtest.live import exporter\n"
        "exporter.LAST_S = 3600.0\nfrom loadtest.__main__ import main\nmain(sys.argv[1:])"
    )
    with truth(first=0.01, gap=0.002) as server:
        command = [sys.executable, "-c", program, "run", "--url", server.url, *SHORT, "-u", "2", *processes]
        with subprocess.Popen(
            [*command, "--results", str(results)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"TOKENCLOCK_METRICS_PORT": "0"},
        ) as process:
            assert process.stderr is not None
            said = ""
            while sentence not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
                if line.startswith("tokenclock: metrics: http"):
                    ask = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
                    httpx.get(line.split()[-1], headers=ask, timeout=60).raise_for_status()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    said += err + out
    assert process.returncode == 0, said
    (folder,) = (each for each in results.iterdir() if each.is_dir())
    run = json.loads((folder / "run.json").read_text())
    assert run["interrupted"] is False
    assert "it did not scrape again" in said
    return run, said


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, ()), (signal.SIGTERM, ("--processes", "2"))], ids=["one", "two"]
)
def test_a_signal_ends_the_wait_for_a_last_scrape_and_nothing_else(
    tmp_path: Path, number: int, processes: tuple[str, ...]
):
    run, said = told_at("once more", number, tmp_path, *processes)
    assert (len(run["calibration"]["loads"]), run["calibration"]["reason"]) == (1, None)
    assert "interrupted" not in said


def test_where_a_signal_came_before_nobody_waits_for_a_scrape(tmp_path: Path):
    run, said = told_at("calibrating the clocks", signal.SIGINT, tmp_path, "--processes", "2")
    assert run["calibration"] == {"loads": [], "reason": "interrupted"}
    assert "once more" not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--like", "/no/such/folder"], "/no/such/folder can't be replayed: FileNotFoundError"),
        (["--like", "somewhere", "-u", "3"], "--like takes the load from a run's files, -u/--users says another"),
        (["--gap", "0"], "'0' is no time in milliseconds from 0.01 to 3,600,000"),
        (["--bound", "nan"], "'nan' is no time in milliseconds"),
        (["--rate", "0"], "a rate of 0 requests a second can't be scheduled"),
        (["-u", "0"], "'0' is not a whole number from 1 up"),
        (["--input-tokens", "3"], "--input-tokens 3: prompts below 8 tokens are soon used up"),
        (["--no-search", "--search-time", "9"], "--no-search and --search-time contradict each other"),
        (["--transport", "boto3"], "invalid choice: 'boto3'"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_code_2(forked: Forked, arguments: list[str], sentence: str):
    done = forked("calibrate", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
