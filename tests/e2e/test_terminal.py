"""What a person sees while `tokenclock run` runs, on a terminal, is what is in the run's files afterwards.

Method: real processes under pseudo-terminals of the kernel, read by pyte, an emulator of them; numpy computes the
figures again from samples.jsonl. Tolerance: a step of the live histogram, and the four digits that are shown. Lines of
a log are looked at beside the runs of test_run.py, test_resume.py and test_distributed.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyte
import pytest

from loadtest.truth.process import Truth, truth
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

SHOWN = 0.0012
PATIENCE_S = 90


@pytest.fixture(scope="module")
def server() -> Iterator[Truth]:
    with truth(first=0.03, gap=0.001) as running:
        yield running


class Terminal:
    """`tokenclock run` in a terminal of its own: its output on the screen, Ctrl-C from the keyboard."""

    def __init__(self, columns: int, *arguments: str, **environment: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest", "run", *arguments],
            preexec_fn=lambda: os.login_tty(theirs),
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        os.close(theirs)
        self._screen = pyte.HistoryScreen(columns, 40, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._end_s = time.monotonic() + PATIENCE_S
        self.raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def until(self, seen: Callable[[str], Any]) -> str:
        """What is on the screen once something is seen there."""
        while not seen(text := "\n".join(self._screen.display)):
            assert time.monotonic() < self._end_s, text
            assert self._read(), text
        return text

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that stays on the terminal, line by line, as it was scrolled."""
        while self._read():
            assert time.monotonic() < self._end_s
        above = [
            "".join(line[column].data for column in range(self._screen.columns)) for line in self._screen.history.top
        ]
        return self._process.wait(10), "\n".join([*above, *self._screen.display])

    def _read(self) -> bool:
        """False where everybody who could write has ended."""
        if not select.select([self._ours], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


def unbroken(text: str) -> str:
    return " ".join(text.split())


def samples_of(results: Path) -> list[dict[str, Any]]:
    (path,) = results.glob("*/samples.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"ms": 1e-3, "s": 1.0}[unit]


def test_on_a_terminal_a_plan_shows_each_cell_and_leaves_its_figures_which_are_the_files(server: Truth, tmp_path: Path):
    plan = ("--url", server.url, "--plan", "published", "--config", "T", "-n", "3", "--no-calibrate")
    with Terminal(80, *plan, "--results", str(tmp_path), "--allow", "saturated") as terminal:
        live = terminal.until(re.compile(r"cell [456] of 6: T 256→\d+, steady wave [23] of 3[^%]+ client \w+").search)
        code, text = terminal.end()
    assert code == 0, text
    assert re.search(r"━ +\d+%  0:\d\d elapsed, \d:\d\d left", live)
    frame = unbroken(live[live.index(" elapsed") :])
    assert re.search(r"TTFT (mean|p50) [\d.]+ ms, p99 – · ITL p50 [\d.]+ ms · output [\d.]+ tokens/s", frame), live
    assert re.search(r"\b([4-9]|1[0-2]) complete, 0 not · client (ok|suspect|saturated)", frame), live
    assert " elapsed, " not in text, "the last frame is gone"
    kept = re.findall(
        r"cell (\d) of 6: T 256→(\d+), 3 waves: TTFT p50 ([\d.]+ m?s), p99 – · ITL p50 ([\d.]+ m?s|–) · output "
        r"([\d.]+) tokens/s · (\d+) complete, 0 not · client \w+",
        unbroken(text.replace("T 512→1,", "T 256→1,").replace("T 768→1,", "T 256→1,")),
    )
    assert [number for number, *_ in kept] == list("123456"), text
    steady: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples_of(tmp_path):
        if sample["phase"] == "steady":
            steady[sample["cell"]["input_tokens"], sample["cell"]["new_tokens"]].append(sample)
    for (_, _, ttft, itl, output, complete), samples in zip(kept, steady.values(), strict=True):
        assert int(complete) == len(samples) == 12
        ttfts_s = [(each["events"][0][0] - each["started_ns"]) / 1e9 for each in samples]
        assert seconds(ttft) == pytest.approx(np.median(ttfts_s), rel=SHOWN)
        gaps_s = [gap / 1e9 for each in samples for gap in np.diff([event[0] for event in each["events"]])]
        assert itl == "–" if not gaps_s else seconds(itl) == pytest.approx(np.median(gaps_s), rel=SHOWN)
        wall_ns = max(each["ended_ns"] for each in samples) - min(each["scheduled_ns"] for each in samples)
        tokens = sum(each["got"]["new_tokens"] for each in samples)
        assert float(output) == pytest.approx(tokens / wall_ns * 1e9, rel=SHOWN)


def test_ctrl_c_on_a_narrow_terminal_without_colours_leaves_it_as_it_was(server: Truth, tmp_path: Path):
    free = ("--url", server.url, "-u", "3", "-t", "60s", "--input-tokens", "20", "--new-tokens", "40")
    with Terminal(40, *free, "--results", str(tmp_path), NO_COLOR="1") as terminal:
        live = terminal.until(lambda text: re.search(r"[1-9]\d* complete", text))
        terminal.press(b"\x03")
        code, text = terminal.end()
    assert code == 130, text
    assert all(part in unbroken(live) for part in ("3 users 20→40", "TTFT", "ITL", "tokens/s", " left")), live
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
    assert not re.search(rb"\x1b\[(\d+;)*([34]\d|[34]8;5;\d+)m", terminal.raw)
    assert " elapsed, " not in text
    assert "Traceback" not in text
    samples = samples_of(tmp_path)
    complete = sum(sample["verdict"] == "complete" for sample in samples)
    assert f"{complete} complete, {len(samples) - complete} not" in unbroken(text), "which were written"
    assert "3 users 20→40, ended early: TTFT" in unbroken(text)
