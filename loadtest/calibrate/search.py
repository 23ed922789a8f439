"""The highest load whose error stays under a bound: doubled until it doesn't, then bisected, for a limited time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PRECISION = 0.05  # of the load: a search that is as near has ended
ATTEMPTS = 2  # a level is over the bound where so many attempts of as many are: a machine hiccups


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one try of a load came to."""

    over: str | None = None  # in what it passed the bound, a clause
    unproven: str | None = None  # why it says nothing of the client: the server couldn't keep its schedule, say


@dataclass(frozen=True, slots=True)
class Found:
    under: float | None  # the highest load that stayed under the bound; None of none
    over: float | None  # the lowest that didn't; None where none was met
    why: str | None  # what the lowest passed
    ended: str  # a clause: what ended the search


def highest(
    start: float, whole: bool, attempt: Callable[[float], Attempt], in_time: Callable[[], bool], least: float = 1.0
) -> Found:
    """Doubles from `start` while loads stay under the bound (halves, down to `least`, where even that is over), then
    bisects until the two ends are within `PRECISION`, or next to each other where loads are whole.

    in_time: whether there is time for one more attempt. `start` is tried in any case.
    """
    under = over = why = None
    level = start
    while True:
        tried = attempt(level)
        for _ in range(ATTEMPTS - 1):
            if tried.over is not None and tried.unproven is None and in_time():
                tried = attempt(level)
        if tried.unproven is not None:
            return Found(under, over, why, tried.unproven)
        if tried.over is None:
            under = level
        else:
            over, why = level, tried.over
        if under is not None and over is not None and over - under <= max(PRECISION * under, 1.0 if whole else 0.0):
            return Found(under, over, why, "the two are next to each other")
        if under is None and level <= least:
            return Found(under, over, why, "there is no lower load")
        if not in_time():
            return Found(under, over, why, "the time was over")
        level = _next(under, over, whole, least)


def _next(under: float | None, over: float | None, whole: bool, least: float) -> float:
    if over is None:
        assert under is not None
        return 2 * under
    level = max(least, over / 2) if under is None else (under + over) / 2
    return float(max(round(level), 1)) if whole else level
