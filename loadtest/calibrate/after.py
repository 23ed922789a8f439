"""The calibration that every run makes: a few seconds for each load of its own, when all that it measures is on disk.

Before the run nobody knows how fast the endpoint's tokens come, and so what work the client has; afterwards the samples
say, and nothing that happens here can touch a figure.
"""

from __future__ import annotations

from loadtest.calibrate.replay import replay  # isort: skip  (first: it patches)

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from loadtest.arrivals import Arrivals
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


def share(folder: Path, processes: int) -> dict[str, Any]:
    """What each of so many processes is to replay of a run that they made together: `replay_share` takes it.

    Raises: ShapeError; as `shapes_of`.
    """
    shape, cells = next(heaviest(shapes_of(folder)))
    return {
        "shape": shape.among(processes).said(),
        "seconds": SECONDS,
        "cells": [asdict(cell) for cell in cells],
    }


def replay_share(asked: Mapping[str, Any]) -> dict[str, Any]:
    """{"load": CALIBRATED} or {"problem": why there is none}. Raises nothing but an interruption."""
    said, cells = asked["shape"], [Cell(**cell) for cell in asked["cells"]]
    arrivals = Arrivals(**said["arrivals"]) if said["arrivals"] else None
    try:
        return {"load": replay(Shape(**{**said, "arrivals": arrivals}), asked["seconds"], cells)}
    except Exception as error:  # our own bug is no reason to lose a report
        return {"problem": hide(str(error) or repr(error))}


def _of_run(folder: Path) -> list[tuple[Shape, float, Sequence[Cell]]]:
    """Raises: ShapeError where the load can't be replayed."""
    of = list(islice(heaviest(shapes_of(folder)), MOST_LOADS))
    for shape, _ in of:
        say(f"calibrating the client's own clock, {SECONDS:g} s: {load_said(shape.said())}")
    return [(shape, SECONDS, cells) for shape, cells in of]
