"""`tokenclock run` from the command line to the report: every cell, every sample, every exit code, and no process left.

Method: real processes. Plans run against the schedule server (its speed is known and its cells are short); a free run
goes through the real server with the demonstration model. Raw samples are checked against the shipped schemas.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.e2e.conftest import ROOT, SCHEDULE_SERVER, Forked, tokenclock
from tests.recomputed import agree

pytestmark = pytest.mark.e2e

PUBLISHED = (sys.executable, "-m", "loadtest", "run", "--plan", "published")


def serve(**schedule: Any) -> str:
    """A --serve command: the schedule server."""
    settings = json.dumps({"first_s": 0.01, "gap_s": 0.0005, **schedule}).replace("{", "{{").replace("}", "}}")
    python, script, schedule = map(shlex.quote, (sys.executable, str(SCHEDULE_SERVER), settings))
    return f"{python} {script} --port {{port}} --schedule {schedule}"


def free_run(
    url: str, results: Path, users: str, time: str, input_tokens: str, new_tokens: str, *more: str
) -> subprocess.CompletedProcess[str]:
    tokens = ("--input-tokens", input_tokens, "--new-tokens", new_tokens)
    return tokenclock("run", "--url", url, "-u", users, "-t", time, *tokens, "--results", str(results), *more)


@contextmanager
def schedule_server(**schedule: Any) -> Iterator[str]:
    """The URL of a schedule server."""
    command = [sys.executable, SCHEDULE_SERVER, "--schedule", json.dumps(schedule)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def only_folder(results: Path) -> Path:
    (folder,) = results.iterdir()
    return folder


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((ROOT / "loadtest" / name).read_text()))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    results = tmp_path_factory.mktemp("results")
    done = tokenclock("run", "--plan", "published", "-n", "2", "--serve", serve(), "--results", str(results))
    return only_folder(results), done


def test_a_plan_measures_every_wave_of_every_cell_of_both_configurations(published: Any):
    folder, done = published
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    counted = Counter(
        (s["cell"]["config"], s["cell"]["input_tokens"], s["cell"]["new_tokens"], s["phase"])
        for s in samples_of(folder)
    )
    grid = [(256, 1), (512, 1), (768, 1), (256, 256), (256, 512), (256, 768)]
    assert counted == {
        (config, *cell, phase): users * waves
        for config, users in (("L", 1), ("T", 4))
        for cell in grid
        for phase, waves in (("warmup", 1), ("steady", 2))
    }


def test_every_request_was_complete_and_had_exactly_the_tokens_asked_for(published: Any):
    samples = samples_of(published[0])
    assert len(samples) == (1 + 4) * 6 * 3
    assert {sample["verdict"] for sample in samples} == {"complete"}
    for sample in samples:
        assert sample["got"]["input_tokens"] == sample["cell"]["input_tokens"]
        assert sample["got"]["new_tokens"] == sample["cell"]["new_tokens"] == len(sample["events"])


def test_the_requests_of_a_wave_are_released_together_and_the_next_wave_waits(published: Any):
    waves: dict[Any, list[dict[str, Any]]] = {}
    for sample in samples_of(published[0]):
        key = (
            sample["cell"]["config"],
            sample["cell"]["input_tokens"],
            sample["cell"]["new_tokens"],
            sample["phase"],
            sample["cell"]["wave"],
        )
        waves.setdefault(key, []).append(sample)
    in_order = sorted(waves.values(), key=lambda wave: wave[0]["scheduled_ns"])
    assert all(len({sample["scheduled_ns"] for sample in wave}) == 1 for wave in in_order)
    assert {len(wave) for wave in in_order} == {1, 4}
    for before, after in pairwise(in_order):
        assert max(sample["ended_ns"] for sample in before) <= after[0]["scheduled_ns"]


def test_the_files_of_a_run_obey_the_shipped_schemas(published: Any):
    folder, _ = published
    for sample in samples_of(folder):
        schema("samples.schema.json").validate(sample)
    schema("run.schema.json").validate(json.loads((folder / "run.json").read_text()))
    schema("summary.schema.json").validate(json.loads((folder / "summary.json").read_text()))


def test_every_figure_of_a_real_run_is_what_pandas_makes_of_its_samples(published: Any):
    folder, _ = published
    assert agree(folder) > 100


def test_the_report_has_the_three_charts_and_the_terminal_its_tables(published: Any):
    folder, done = published
    report = (folder / "report.md").read_text()
    for name in ("encoding_time", "latency", "throughput"):
        assert f"({name}.png)" in report
        assert (folder / f"{name}.png").stat().st_size > 5_000
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    assert "Throughput per generated tokens for 256 input tokens" in done.stdout
    assert str(folder / "report.md") in done.stdout


def test_a_log_has_a_line_for_each_cell_with_its_figures(published: Any):
    folder, done = published
    lines = re.findall(
        r"tokenclock: cell (\d+) of 12: ([LT]) (\d+)→(\d+), 2 waves \| TTFT .* \| ITL .* \| output [\d.]+ tokens/s \| "
        r"(\d+) complete, 0 not \| client \w+",
        done.stderr,
    )
    assert [int(number) for number, *_ in lines] == list(range(1, 13)), done.stderr
    steady = Counter(
        (s["cell"]["config"], str(s["cell"]["input_tokens"]), str(s["cell"]["new_tokens"]))
        for s in samples_of(folder)
        if s["phase"] == "steady"
    )
    assert {(config, given, made): int(complete) for _, config, given, made, complete in lines} == steady
    for line in re.findall(r"tokenclock: +\d+% .*", done.stderr):  # one each 5 s: as many as this machine is slow
        assert re.search(r"\| \d+:\d\d elapsed", line)
    assert "\x1b" not in done.stderr


def test_a_report_computed_again_is_the_same(published: Any):
    folder, _ = published
    before = {name: (folder / name).read_bytes() for name in ("summary.json", "report.md", "page.svg")}
    assert tokenclock("report", str(folder)).returncode == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(tmp_path: Path):
    command = [*PUBLISHED, "--results", str(tmp_path), "--serve", serve(gap_s=0.002)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (
        lines := [line for path in tmp_path.glob("*/samples.jsonl") for line in path.read_text().splitlines()][36:]
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does; once more while it finishes
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    folder = only_folder(tmp_path)
    run = json.loads((folder / "run.json").read_text())
    assert run["interrupted"] is True
    verdicts = Counter(sample["verdict"] for sample in samples_of(folder))
    assert verdicts["complete"] >= 36
    assert set(verdicts) <= {"complete", "cancelled"}
    assert "the run was interrupted" in out + (folder / "report.md").read_text()
    port = int(run["endpoints"][0]["url"].rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL], ids=["SIGHUP", "SIGKILL"])
def test_no_server_outlives_the_run_that_started_it(tmp_path: Path, number: int):
    command = [*PUBLISHED, "--results", str(tmp_path), "--serve", serve(gap_s=0.002)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any(path.read_text() for path in tmp_path.glob("*/samples.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port = int(json.loads((only_folder(tmp_path) / "run.json").read_text())["endpoints"][0]["url"].rsplit(":", 1)[1])
    process.send_signal(number)
    process.wait(timeout=60)
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.1)
    pytest.fail("the server is still there")


def test_ctrl_c_ends_a_free_run_at_once_and_a_second_one_changes_nothing(server: str, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "loadtest",
        "run",
        "--url",
        server,
        "-u",
        "2",
        "-t",
        "60s",
        "--results",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [*command, "--input-tokens", "9", "--new-tokens", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while "tgi_batch_current_size 2.0" not in httpx.get(f"{server}/metrics").text:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=15)  # both requests had far more than that to go
    assert process.returncode == 130, err
    assert [sample["verdict"] for sample in samples_of(only_folder(tmp_path))] == ["cancelled"] * 2


def test_prompts_that_are_used_up_end_the_run_with_a_sentence(server: str, tmp_path: Path):
    done = free_run(server, tmp_path, "1", "60s", "2", "1")
    assert done.returncode == 1, done.stderr
    assert "the run can't go on: all prompts of 2 tokens have been used: ask for longer ones" in done.stderr
    assert "Traceback" not in done.stderr
    assert {sample["verdict"] for sample in samples_of(only_folder(tmp_path))} == {"complete"}


def test_results_that_cannot_be_written_any_more_end_the_run_with_a_sentence(server: str, tmp_path: Path):
    # A file size limit is the full disk that a test can have.
    command = (
        f"ulimit -f 40; exec {shlex.quote(sys.executable)} -m loadtest run --url {server} -u 2 -t 60s --new-tokens 30"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} --input-tokens 9 --results {tmp_path}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_two_configurations_of_a_run_have_prompts_of_their_own():
    from loadtest.site import Look
    from loadtest.transport.choice import connecting, controlling
    from loadtest.transport.tls import Tls

    with schedule_server() as url:
        look = Look(connecting("gevent", Tls()), controlling("gevent", Tls()))
        drawn = [look.at(url, f"1-{config}", [256], 1024).prompts.draw(256) for config in "LT"]
    assert drawn[0] != drawn[1]


def test_a_server_that_dies_mid_run_ends_the_run_with_what_was_measured(tmp_path: Path):
    command = [*PUBLISHED, "--config", "T", "--results", str(tmp_path), "--serve", serve()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 60
    while sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*/samples.jsonl")) < 60:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port = json.loads((only_folder(tmp_path) / "run.json").read_text())["endpoints"][0]["url"].rsplit(":", 1)[1]
    (pid,) = [
        p.parent.name for p in Path("/proc").glob("[0-9]*/cmdline") if f"--port\0{port}\0".encode() in p.read_bytes()
    ]
    os.kill(int(pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "3 waves in a row without a complete request; the last: connection: " in err
    verdicts = Counter(sample["verdict"] for sample in samples_of(only_folder(tmp_path)))
    assert verdicts["complete"] >= 60
    assert 12 <= verdicts["connection"] + verdicts["truncated"] <= 16
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("truncate", "truncated"),
        ("reset", "connection"),
        ("garble", "error_in_stream"),
        ("stop_early", "stopped_early"),
    ],
)
def test_requests_that_are_not_complete_fail_the_run(tmp_path: Path, fault: str, verdict: str):
    with schedule_server(fault=fault) as url:
        done = free_run(url, tmp_path, "2", "1s", "8", "8")
    assert done.returncode == 1
    assert re.search(rf"not complete: \d+ {verdict}", done.stderr)
    assert {sample["verdict"] for sample in samples_of(only_folder(tmp_path))} == {verdict}


def test_requests_that_are_not_complete_do_not_fail_the_run_where_that_is_allowed(tmp_path: Path):
    allowed = ("--allow", "truncated", "--allow", "saturated")
    with schedule_server(fault="truncate") as url:
        done = free_run(url, tmp_path, "2", "1s", "8", "8", *allowed)
    assert {sample["verdict"] for sample in samples_of(only_folder(tmp_path))} == {"truncated"}
    assert done.returncode == 0, done.stderr


def test_a_free_run_against_the_real_server(server: str, tmp_path: Path):
    goodput = ("--goodput", "ttft:60000", "e2el:60000", "--goodput-share", "100%")
    done = free_run(server, tmp_path, "3", "3s", "40", "30", *goodput)
    folder = only_folder(tmp_path)
    (cell,) = json.loads((folder / "summary.json").read_text())["cells"]
    assert cell["goodput"]["met"] == cell["goodput"]["of"] == cell["samples"]["steady"]
    assert cell["goodput"]["goodput_rps"] == pytest.approx(cell["metrics"]["requests_per_s"]["mean"])
    samples = samples_of(folder)
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    assert len(samples) > 3
    assert {(s["verdict"], s["got"]["input_tokens"], s["got"]["new_tokens"]) for s in samples} == {("complete", 40, 30)}
    assert Counter(s["phase"] for s in samples)["warmup"] == 3
    assert {s["user"] for s in samples} == {0, 1, 2}
    assert {s["cell"]["slots"] for s in samples} == {4}
    assert sum(s["connect_ns"] is not None for s in samples) == 0, "one connection a user, opened before the clock"
    for sample in samples:
        schema("samples.schema.json").validate(sample)
        server_s = sum(sample["server"][part] for part in ("queue_s", "prefill_s", "decode_s"))
        ours_s = (sample["events"][-1][0] - sample["started_ns"]) / 1e9
        assert 0 < server_s < ours_s, "the server's own account can't be longer than what the client waited"
        assert sum(sample["server"]["batch_sizes"].values()) == 29


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plan", "nightly"], "there is no plan 'nightly': choose published or to-1024"),
        (["--plan", "published", "-u", "3"], "--plan fixes users and tokens, -u/--users is for a free run"),
        ([], "say what: --plan published|to-1024, or a free run with -u USERS -t TIME"),
        (["-u", "2"], "say what: --plan"),
        (["-u", "0", "-t", "5s"], "'0' is not a whole number from 1 up"),
        (["-u", "2", "-t", "soon"], "'soon' is not a time: write 30s, 5m or 1h30m"),
        (["--plan", "published", "--config", "X"], "invalid choice: 'X'"),
        (["-u", "1", "-t", "1s", "--config", "L"], "--config belongs to a plan"),
        (["-u", "1", "-t", "1s", "-n", "5"], "-n/--waves belongs to a plan"),
        (["--plan", "published", "--rate", "3"], "--plan fixes users and tokens, --rate is for a free run"),
        (["-u", "1", "-t", "1s", "--arrivals", "gamma"], "--arrivals belongs to an open loop: add --rate"),
        (["-u", "1", "-t", "1s", "--burstiness", "2"], "--burstiness belongs to an open loop: add --rate"),
        (["-u", "1", "-t", "1s", "--rate", "3", "--arrivals", "gamma"], "gamma arrivals need --burstiness"),
        (["-u", "1", "-t", "1s", "--rate", "0"], "a rate of 0 requests a second can't be scheduled: choose one from"),
        (["-u", "1", "-t", "1s", "--rate", "1", "--burstiness", "2"], "poisson arrivals have no burstiness"),
        (["-u", "1", "-t", "1s", "--transport", "huggingface_hub", "-k"], "--insecure don't reach huggingface_hub"),
        (["-u", "1", "-t", "1s", "--transport", "carrier"], "invalid choice: 'carrier'"),
        (["-u", "1", "-t", "1s", "--cacert", "/nowhere.pem"], "/nowhere.pem holds no certificates that can be read"),
        (["--plan", "published", "--serve-timeout", "5s"], "--serve-timeout belongs to --serve"),
        (["-u", "1", "-t", "1s", "-k"], "--cacert and --insecure are for certificates, and nothing here has one"),
        (["-u", "1", "-t", "1s", "--api-key", " "], "the key is empty: leave the option out"),
        (["-u", "1", "-t", "1s", "--header", "Content-Length: 3"], "Content-Length is the framing's own"),
        (["-u", "1", "-t", "1s", "--apikey", "sk-1"], "unrecognized arguments: --apikey [hidden]"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_code_2(
    forked: Forked, tmp_path: Path, arguments: list[str], sentence: str
):
    done = forked("run", "--url", "http://127.0.0.1:1", "--results", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (
            ["--url", "http://127.0.0.1:1"],
            "http://127.0.0.1:1 does not answer: no connection to 127.0.0.1:1: Connection refused",
        ),
        (["--url", "ftp://127.0.0.1:1"], "only http:// and https:// can be measured"),
        (["--url", "http://127.0.0.1:port"], "http://127.0.0.1:port has no valid port"),
        (["--serve", "/no/such/server {port}"], "/no/such/server can't be started: No such file or directory"),
        (["--serve", "true"], "has no {port}"),
        (["--serve", "echo {host} {port}"], "only {slots} and {port} are filled in"),
        (
            ["--serve", f"{sys.executable} -c 'import sys; sys.exit(\"no device {{port}}\")'"],
            "the server ended with 1 before it was ready: no device",
        ),
    ],
)
def test_an_endpoint_that_cannot_be_measured_is_one_sentence_and_exit_code_2(
    forked: Forked, tmp_path: Path, where: list[str], sentence: str
):
    done = forked("run", *where, "--plan", "published", "--results", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_cells_longer_than_the_endpoint_takes_are_refused_before_anything_is_measured(server: str, tmp_path: Path):
    done = free_run(server, tmp_path, "1", "1s", "2000", "100")
    assert done.returncode == 2
    assert "takes at most 2048 tokens, prompt and new ones together; this run needs 2100" in done.stderr


def test_a_folder_without_a_run_cannot_be_reported(forked: Forked, tmp_path: Path):
    done = forked("report", str(tmp_path))
    assert done.returncode == 2
    assert "can't be reported" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_loop_keeps_its_schedule_whatever_the_endpoint_does(tmp_path: Path):
    with schedule_server(first_s=0.02, gap_s=0.001) as url:
        done = free_run(url, tmp_path, "8", "2s", "8", "4", "--rate", "40", "--arrivals", "constant")
    folder = only_folder(tmp_path)
    assert folder.name.endswith("-40-per-s")
    samples = samples_of(folder)
    due = sorted(sample["scheduled_ns"] for sample in samples)
    assert {later - earlier for earlier, later in pairwise(due)} == {25_000_000}
    assert len(samples) == 80
    assert all(sample["started_ns"] >= sample["scheduled_ns"] for sample in samples)
    assert {sample["phase"] for sample in samples} == {"steady"}
    run = json.loads((folder / "run.json").read_text())
    schema("run.schema.json").validate(run)
    assert (run["open_loop"]["taken"], run["open_loop"]["unsent"]) == (80, 0)
    assert "an open loop: 40 requests/s (constant) for 2 s, at most 8 in flight; 80 sent" in (
        (folder / "report.md").read_text()
    )
    assert done.returncode in (0, 1), done.stderr


def test_what_an_open_loop_cannot_send_in_time_is_late_and_never_skipped(tmp_path: Path):
    with schedule_server(first_s=0.2, gap_s=0.001) as url:
        done = free_run(url, tmp_path, "2", "2s", "8", "2", "--rate", "20", "--arrivals", "constant")
    samples = samples_of(only_folder(tmp_path))
    assert len(samples) == 40, "two users could send some 20 in the time"
    late_s = [(sample["started_ns"] - sample["scheduled_ns"]) / 1e9 for sample in samples]
    assert max(late_s) > 1
    assert "of 40 requests were late because all 2 users were busy: raise -u" in done.stderr
    assert "client was the bottleneck" not in done.stderr, "the cap was, and that is said"


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, ()), (signal.SIGKILL, ()), (signal.SIGINT, ("--processes", "2"))],
    ids=["SIGINT", "SIGKILL", "SIGINT of two processes"],
)
def test_an_open_loop_that_ends_early_is_reported_as_one(tmp_path: Path, number: int, processes: tuple[str, ...]):
    loop = ("-u", "8", "-t", "60s", "--rate", "40", "--input-tokens", "8", "--new-tokens", "4", *processes)
    with schedule_server(first_s=0.02, gap_s=0.001) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest", "run", "--url", url, *loop, "--results", str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        deadline = time.monotonic() + 60
        while sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/samples.jsonl")) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(timeout=60)
    folder = only_folder(tmp_path)
    if number == signal.SIGKILL:
        tokenclock("report", str(folder))
    run = json.loads((folder / "run.json").read_text())
    schema("run.schema.json").validate(run)
    assert run["interrupted"]
    sent, became = (None, "how much of it was sent isn't known")
    if number == signal.SIGINT:
        sent = len(samples_of(folder))
        became = f"{sent} sent, "
    assert (run["open_loop"]["rate_per_s"], run["open_loop"]["taken"]) == (40, sent)
    (cell,) = json.loads((folder / "summary.json").read_text())["cells"]
    assert cell["blocks"]["why"].startswith("an open loop's queue")
    report = (folder / "report.md").read_text()
    assert f"for 60 s, at most 8 in flight; {became}" in report
    assert "(at most 8 at once), the fastest cell" in report


def test_where_stderr_is_closed_no_sentence_comes_between_the_results():
    line = '"$0" -m loadtest probe http://127.0.0.1:1 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable], stdout=subprocess.PIPE, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("transport", ["gevent", "httpx", "huggingface_hub"])
def test_every_transport_gives_samples_and_the_report_says_which(transport: str, tmp_path: Path):
    with schedule_server(first_s=0.01, gap_s=0.002) as url:
        goodput = ("--goodput", "e2el:0.01", "--goodput-share", "50%")  # nobody is as fast
        done = free_run(url, tmp_path, "2", "1s", "8", "6", "--transport", transport, *goodput)
    assert done.returncode == 1, done.stderr
    assert re.search(r"not good enough: 2 users 8→6: 0 of \d+ requests \(0.0 %\) met every objective", done.stderr)
    folder = only_folder(tmp_path)
    samples = samples_of(folder)
    assert len(samples) > 4
    assert {(sample["transport"], sample["verdict"]) for sample in samples} == {(transport, "complete")}
    assert {len(sample["events"]) for sample in samples} == {6}
    assert f"**requests** were carried by {transport} (" in (folder / "report.md").read_text()
