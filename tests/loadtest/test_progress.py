"""What a terminal and a log are told of a run: right figures, nothing half drawn, and nobody waits for a reader.

Method: samples are drawn, and numpy is the oracle. Terminals are pseudo-terminals of the kernel, read by pyte, an
emulator of them; one is stopped as Ctrl-S does it, one is never read. Tolerance: a step of the histogram, and the four
digits that are shown.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import gevent
import numpy as np
import pyte
import pytest

from loadtest.interruption import GaveUp
from loadtest.live.counting import Live
from loadtest.live.processes import Alone
from loadtest.progress import Progress
from loadtest.progress.figures import counts, figures, health, speed
from loadtest.progress.screen import Screen
from loadtest.progress.show import Lines, Show, Standing, clock, shown
from loadtest.progress.unhurried import Unhurried
from loadtest.sample import Sample
from loadtest.stats import itl_s, ttft_s
from loadtest.verdict import Verdict
from tests.loadtest.test_live import drawn, seen_live

SHOWN = 0.0012
SEEN = figures([seen_live(drawn(1, 700)).state().since(None)])


def standing(share: float = 0.42, what: str = "cell 5 of 12: T 256→768, steady wave 3 of 10") -> Standing:
    return Standing(share, 63.2, 87.0, what, SEEN)


def number(what: str, text: str) -> float:
    """In seconds."""
    found = re.search(rf"{what} ([\d.]+) (ms|s)", text)
    assert found is not None, text
    return float(found[1]) * {"ms": 1e-3, "s": 1.0}[found[2]]


def test_figures_are_those_of_what_came_since():
    before, after = drawn(3, 40), drawn(4, 60)
    live = seen_live(before)
    since = live.state().since(None)
    for each in after:
        live.first_token(round((ttft_s(each) or 0) * 1e9))
        live.kept(each)
    seen = figures([live.state().since(since)])
    complete = [each for each in after if each.complete]
    assert 10 < len(complete) == seen.complete < 60
    assert seen.others == {Verdict.TIMEOUT: 60 - len(complete)}
    ttft, itl, _ = speed(seen)
    assert number("TTFT p50", ttft) == pytest.approx(np.median([ttft_s(each) for each in after]), rel=SHOWN)
    assert number("ITL p50", itl) == pytest.approx(np.median([g for s in complete for g in itl_s(s)]), rel=SHOWN)
    assert ttft.endswith("p99 –")
    assert counts(seen) == f"{len(complete)} complete, {60 - len(complete)} not ({60 - len(complete)} timeout)"


def per_second(samples: list[Sample]) -> float:
    """From the first that was due to the last that ended."""
    wall_s = (max(each.ended_ns for each in samples) - min(each.scheduled_ns for each in samples)) / 1e9
    return sum(each.got.new_tokens for each in samples) / wall_s


def test_tokens_a_second_are_those_of_requests_that_ended_over_their_wall_however_long_ago_that_was():
    samples = drawn(5, 30)
    one, long_after = (seen_live(samples, seconds=seconds).state() for seconds in (1, 1000))
    assert figures([one]).output_tokens_per_s == pytest.approx(per_second(samples))
    assert figures([long_after]).output_tokens_per_s == pytest.approx(per_second(samples))
    both = figures([one, seen_live(samples, process=1, seconds=1).state()])
    assert both.output_tokens_per_s == pytest.approx(2 * per_second(samples))


def test_a_cell_s_tokens_a_second_count_from_its_own_first_request():
    now_ns = 0
    live = Live(clock=lambda: now_ns)
    progress = Progress(Alone(live), total=1)
    for each in drawn(7, 20):
        live.kept(each)
    now_ns = 50_000_000_000
    progress.cell("T 256→768")
    late_ns = 10_000_000_000  # until the first request, while prompts are drawn
    samples = [
        replace(each, scheduled_ns=each.scheduled_ns + now_ns + late_ns, ended_ns=each.ended_ns + now_ns + late_ns)
        for each in drawn(8, 20)
    ]
    for each in samples:
        live.kept(each)
    assert figures(progress._states()).output_tokens_per_s == pytest.approx(per_second(samples))


def test_before_there_is_a_median_a_mean_is_called_one_and_of_nothing_there_is_nothing():
    few = drawn(6, 4)
    assert number("TTFT mean", speed(figures([seen_live(few).state()]))[0]) == pytest.approx(
        np.mean([ttft_s(each) for each in few]), rel=SHOWN
    )
    nothing = figures([seen_live([]).state()])
    assert speed(nothing) == ["TTFT p50 –, p99 –", "ITL p50 –", "output –"]
    assert counts(nothing) == "0 complete, 0 not"


def test_the_client_is_as_its_worst_process_is():
    well, late = seen_live([], process=0), seen_live([], process=1)
    late.loop_lags_s.update({0.5: 1000})
    seen = figures([well.state(), late.state()])
    assert health(seen).startswith("client saturated: process 1: the event loop's lag is 499.")
    assert health(figures([well.state()])) == "client ok"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_times_are_read_as_on_a_clock(seconds: float, said: str):
    assert clock(seconds) == said


def test_time_left_is_what_the_rest_takes_at_the_pace_so_far():
    progress = Progress(Alone(), total=30, done=10, cells=3, over=1)
    assert progress._left_s(progress._before_s) is None, "what was done before took no time of ours"
    progress.advance(5)
    begun_s = progress._before_s = progress._moved_s - 100
    assert progress._left_s(begun_s + 100) == pytest.approx(300)
    assert progress._left_s(begun_s + 140) == pytest.approx(260)
    assert progress._left_s(begun_s + 1000) == 0


def say(sentence: str) -> None:
    """As a run does."""
    print(f"tokenclock: {sentence}", file=sys.stderr, flush=True)


class Terminal:
    """Both ends of a pseudo-terminal."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.ours, self.theirs = os.openpty()
        self.resize(columns)
        self.file = os.fdopen(self.theirs, "w", encoding="utf-8", buffering=1)  # as stderr is
        self.raw = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen = pyte.HistoryScreen(columns, 24, history=1000)
        self._stream = pyte.ByteStream(self.screen)

    def shown(self) -> Show:
        """As a process shows its progress whose stderr this is."""
        self._monkeypatch.setattr(sys, "stderr", self.file)  # not in a fixture: pytest sets it again after that
        return shown()

    def read(self) -> list[str]:
        """What is on it."""
        while select.select([self.ours], [], [], 0.05)[0]:
            data = os.read(self.ours, 65536)
            self.raw += data
            self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal(80, monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((made.screen.columns, 24)))
    yield made
    made.file.close()
    os.close(made.ours)


