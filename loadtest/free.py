"""A free run in this process: users in a closed loop for a time, or a schedule in an open one."""

from __future__ import annotations

from loadtest.runner import spawned  # isort: skip  (first: importing locust patches sockets)

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import gevent

from loadtest.arrivals import Arrivals
from loadtest.datasets import DatasetPrompts
from loadtest.dispatch import ClosedLoop, ids
from loadtest.interruption import GaveUp
from loadtest.live.processes import Alone, Processes
from loadtest.loads import Options, load_of, say, site
from loadtest.monitor import Monitor
from loadtest.open_loop import OpenLoop
from loadtest.plan import Cell
from loadtest.progress import Progress
from loadtest.record import Recorder
from loadtest.site import Site

PHASES = ("warmup", "ramp", "steady", "drain")  # of a free run's requests
POLL_S = 0.1


def look_free(options: Options, url: str, seed: str) -> Site:
    """The endpoint of a free run. Raises: EndpointError."""
    if options.dataset is not None:
        return options.look.at_with(url, seed, options.dataset, options.dataset_order)
    return options.look.at(url, seed, [options.input_tokens], options.input_tokens + options.new_tokens)


def free_cell(options: Options, found: Site) -> Cell:
    """The one cell of a free run."""
    cell = Cell(None, found.description.slots, options.users, options.input_tokens, options.new_tokens)
    if options.dataset is None:
        return cell
    return replace(cell, input_tokens=None, new_tokens=None, dataset=options.dataset.name)


@contextmanager
def free_site(options: Options, recorder: Recorder) -> Iterator[tuple[Site, Cell]]:
    """The endpoint and the one cell of a free run, and on the way out what became of its prompts."""
    with site(options, None, recorder, partial(look_free, options)) as found:
        recorder.shared_prefix(options.look.shared.tokens if options.look.shared else 0)
        if not isinstance(prompts := found.prompts, DatasetPrompts):
            yield found, free_cell(options, found)
            return
        recorder.dataset(prompts.said())
        try:
            yield found, free_cell(options, found)
        finally:
            recorder.dataset(prompts.said())
            if said := prompts.repeats(recorder.complete + recorder.other):
                say(said)


def measure_free(options: Options, recorder: Recorder) -> None:
    """`users` users in a closed loop for `run_time_s` seconds; what runs at the end may finish."""
    with free_site(options, recorder) as (found, cell):
        running = 0
        dispatch = ClosedLoop(cell, found.prompts, ids(recorder.run, 0), lambda: (running, options.users))
        load = load_of(found, dispatch, options, recorder)
        monitor = Monitor(options.live.loop_lags_s)
        found.metrics.before()
        with progress_of(options, cell) as progress:
            monitor.start()
            with spawned(load, options.users, drain_s=options.timeouts.total_s) as users:
                for _ in until_over(options.run_time_s, progress):
                    assert users.environment.runner is not None
                    running = users.environment.runner.user_count
                progress.now("the time is over, what runs may finish")
            recorder.client(cell, monitor.stop())
            recorder.server_metrics(found.metrics.after(cell, PHASES))


def measure_open(options: Options, arrivals: Arrivals, recorder: Recorder) -> None:
    """What the schedule says for `run_time_s` seconds, at most `users` at once; the run ends when all of it is done."""
    with free_site(options, recorder) as (found, cell):
        dispatch = OpenLoop(cell, found.prompts, ids(recorder.run, 0), arrivals.offsets_ns(), options.run_time_s)
        load = load_of(found, dispatch, options, recorder)
        monitor = Monitor(options.live.loop_lags_s)
        found.metrics.before()
        recorder.open_loop(arrivals, options.run_time_s, options.users)
        try:
            with progress_of(options, cell) as progress, spawned(load, options.users, drain_s=options.timeouts.total_s):
                dispatch.begin()
                monitor.start()
                for _ in until_over(options.run_time_s, progress):
                    progress.now(f"{dispatch.waiting_late} overdue")
                progress.now("the time is over, what was due is still sent")
                dispatch.join(options.timeouts.total_s)
        finally:
            taken, late, unsent = dispatch.taken, dispatch.late, dispatch.waiting_late
            recorder.schedule(taken, late, unsent)
        recorder.client(cell, monitor.stop())
        recorder.server_metrics(found.metrics.after(cell, PHASES))
        schedule_kept(options, taken, late, unsent)


@contextmanager
def progress_of(options: Options, cell: Cell, processes: Processes | None = None) -> Iterator[Progress]:
    """Of a free run. processes: those that measure it, where it isn't this one."""
    measured = processes or Alone(options.live)
    with Progress(measured, options.run_time_s, unit_s=1.0, title=options.title) as progress:
        progress.cell(cell.label)
        yield progress


def schedule_kept(options: Options, taken: int, late: int, unsent: int) -> None:
    """In words, where it wasn't. Raises: GaveUp where requests were never sent."""
    if not taken:
        raise GaveUp(f"no request was due in {options.run_time_s:g} s: raise --rate or -t")
    busy = f"all {options.users} users were busy"
    if unsent:
        raise GaveUp(f"{unsent} scheduled requests were never sent: {busy}; raise -u or lower --rate")
    if late:
        say(f"{late} of {taken} requests were late because {busy}: raise -u")


def until_over(run_time_s: float, progress: Progress) -> Iterator[None]:
    """Now and then, until a free run's time is over; the bar moves on with it."""
    begun = now = time.monotonic()
    while now < begun + run_time_s:
        gevent.sleep(min(POLL_S, run_time_s))
        yield
        progress.advance(time.monotonic() - now)
        now = time.monotonic()
