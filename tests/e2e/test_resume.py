"""`tokenclock run --resume`: a plan that was killed and interrupted comes out whole, and nothing counts twice.

Method: real processes and signals. A plan runs against the truth server through a relay that keeps what was asked, is
killed with -9 at a random point, goes on, is stopped by Ctrl-C at another, finds another endpoint in the place of its
own, and goes on to the end with its own.
"""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loadtest.prompts import probe_text
from loadtest.report import write
from loadtest.truth.process import truth
from tests.e2e.conftest import ROOT, SCHEDULE_SERVER, Forked, tokenclock

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]  # five processes, one after the other

WAVES = 2
GRID = [(256, 1), (512, 1), (768, 1), (256, 256), (256, 512), (256, 768)]


class Relay(socketserver.ThreadingTCPServer):
    """Passes connections on to the port `to` of 127.0.0.1, and keeps what clients said."""

    def __init__(self, to: int) -> None:
        super().__init__(("127.0.0.1", 0), Passed)
        self.to = to
        self.said: list[tuple[int, bytearray]] = []  # and to which port
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def prompts(self, to: int) -> list[str]:
        texts = [said.decode() for port, said in self.said if port == to]
        return [prompt for text in texts for prompt in re.findall(r'"inputs":\s*"([^"]+)"', text)]

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Passed(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        to = self.server.to
        with socket.create_connection(("127.0.0.1", to)) as server:
            self.server.said.append((to, said := bytearray()))
            back = threading.Thread(target=passed, args=(server, self.request, bytearray()))
            back.start()
            passed(self.request, server, said)
            back.join()


def passed(source: socket.socket, sink: socket.socket, said: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            said += data
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def another_server() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, SCHEDULE_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["port"]


@dataclass
class Story:
    """What happened to one run."""

    folder: Path
    points: list[int] = field(default_factory=list)  # samples on disk when it was ended
    done: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    at_refusal: tuple[bytes, bytes] = (b"", b"")
    after_refusal: tuple[bytes, bytes] = (b"", b"")
    killed: str = ""  # its report then
    prompts: list[str] = field(default_factory=list)

    def files(self) -> tuple[bytes, bytes]:
        return (self.folder / "samples.jsonl").read_bytes(), (self.folder / "run.json").read_bytes()

    @property
    def run(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    @property
    def samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "samples.jsonl").read_text().splitlines()]


def ended_at(results: Path, command: list[str], least: int, number: int) -> tuple[int, int]:
    """Run a command, send it a signal once so many samples are there; (its exit code, how many there were)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest", "run", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 90
    while (there := sum(path.read_bytes().count(b"\n") for path in results.glob("*/samples.jsonl"))) < least:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(number)
    return process.wait(timeout=60), there


@pytest.fixture(scope="module")
def story(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> Story:
    results = tmp_path_factory.mktemp("results")
    with truth(first=0.005, gap=0.0005) as server, another_server() as other, Relay(server.port) as relay:
        first, second = sorted(random.sample(range(1, 60), 2))
        begin = [
            "--url",
            f"http://127.0.0.1:{relay.server_address[1]}",
            "--plan",
            "published",
            "--config",
            "T",
            "-n",
            str(WAVES),
        ]
        begin += ["--results", str(results), "--no-calibrate", "--allow", "saturated"]
        code, there = ended_at(results, begin, first, signal.SIGKILL)
        assert code == -signal.SIGKILL
        (folder,) = results.iterdir()
        story = Story(folder, [there])
        with (folder / "samples.jsonl").open("ab") as samples:  # a kill in the middle of a write is rare: this is one
            samples.write(b'{"schema":1,"run":"')
        story.killed = write(folder).read_text()  # what `tokenclock report` does
        code, there = ended_at(results, ["--resume", str(folder)], second + 4, signal.SIGINT)
        story.points.append(there)
        assert code == 130, story
        relay.to = other
        story.at_refusal = story.files()
        story.done["another"] = forked("run", "--resume", str(folder))
        story.after_refusal = story.files()
        relay.to = server.port
        story.done["last"] = tokenclock("run", "--resume", str(folder))
        story.done["once more"] = forked("run", "--resume", str(folder))
        story.prompts = relay.prompts(server.port)
    return story


def test_a_run_that_was_killed_can_be_reported(story: Story):
    assert "**Note**: the run was interrupted." in story.killed, story.points
    assert "## Verdicts" in story.killed


def test_it_goes_on_to_the_whole_plan_and_every_wave_that_counts_is_one_processes_own(story: Story):
    done = story.done["last"]
    assert done.returncode == 0, (story.points, done.stderr)
    waves: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for sample in story.samples:
        cell = sample["cell"]
        if sample["phase"] != "drain":
            waves[cell["input_tokens"], cell["new_tokens"], sample["phase"], cell["wave"]].append(sample)
    whole = Counter(key[:2] for key, wave in waves.items() if key[2] == "steady" and len(wave) == 4)
    assert whole == dict.fromkeys(GRID, WAVES), story.points
    assert all(len({sample["process"] for sample in wave}) == 1 for wave in waves.values())
    summary = json.loads((story.folder / "summary.json").read_text())
    assert [entry["waves"]["counted"] for entry in summary["cells"]] == [WAVES] * 6
    assert (summary["interrupted"], summary["missing"]) == (False, [])


def test_cells_that_were_measured_before_count_as_done(story: Story):
    shown = re.findall(r"cell (\d) of 6: T (\d+)→(\d+), \d waves? \|", story.done["last"].stderr)
    cells = [(s["cell"]["input_tokens"], s["cell"]["new_tokens"]) for s in story.samples if s["process"] == 2]
    assert {(int(given), int(made)) for _, given, made in shown} == set(cells), story.points
    assert [int(number) for number, *_ in shown] == list(range(7 - len(shown), 7))


def test_a_process_warms_up_before_every_cell_that_it_measures(story: Story):
    by_phase: dict[str, set[Any]] = defaultdict(set)
    for sample in story.samples:
        by_phase[sample["phase"]].add((sample["process"], sample["cell"]["input_tokens"], sample["cell"]["new_tokens"]))
    assert by_phase["steady"], story.points
    assert by_phase["steady"] <= by_phase["warmup"]


def test_no_id_and_no_prompt_is_sent_twice(story: Story):
    ids = [sample["id"] for sample in story.samples]
    assert len(ids) == len(set(ids)) >= 72
    prompts = [prompt for prompt in story.prompts if prompt != probe_text()]
    assert len(prompts) >= len(ids)
    assert len(prompts) == len(set(prompts))


def test_run_json_and_the_report_say_when_it_went_on(story: Story):
    run = story.run
    jsonschema.Draft202012Validator(json.loads((ROOT / "loadtest" / "run.schema.json").read_text())).validate(run)
    assert [process["process"] for process in run["processes"]] == [0, 1, 2]
    assert [each["process"] for each in run["resumed"]] == [1, 2]
    assert run["resumed"][0]["cut_bytes"] == len(b'{"schema":1,"run":"')
    assert run["interrupted"] is False
    assert len(run["endpoints"]) == 1
    said = (story.folder / "report.md").read_text()
    assert f"the run was interrupted and went on at {run['resumed'][1]['at']} as process 2" in said
    assert "the run was interrupted:" not in said


def test_another_endpoint_in_its_place_is_refused_and_nothing_is_changed(story: Story):
    done = story.done["another"]
    assert done.returncode == 2, done.stderr
    assert (
        "is not the endpoint that T was begun with: it has 4 slots, not an unknown number of slots; its" in done.stderr
    )
    assert "its model_id is 'schedule-server', not 'truth'" in done.stderr
    assert "Traceback" not in done.stderr
    assert story.after_refusal == story.at_refusal


def test_a_run_that_is_whole_is_only_reported(story: Story):
    done = story.done["once more"]
    assert done.returncode == 0, done.stderr
    assert "has every wave: nothing is left to be measured" in done.stderr
    assert len(story.run["resumed"]) == 2
