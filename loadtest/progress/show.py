"""Where progress is shown: on a terminal in place, elsewhere a line now and then. On stderr: stdout has the result."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Protocol

from loadtest.progress.figures import Figures, counts, health, speed
from loadtest.progress.unhurried import Unhurried

QUIET_S = 5.0  # between two lines of a log
DUMB = ("dumb", "unknown")  # terminals that can't move their cursor


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands, at one instant."""

    share: float  # that is done, 0 to 1
    elapsed_s: float
    left_s: float | None  # None while nobody can say
    what: str
    figures: Figures | None  # None where nothing is measured


class Show(Protocol):
    period_s: float  # between two drawings

    def draw(self, standing: Standing) -> None: ...

    def keep(self, what: str, seen: Figures) -> None:
        """A cell is over: its figures stay to be read."""

    def close(self) -> None: ...


def shown() -> Show:
    if sys.stderr is None or sys.stderr.closed:  # `2>&-`
        return Nowhere()
    movable = sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in DUMB
    if movable and _any_sign(sys.stderr.encoding):
        from loadtest.progress.screen import Screen

        return Screen()
    return Lines()


def _any_sign(encoding: str) -> bool:
    """Whether all of Unicode can be written: what is escaped instead is wider than it was counted."""
    try:
        chr(sys.maxunicode).encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


class Nowhere:
    """For nobody."""

    period_s = QUIET_S

    def draw(self, standing: Standing) -> None:
        pass

    def keep(self, what: str, seen: Figures) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """For a log: whole lines, with the same figures at the same place in each. One that nobody takes is left out."""

    period_s = QUIET_S

    def __init__(self) -> None:
        self._out = Unhurried(sys.stderr)

    def draw(self, standing: Standing) -> None:
        if self._out.idle():
            self._write(f"{standing.share:.0%}", standing.what, *said(standing.figures), times(standing))

    def keep(self, what: str, seen: Figures) -> None:
        self._write(what, *said(seen))

    def close(self) -> None:
        self._out.close()

    def _write(self, *parts: str) -> None:
        self._out.write(f"tokenclock: {' | '.join(parts)}\n")


def said(seen: Figures | None) -> list[str]:
    return [] if seen is None else [*speed(seen), counts(seen), health(seen)]


def times(standing: Standing) -> str:
    """`1:03 elapsed, 1:27 left`."""
    left = "" if standing.left_s is None else f", {clock(standing.left_s)} left"
    return f"{clock(standing.elapsed_s)} elapsed{left}"


def clock(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
