"""Where a run stands: which cell, which wave of how many, and about how much time is left."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from loadtest.plan import Cell

PREFILL_PER_DECODE = 16  # prompt tokens that cost about what one decode step costs: only the time left hangs on it
BATCH_COST = 0.15  # what one more stream adds to a decode step, likewise
STARTING = 2000  # what starting a server costs, likewise
QUIET_S = 5.0  # between two lines where the output isn't a terminal


def effort(cell: Cell) -> float:
    """A guess at what a wave of a cell costs, in decode steps."""
    asked = cell.demands(None)
    alone = asked.new_tokens * (1 + BATCH_COST * (cell.concurrency - 1))
    return cell.concurrency * (asked.input_tokens or 0) / PREFILL_PER_DECODE + alone


class _Lines:
    """A file for tqdm that turns each redrawing of its bar into a line of a log."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress:
    """A bar on a terminal, a line now and then in a log. On stderr: stdout carries the result."""

    def __init__(self, total: float) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            file=sys.stderr if self._terminal else _Lines(),
            mininterval=0.2 if self._terminal else QUIET_S,
            maxinterval=float("inf"),
            smoothing=0.05,
            dynamic_ncols=self._terminal,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def now(self, what: str) -> None:
        self._bar.set_description_str(what, refresh=self._terminal)

    def advance(self, done: float) -> None:
        self._bar.update(min(done, self._total - self._bar.n))