def test_a_name_cannot_command_the_terminal_nor_break_a_line(capsys: pytest.CaptureFixture[str]):
    with Progress(Alone(), total=1, title="\x1b[2J") as progress:
        progress.cell("8 users, a\nb\x9b0m\u202e.jsonl")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tokenclock: �[2J8 users, a�b�0m�.jsonl, done | TTFT")


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_every_word_is_there_however_narrow_the_terminal(terminal: Terminal, columns: int):
    terminal.resize(columns)
    screen = terminal.shown()
    screen.draw(standing())
    shown_words = " ".join(terminal.read()).replace("━", "").replace("╸", "").replace("╺", "").split()
    said = [" 42% ", "1:03 elapsed, 1:27 left", standing().what, " · ".join(speed(SEEN)), counts(SEEN), health(SEEN)]
    assert shown_words == " ".join([*said[:-1], "·", said[-1]]).split()
    assert ("━━" in terminal.raw.decode()) == (columns >= 40)
    screen.close()
    assert terminal.read() == [], "nothing is left of it"


def test_what_is_said_meanwhile_stands_above_whole_and_stays(terminal: Terminal):
    screen = terminal.shown()
    sentences = [f"process {i} is gone, and its 8 users with it, which is a long sentence" for i in range(3)]
    for sentence in sentences:
        screen.draw(standing())
        say(sentence)
    screen.keep("cell 5 of 12: T 256→768, 10 waves", SEEN)
    screen.draw(standing(0.5))
    lines = terminal.read()
    assert lines[:3] == [f"tokenclock: {sentence}" for sentence in sentences]
    assert lines[3].startswith("cell 5 of 12: T 256→768, 10 waves: TTFT p50")
    assert sum("elapsed" in line for line in lines) == 1
    screen.close()
    assert not any("elapsed" in line for line in terminal.read())
    assert terminal.read()[:3] == lines[:3]
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l"), "the cursor is back"
    assert sys.stderr is terminal.file


def test_an_end_that_comes_with_the_last_request_leaves_the_terminal_as_it_was(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", terminal.file)

    def work() -> None:
        with suppress(GaveUp), Progress(Alone(), total=1) as progress:
            progress.cell("T 256→768")
            gevent.sleep(0)  # somebody watches now
            gevent.getcurrent().kill(GaveUp, block=False)

    gevent.spawn(work).get()
    assert "T 256→768, done: TTFT" in " ".join(terminal.read())
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l"), "the cursor is back"
    assert sys.stderr is terminal.file


def test_a_window_that_is_made_narrower_gets_whole_frames_from_then_on(terminal: Terminal):
    screen = terminal.shown()
    screen.draw(standing())
    assert len(terminal.read()) == 5
    terminal.resize(40)
    screen.draw(standing())
    assert " ".join(terminal.read()).count("elapsed") == 1
    assert max(map(len, terminal.screen.display)) <= 40
    screen.close()


def test_the_terminal_is_as_wide_as_it_is_whatever_the_environment_says(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "2")
    screen = terminal.shown()
    for step in range(3):
        screen.draw(standing(step / 10))
    lines = terminal.read()
    assert len(lines) == 5
    assert " 20%" in lines[0]
    screen.close()


def test_an_encoding_that_lacks_a_sign_gets_lines(terminal: Terminal):
    terminal.file.reconfigure(encoding="latin-1")
    lines = terminal.shown()
    assert isinstance(lines, Lines)
    lines.draw(standing())
    lines.close()
    assert "T 256\\u2192768" in "".join(terminal.read())
    assert b"\x1b" not in terminal.raw


def test_colours_are_left_out_where_nobody_wants_them(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    for wanted in (True, False):
        if not wanted:
            monkeypatch.setenv("NO_COLOR", "1")
        screen = terminal.shown()
        assert isinstance(screen, Screen)
        screen.draw(standing())
        screen.close()
        terminal.read()
        assert (re.search(rb"\x1b\[(\d+;)*(3|38;5;)\d", terminal.raw) is not None) == wanted
        terminal.raw = b""


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    lines = terminal.shown()
    assert isinstance(lines, Lines)
    lines.draw(standing())
    lines.keep("cell 5 of 12: T 256→768, 10 waves", SEEN)
    lines.close()
    text = " ".join(terminal.read())
    assert text.count("tokenclock: ") == 2
    assert b"\x1b" not in terminal.raw


def test_a_terminal_that_is_stopped_stops_nobody_and_loses_no_sentence(terminal: Terminal):
    screen = terminal.shown()
    screen.draw(standing())
    termios.tcflow(terminal.theirs, termios.TCOOFF)  # Ctrl-S
    for step in range(300):
        screen.draw(standing(step / 1000))
        if step % 100 == 0:
            say(f"sentence {step}")
    termios.tcflow(terminal.theirs, termios.TCOON)
    screen.draw(standing(0.7))
    terminal.read()
    screen.draw(standing(0.7))
    lines = terminal.read()
    assert lines[:3] == [f"tokenclock: sentence {step}" for step in (0, 100, 200)]
    assert " 70%" in lines[3]
    assert sum("elapsed" in line for line in lines) == 1
    screen.close()


def test_nobody_waits_for_a_terminal_that_is_never_read_either_at_the_end(terminal: Terminal):
    screen = terminal.shown()
    assert isinstance(screen, Screen)
    for step in range(400):
        screen.draw(standing(step / 400))  # a terminal takes 64 KiB; this is more
    assert not screen._out.idle()
    screen.close()
    assert terminal.read(), "what it had taken"


def test_nobody_waits_for_a_terminal_that_is_another_user_s():
    pid, ours = pty.fork()
    if pid == 0:  # as after `su`: its own terminal, which it may not open by its name
        try:
            os.fchmod(2, 0)
            if os.geteuid() == 0:
                os.setuid(65534)
            out = Unhurried(os.fdopen(2, "w", encoding="utf-8", closefd=False))
            for _ in range(400):
                out.write("x" * 1000)
            os._exit(4 if out.idle() else 3)
        finally:
            os._exit(5)
    end_s = time.monotonic() + 30
    ended = 0, 0
    while not ended[0] and time.monotonic() < end_s:
        ended = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(ours)
    assert ended[0], "it waits"
    assert os.waitstatus_to_exitcode(ended[1]) == 3


def test_nobody_waits_for_a_log_that_is_never_read_and_none_of_its_lines_is_cut():
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as log, os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as file:
        out = Unhurried(file)
        line = f"{'x' * 250}\n"
        written = 0
        while out.idle():
            out.write(line)
            written += 1
        os.set_blocking(ours, False)
        read = log.read()
        assert out.idle(), "what was left is on its way now"
        read += log.read()
        assert read == line.encode() * written
        out.close()
        file.write("the file itself is still open\n")


@pytest.mark.parametrize("closed", [False, True])
def test_where_stderr_is_closed_nothing_is_shown_and_nothing_ends(monkeypatch: pytest.MonkeyPatch, closed: bool):
    stderr = io.StringIO() if closed else None  # None: closed before Python began
    if stderr:
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(Alone(), total=1) as progress:
        progress.cell("T 256→768")
        assert progress._show is not None
        progress._show.draw(standing())


def test_a_log_that_nobody_reads_any_more_ends_nothing():
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as file:
        out = Unhurried(file)
        out.write("to nobody\n")
        assert out.idle()
        out.close()
