"""The verb `calibrate`: the errors of one load or of a run's, and the highest load whose errors stay under a bound.

Exit codes: 0 calibrated; 1 calibrated, but the client was saturated, requests weren't complete, or a load of several
couldn't be measured; 2 nothing could be calibrated; 130 interrupted, with what was measured until then.
"""

from __future__ import annotations

from loadtest.calibrate.replay import replay  # isort: skip  (first: it patches)

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import __version__
from loadtest.calibrate.errors import worst
from loadtest.calibrate.search import Attempt, highest
from loadtest.calibrate.shape import Shape, ShapeError, shapes_of
from loadtest.calibrate.text import render
from loadtest.endpoints.base import EndpointError
from loadtest.interruption import GaveUp, Interrupted, interruptible
from loadtest.loads import say
from loadtest.machine import machine, versions
from loadtest.plan import Cell
from loadtest.report.clock import ERRORS, load_said
from loadtest.report.numbers import quantity

SCHEMA = 1
LEAST_RATE_PER_S = 0.1
MOST_DRAIN = 1.5  # what an attempt may take, of the time that requests are begun in it


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for: a shape, or the folder of a run."""

    shape: Shape | None
    like: Path | None
    event_bytes: int  # of a run's load; 0: what its files say
    seconds: float
    bound_s: float
    search_s: float | None  # how long the highest load may be looked for; None: it isn't
    allow_saturated: bool
    as_json: bool


def run(options: Options) -> int:
    try:
        wanted = [(options.shape, ())] if options.shape else of_run(options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, ShapeError) else f"{error!r}; it needs samples.jsonl and run.json"
        say(f"{options.like} can't be replayed: {why}")
        return 2
    loads: list[dict[str, Any]] = []
    found: dict[str, Any] | None = None

    def work() -> None:
        nonlocal found
        for shape, cells in wanted:
            say(f"calibrating: {load_said(shape.said())}")
            loads.append(replay(shape, options.seconds, cells))
        if options.search_s is not None:
            heaviest = max(range(len(wanted)), key=lambda i: wanted[i][0].events_per_s)
            found = search(wanted[heaviest][0], loads[heaviest], options)

    problem = interruptible(work)
    if problem is not None:
        say(str(problem))
    if loads:
        print(json.dumps(said(loads, found), indent=1) if options.as_json else render(loads, found))
    if isinstance(problem, Interrupted):
        return 130
    if not loads:
        return 2
    saturated = any(load["client"]["saturated"] for load in loads) and not options.allow_saturated
    incomplete = any(verdict not in ("complete", "cancelled") for load in loads for verdict in load["verdicts"])
    return 1 if saturated or incomplete or problem is not None else 0


def of_run(options: Options) -> list[tuple[Shape, Sequence[Cell]]]:
    """A shape for each cell of --like. Raises: as `shapes_of`."""
    assert options.like is not None, "the command line makes sure of a load or --like"
    return [(shape, (cell,)) for cell, shape in shapes_of(options.like, options.event_bytes).items()]


def search(shape: Shape, known: dict[str, Any], options: Options) -> dict[str, Any]:
    """The highest level of a load whose errors stay under the bound, as --json has it. Raises: as `replay`.

    known: CALIBRATED of the load itself, which the search begins with.
    """
    assert options.search_s is not None
    deadline = time.monotonic() + options.search_s
    first = [known]

    def attempt(level: float) -> Attempt:
        if first:
            return judged(first.pop(), options.bound_s)
        say(f"trying {load_said(shape.at(level).said())}")
        try:
            return judged(replay(shape.at(level), options.seconds), options.bound_s)
        except (GaveUp, EndpointError) as error:  # what was found before it stays
            return Attempt(unproven=f"{level:g} could not be measured: {error}")

    least = 1.0 if shape.arrivals is None else LEAST_RATE_PER_S
    found = highest(
        shape.level,
        shape.arrivals is None,
        attempt,
        lambda: time.monotonic() + MOST_DRAIN * options.seconds < deadline,
        least,
    )
    return {
        "bound_s": options.bound_s,
        "of": "in flight" if shape.arrivals is None else "requests/s",
        "under": found.under,
        "over": found.over,
        "why": found.why,
        "ended": found.ended,
        "shape": shape.within(options.seconds).said(),
    }


def judged(load: dict[str, Any], bound_s: float) -> Attempt:
    """What a load says of the client. Where the server couldn't keep its schedule and the client was not late, nothing:
    it was another load.
    """
    late = worst(load["errors"])
    over = None
    if load["client"]["saturated"]:
        over = f"the client is saturated: {load['client']['reasons'][0]}"
    elif late is None or late > bound_s:
        name, error = max(
            ((title, load["errors"][name]["judged"] or 0.0) for title, name in ERRORS), key=lambda each: each[1]
        )
        over = f"{name} {quantity(error, 's', 3)} off"
    elif not load["schedule_kept"]:
        return Attempt(None, "above it the truth server can't keep its schedule on this machine")
    return Attempt(over)


def said(loads: list[dict[str, Any]], found: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tool": {"name": "tokenclock", "version": __version__},
        "machine": machine(),
        "versions": versions(),
        "loads": loads,
        "highest": found,
    }
