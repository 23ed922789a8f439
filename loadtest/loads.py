"""A load on an endpoint, from the first look to the last sample: a plan in waves. A free run's: `free.py`.

What is measured goes to a recorder; who asked for it, and what becomes of it, is none of this module's business.
"""

from __future__ import annotations

from loadtest.runner import Load, Running, spawned  # isort: skip  (first: importing locust patches sockets)

import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gevent

from loadtest.arrivals import Arrivals
from loadtest.datasets import Dataset
from loadtest.datasets import Order as DatasetOrder
from loadtest.dispatch import Dispatch, Waves, ids
from loadtest.distributed.spread import Spread
from loadtest.interruption import GaveUp
from loadtest.kept import NOTHING, Kept, Lack
from loadtest.live.counting import Live
from loadtest.live.processes import Alone
from loadtest.monitor import Monitor
from loadtest.plan import Config, Plan
from loadtest.progress import STARTING, Progress, effort
from loadtest.prompts import PromptError
from loadtest.record import Recorder
from loadtest.redaction import hidden, hide
from loadtest.sample import Sample
from loadtest.served import served
from loadtest.site import Look, Site
from loadtest.transport.base import Timeouts

HOPELESS_WAVES = 3  # in a row without one complete request: the endpoint is gone


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. Either `plan`, or `users` and `run_time_s`."""

    url: str | None
    serve: str | None
    serve_timeout_s: float
    results: Path
    seed: int
    timeouts: Timeouts
    look: Look  # at the endpoint, before
    allow: frozenset[str]
    calibrate: bool  # the client's clock, after the cells
    plan: Plan | None
    configs: tuple[Config, ...]
    waves: int
    warmup_waves: int
    users: int
    run_time_s: float
    arrivals: Arrivals | None  # None: a closed loop
    input_tokens: int
    new_tokens: int
    dataset: Dataset | None  # None: prompts are made
    dataset_order: DatasetOrder
    spread: Spread | None = None  # over several processes; None: this one alone
    live: Live = field(default_factory=Live)  # what is known while it runs
    title: str = ""  # what its progress is called


@contextmanager
def serving(options: Options, config: Config | None, recorder: Recorder) -> Iterator[tuple[str, str | None]]:
    """(URL, command): a server of our own, or the one at --url, which has no command."""
    if options.serve is None:
        assert options.url is not None, "the command line makes sure of --url or --serve"
        yield options.url, None
        return
    slots = config.slots if config else options.users
    name = config.name if config else "run"
    say(f"serving {name}: {slots} slot{'s' if slots != 1 else ''}")
    log = recorder.folder / f"server-{name}{f'-{recorder.process}' if recorder.process else ''}.log"
    with served(options.serve, slots, log, options.serve_timeout_s) as found:
        yield found


@contextmanager
def site(
    options: Options, config: Config | None, recorder: Recorder, look: Callable[[str, str], Site], kept: Kept = NOTHING
) -> Iterator[Site]:
    """The endpoint to measure for a configuration: a server of our own, or the one at --url.

    look: at a URL, with a seed for the prompts: a process of its own for each that goes on with a run, since a prompt
    that was sent before may be in a cache. kept: what such a run has.

    Raises: EndpointError where it can't be measured, or is another than the one that the run was begun with.
    """
    again = f"-{recorder.process}" if recorder.process else ""
    with serving(options, config, recorder) as (url, command):
        found = look(url, f"{options.seed}-{config.name if config else 'free'}{again}")
        for note in found.notes:
            say(note)
        of, about = config.name if config else None, found.description
        kept.check(of, url, found.endpoint.protocol, hidden(about.info), about.slots)
        recorder.endpoint(of, url, found.endpoint.protocol, about.info, command)
        yield found


def measure_plan(options: Options, plan: Plan, recorder: Recorder, kept: Kept = NOTHING) -> None:
    """Every configuration, every cell: warm-up waves, then the waves that count. kept: what a run that goes on has."""
    cells = [cell for config in options.configs for cell in plan.cells(config, None)]
    lacking = {config: kept.lacking(plan.cells(config, None), options.waves) for config in options.configs}
    lacks = list(itertools.chain(*lacking.values()))
    starting = STARTING if options.serve else 0
    done = sum(options.waves * effort(cell) for cell in cells) - sum(waves * effort(cell) for cell, waves, _ in lacks)
    left = sum((options.warmup_waves + waves) * effort(cell) for cell, waves, _ in lacks)
    left += starting * sum(map(bool, lacking.values()))
    lengths = [input_tokens for input_tokens, _ in plan.encoding + plan.generation]

    def look(url: str, seed: str) -> Site:
        return options.look.at(url, seed, lengths, plan.max_total_tokens)

    next_id = ids(recorder.run, recorder.process)
    with Progress(
        Alone(options.live),
        done + left,
        done=done,
        cells=len(cells),
        over=len(cells) - len(lacks),
        title=options.title,
    ) as progress:
        for config in (each for each in options.configs if lacking[each]):
            progress.now(f"{config.name}: starting")
            with site(options, config, recorder, look, kept) as found:
                progress.advance(starting)
                dispatch = Waves(found.prompts, next_id)
                load = load_of(found, dispatch, options, recorder)
                with spawned(load, config.concurrency) as users:
                    for lack in kept.lacking(plan.cells(config, found.description.slots), options.waves):
                        _measure_cell(lack, found, dispatch, users, options, recorder, progress)


def _measure_cell(
    lack: Lack, found: Site, dispatch: Waves, users: Running, options: Options, recorder: Recorder, progress: Progress
) -> None:
    cell, hopeless = lack.cell, 0

    def measure(phase: str, count: int) -> None:
        nonlocal hopeless
        progress.anew()
        progress.now(f"{phase} wave 1 of {count}")
        for wave, samples in enumerate(dispatch.run(cell, phase, count, lack.first), 1):
            progress.advance(effort(cell))
            progress.now(f"{phase} wave {min(wave + 1, count)} of {count}")
            users.books.settle()
            hopeless = 0 if any(sample.complete for sample in samples) else hopeless + 1
            if hopeless == HOPELESS_WAVES:
                raise GaveUp(f"{HOPELESS_WAVES} waves in a row without a complete request; the last: {_why(samples)}")

    progress.cell(cell.label)
    measure("warmup", options.warmup_waves)
    found.metrics.before()
    monitor = Monitor(options.live.loop_lags_s)
    monitor.start()
    try:
        measure("steady", lack.waves)
    finally:
        recorder.client(cell, monitor.stop())
    progress.over(f"{lack.waves} wave{'s' if lack.waves != 1 else ''}")
    recorder.server_metrics(found.metrics.after(cell, ["steady"]))


def load_of(found: Site, dispatch: Dispatch, options: Options, recorder: Recorder) -> Load:
    work = gevent.getcurrent()

    def fail(error: Exception) -> None:
        if not isinstance(error, PromptError | OSError):
            logging.getLogger(__name__).error("a user failed", exc_info=error)
        work.kill(GaveUp(f"the run can't go on: {error}"), block=False)

    run, process = recorder.run, recorder.process
    return Load(
        found.target, found.connect, found.endpoint, dispatch, run, process, options.timeouts, recorder.add, fail,
        live=options.live,
    )  # fmt: skip


def _why(samples: list[Sample]) -> str:
    return f"{samples[-1].verdict}: {samples[-1].detail}"


def say(sentence: str) -> None:
    print(hide(f"tokenclock: {sentence}"), file=sys.stderr, flush=True)
