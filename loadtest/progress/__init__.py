"""Where a run stands: which cell of how many, its figures so far, how the client does, and about how much time is left.

The figures are those of `loadtest/live`, since the cell, or the phase of it, began. They are computed and drawn in a
greenlet, where no stream has anything to do, so that nothing is read late for their sake.
"""

from __future__ import annotations

import time
from types import TracebackType

import gevent

from loadtest.breath import breathe
from loadtest.live.processes import Processes
from loadtest.live.state import State
from loadtest.plan import Cell
from loadtest.progress.figures import figures
from loadtest.progress.show import Show, Standing, shown
from loadtest.redaction import hide

PREFILL_PER_DECODE = 16  # prompt tokens that cost about what one decode step costs: only the time left hangs on it
BATCH_COST = 0.15  # what one more stream adds to a decode step, likewise
STARTING = 2000  # what starting a server costs, likewise


def effort(cell: Cell) -> float:
    """A guess at what a wave of a cell costs, in decode steps."""
    asked = cell.demands(None)
    alone = asked.new_tokens * (1 + BATCH_COST * (cell.concurrency - 1))
    return cell.concurrency * (asked.input_tokens or 0) / PREFILL_PER_DECODE + alone


class Progress:
    """Of a run, shown for as long as a `with` block runs."""

    def __init__(
        self,
        processes: Processes,
        total: float,
        *,
        done: float = 0.0,
        unit_s: float | None = None,
        cells: int = 1,
        over: int = 0,
        title: str = "",
    ) -> None:
        """total, done: of the work, in units that take `unit_s` seconds each; None: as long as they have taken so far.
        cells, over: how many there are, and were measured before. title: what comes before a cell's name.
        """
        self._processes, self._total, self._done, self._unit_s = processes, total, done, unit_s
        self._before_s = self._moved_s = time.monotonic()
        self._before = done
        self._cells, self._number, self._title = cells, over, title
        self._label: str | None = None
        self._what = ""
        self._since: dict[str, State] = {}
        self._show: Show | None = None
        self._greenlet: gevent.Greenlet | None = None

    def __enter__(self) -> Progress:
        self._show = shown()
        self._greenlet = gevent.spawn(self._watch, self._show)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._show is not None
        assert self._greenlet is not None
        try:
            self._greenlet.kill(block=False)  # to wait for it would let in what may end this one meanwhile
            self.over("done" if kind is None else "ended early")
        finally:
            self._show.close()

    def cell(self, label: str) -> None:
        """The next cell begins."""
        self._number, self._label, self._what = self._number + 1, label, ""
        self.anew()

    def anew(self) -> None:
        """From here on the figures are those of what comes."""
        self._since = {}
        for state in self._processes.states():
            self._since[state.test] = state.since(None)
            state.first_s = None  # the wall of what comes begins with its own first request

    def now(self, what: str) -> None:
        """What is done now: of the cell, or between two."""
        self._what = what

    def advance(self, done: float) -> None:
        self._done = min(self._done + done, self._total)
        self._moved_s = time.monotonic()

    def over(self, what: str) -> None:
        """The cell has ended, where one runs; `what` says how. Its figures stay to be read."""
        if self._label is not None:
            assert self._show is not None
            self._what = what
            self._show.keep(self._said(), figures(self._states()))
            self._label, self._what = None, ""

    def _watch(self, show: Show) -> None:
        while True:
            gevent.sleep(show.period_s)
            breathe()
            standing = self._standing()
            breathe()
            show.draw(standing)

    def _standing(self) -> Standing:
        now_s = time.monotonic()
        seen = figures(self._states()) if self._label is not None else None
        share = self._done / self._total if self._total else 1.0
        return Standing(share, now_s - self._before_s, self._left_s(now_s), self._said(), seen)

    def _left_s(self, now_s: float) -> float | None:
        unit_s = self._unit_s
        if unit_s is None and self._done > self._before:
            unit_s = (self._moved_s - self._before_s) / (self._done - self._before)
        return None if unit_s is None else max(0.0, (self._total - self._done) * unit_s - (now_s - self._moved_s))

    def _said(self) -> str:
        """`cell 5 of 12: T 256→768, steady wave 3 of 10`."""
        if self._label is None:
            return _harmless(self._what)
        number = f"cell {self._number} of {self._cells}: " if self._cells > 1 else ""
        return _harmless(f"{number}{self._title}{self._label}" + (f", {self._what}" if self._what else ""))

    def _states(self) -> list[State]:
        return [state.since(self._since.get(state.test)) for state in self._processes.states()]


def _harmless(text: str) -> str:
    """Without secrets, and without what a terminal obeys: a file's name may hold anything."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in hide(text))
