"""The calibration that every run makes: a few seconds for each load of its own, when all that it measures is on disk.

Before the run nobody knows how fast the endpoint's tokens come, and so what work the client has; afterwards the samples
say, and nothing that happens here can touch a figure.
"""

from __future__ import annotations

from loadtest.calibrate.replay import replay  # isort: skip  (first: it patches)

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from loadtest.calibrate.shape import Shape, heaviest, shapes_of
from loadtest.interruption import interruptible
from loadtest.loads import say
from loadtest.plan import Cell
from loadtest.redaction import hide
from loadtest.report.clock import load_said

SECONDS = 3.0  # of each load
MOST_LOADS = 2  # with two processes started and what runs at the end, 10 s at most


def calibration(folder: Path) -> dict[str, Any]:
    """What run.json's `calibration` holds: loads, the heaviest of each concurrency, or why there are none.

    Raises nothing: a run isn't spoilt by what is said about it.
    """
    loads: list[dict[str, Any]] = []
    try:
        problem = interruptible(lambda: loads.extend(replay(*each) for each in _of_run(folder)))
    except Exception as error:  # our own bug is no reason to lose a report
        problem = error
    return {"loads": loads, "reason": None if problem is None else hide(str(problem) or repr(problem))}


def _of_run(folder: Path) -> list[tuple[Shape, float, Sequence[Cell]]]:
    """Raises: ShapeError where the load can't be replayed."""
    of = list(islice(heaviest(shapes_of(folder)), MOST_LOADS))
    for shape, _ in of:
        say(f"calibrating the client's own clock, {SECONDS:g} s: {load_said(shape.said())}")
    return [(shape, SECONDS, cells) for shape, cells in of]
