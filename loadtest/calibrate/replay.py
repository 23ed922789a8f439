"""A load replayed: the truth server in a process of its own, and in this one what a run does, down to the files.

The users, the transport, the endpoint's reader, the verdicts, the recorder and its books are those of a run; only what
they talk to is another server, on loopback, without TLS.
"""

from __future__ import annotations

from loadtest.loads import Options, measure_plan  # isort: skip  (first: it patches)

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest.calibrate.errors import compared
from loadtest.calibrate.shape import Shape
from loadtest.endpoints.choice import Wanted
from loadtest.free import measure_free, measure_open
from loadtest.interruption import GaveUp
from loadtest.plan import Cell, Config, Plan
from loadtest.record import Recorder
from loadtest.sample import read_samples
from loadtest.site import Look, Site
from loadtest.transport.base import Timeouts
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls
from loadtest.truth import truth
from loadtest.truth.wire import MODEL

PATIENCE = Timeouts(connect_s=10, first_byte_s=15, gap_s=15, total_s=30)  # a client that is slower is told so
LEAST_WAVES = 2


class OnLoopback(Look):
    """A look at the truth server, of which nothing has to be proved or told: a word is a token there."""

    def at(self, url: str, seed: str, lengths: Iterable[int], total_tokens: int) -> Site:
        return replace(super().at(url, seed, (), total_tokens), notes=())


def replay(shape: Shape, seconds: float, cells: Sequence[Cell] = (), seed: int = 1) -> dict[str, Any]:
    """CALIBRATED of the package's docstring. Requests are begun for `seconds` seconds.

    Runs in the greenlet that an interruption ends; changes nothing but a temporary folder.

    Raises: GaveUp, EndpointError where it can't be measured, with the reason.
    """
    try:
        return _replayed(shape.within(seconds), shape.first_s, seconds, cells, seed)
    except (OSError, RuntimeError, ModuleNotFoundError) as error:
        raise GaveUp(f"there is nothing to measure the clock by: {error}") from error


def _replayed(shape: Shape, first_s: float, seconds: float, cells: Sequence[Cell], seed: int) -> dict[str, Any]:
    schedule = {"first": shape.first_s, "gap": shape.gap_s, "event_bytes": shape.event_bytes, "seed": seed}
    core = free_core()
    with (
        TemporaryDirectory(prefix="tokenclock-") as made,
        truth(**schedule, openai=shape.protocol != "tgi", **({} if core is None else {"cpu": core})) as server,
    ):
        options = _options(shape, server.url, seconds, seed)
        recorder = Recorder(Path(made), "calibration", plan=None, configs=[], waves=None, seed=seed, options={})
        try:
            if options.plan is not None:
                measure_plan(options, options.plan, recorder)
            elif options.arrivals is not None:
                measure_open(options, options.arrivals, recorder)
            else:
                measure_free(options, recorder)
        finally:
            recorder.close(interrupted=False)
        samples = list(read_samples(recorder.folder / "samples.jsonl"))
        (seen,) = json.loads((recorder.folder / "run.json").read_text(encoding="utf-8"))["client"] or [None]
        found = compared(samples, server.records(), seen, shape.gap_s, first_s)
    if not found["paired"]:
        raise GaveUp(f"no request was seen whole by both sides in {seconds:g} s; verdicts: {found['verdicts']}")
    return {"shape": shape.said(), "seconds": seconds, "cells": [cell.label for cell in cells], **found}


def free_core() -> int | None:
    """A core for the truth server, where this process is kept from one; None where the system may choose."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    ours = os.sched_getaffinity(0)
    for core in sorted(set(range(os.cpu_count() or 1)) - ours):
        try:
            os.sched_setaffinity(0, {core})
        except OSError:  # of a container, and not for us
            continue
        os.sched_setaffinity(0, ours)
        return core
    return None


def _options(shape: Shape, url: str, seconds: float, seed: int) -> Options:
    waves = max(LEAST_WAVES, int(seconds / shape.stream_s)) if shape.in_waves else 0
    tls = Tls()
    return Options(
        url=url,
        serve=None,
        serve_timeout_s=0,
        results=Path(),
        seed=seed,
        timeouts=PATIENCE,
        look=OnLoopback(
            connecting(shape.transport, tls),
            controlling("gevent", tls),
            Wanted(shape.protocol, None if shape.protocol == "tgi" else MODEL, transport=shape.transport),
        ),
        allow=frozenset(),
        calibrate=False,
        plan=Plan("calibration", (), ((shape.input_tokens, shape.tokens),)) if waves else None,
        configs=(Config("calibration", shape.concurrency, shape.concurrency),),
        waves=waves,
        warmup_waves=1,
        users=shape.concurrency,
        run_time_s=seconds,
        arrivals=shape.arrivals,
        input_tokens=shape.input_tokens,
        new_tokens=shape.tokens,
        dataset=None,
        dataset_order="shuffle",
        title="" if waves else "calibration, ",  # a plan's cell is called so itself
    )
