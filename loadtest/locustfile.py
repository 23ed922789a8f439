"""What plain `locust` runs: users in a closed loop against a TGI endpoint, with locust's own page and tables.

    locust                      # http://127.0.0.1:8089, then Start
    locust --headless -t 30s    # the table in the terminal

Every request is one row of locust's own; TTFT, ITL and E2E stand beside it and leave `Aggregated` as it is. A test that
runs in one process leaves its raw samples and a report in a folder of `--results-dir`.
"""

from __future__ import annotations

from loadtest.runner import Load, TokenUser  # isort: skip  (first: importing locust patches sockets)

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.arguments import (
    INPUT_TOKENS,
    NEW_TOKENS,
    Usage,
    add_dataset,
    add_endpoint,
    add_wire,
    check_wire,
    dataset,
    shared_prefix,
    wanted,
)
from loadtest.books import Books
from loadtest.datasets import DatasetPrompts
from loadtest.dispatch import ClosedLoop, ids
from loadtest.endpoints.base import EndpointError
from loadtest.extras import needed, remedy, require
from loadtest.live.counting import Live
from loadtest.live.processes import Alone, Workers
from loadtest.live.watch import gather, report, show
from loadtest.monitor import Monitor
from loadtest.plan import Cell
from loadtest.record import Recorder
from loadtest.redaction import guard_logs, hide
from loadtest.report import write
from loadtest.sample import Sample
from loadtest.site import Look
from loadtest.transport.base import Timeouts, monotonic_ns
from loadtest.transport.choice import connecting, controlling, trusting
from loadtest.transport.tls import TlsError

logger = logging.getLogger(__name__)
guard_logs()


class StreamUser(TokenUser):
    """The user that locust spawns; `load` is set when a test starts."""


class Test:
    """Everything between Start and Stop in this process."""

    def __init__(self, environment: Environment) -> None:
        """Raises: Usage; TlsError; ModuleNotFoundError where an extra is missing; EndpointError where the endpoint
        can't be measured; OSError where results can't be written.
        """
        asked = environment.parsed_options
        runner = environment.runner
        assert asked is not None
        assert runner is not None
        process = runner.worker_index if isinstance(runner, WorkerRunner) else 0
        users = runner.target_user_count
        seed = asked.seed or time.time_ns()
        require(*needed(environment.host, asked.tokenizer))
        tls = trusting(asked.transport, asked.cacert and Path(asked.cacert), asked.insecure, asked.http2)
        check_wire(asked, environment.host)
        lines = dataset(asked, None if asked.input_tokens == INPUT_TOKENS else asked.input_tokens)
        if asked.shared_prefix_tokens and isinstance(runner, WorkerRunner) and not asked.seed:
            raise Usage("each worker would draw a prefix of its own: give all of them one --seed")
        look = Look(
            connecting(asked.transport, tls),
            controlling(asked.transport, tls),
            wanted(asked),
            asked.tokenizer and Path(asked.tokenizer),
            shared=shared_prefix(asked, asked.input_tokens, seed),
        )
        url, own_seed = environment.host or "", f"{seed}-{process}"
        if lines is None:
            found = look.at(url, own_seed, [asked.input_tokens], asked.input_tokens + asked.new_tokens)
            self.cell = Cell(None, found.description.slots, users, asked.input_tokens, asked.new_tokens)
        else:
            found = look.at_with(url, own_seed, lines, asked.dataset_order or "shuffle")
            self.cell = Cell(None, found.description.slots, users, None, None, dataset=lines.name)
            if isinstance(runner, WorkerRunner):
                logger.warning("each worker draws from the whole of %s: prompts come once for each", lines.name)
        self.prompts = found.prompts if isinstance(found.prompts, DatasetPrompts) else None
        for note in found.notes:
            logger.info("%s", hide(note))
        self.recorder: Recorder | None = None
        if isinstance(runner, LocalRunner):
            self.recorder = Recorder(
                Path(asked.results_dir),
                f"{users}-users",
                plan=None,
                configs=[],
                waves=None,
                seed=seed,
                options={name: value for name, value in vars(asked).items() if isinstance(value, str | int | float)},
            )
            self.recorder.endpoint(None, found.url, found.endpoint.protocol, found.description.info, None)
            self.recorder.shared_prefix(asked.shared_prefix_tokens)
            if self.prompts:
                self.recorder.dataset(self.prompts.said())
        else:
            logger.info("raw samples are kept by a test in one process only; locust's tables have all requests")
        run = self.recorder.run if self.recorder else "locust"
        dispatch = ClosedLoop(
            self.cell, found.prompts, ids(run, process), lambda: (runner.user_count, runner.target_user_count)
        )
        self.load = Load(
            found.target, found.connect, found.endpoint, dispatch, run, process, Timeouts(), self.keep, self.fail,
            live=Live(process),
        )  # fmt: skip
        self._environment = environment
        self.books = Books(environment, found.endpoint.route, self.keep, self.fail, self.load.live.kept)
        self.monitor = Monitor(self.load.live.loop_lags_s)
        self.monitor.start()

    def keep(self, sample: Sample) -> None:
        if self.recorder:
            self.recorder.add(sample)

    def fail(self, error: Exception) -> None:
        give_up(self._environment, f"the test can't go on: {error}")

    def close(self) -> None:
        self.books.close()
        seen = self.monitor.stop()
        self.load.live.end()
        if self.recorder is None:
            return
        self.recorder.client(self.cell, seen)
        if self.prompts:
            self.recorder.dataset(self.prompts.said())
            if said := self.prompts.repeats(self.recorder.complete + self.recorder.other):
                logger.warning("%s", said)
        self.recorder.close(interrupted=False)
        logger.info("report: %s", write(self.recorder.folder))


running: Test | None = None
alone = Alone()  # what this process sees
workers: Workers | None = None  # what those of a master see


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--input-tokens", type=int, default=INPUT_TOKENS, help="tokens of every prompt, as the server counts"
    )
    parser.add_argument(
        "--shared-prefix-tokens", type=int, default=0, help="so many of them are the same for all prompts"
    )
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="tokens of every answer")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; 0 draws one")
    parser.add_argument("--results-dir", default="results", include_in_web_ui=False, help="where raw samples go")
    add_dataset(OffTheWebPage(parser))
    add_endpoint(OffTheWebPage(parser))
    add_wire(OffTheWebPage(parser))


class OffTheWebPage:
    """What belongs to the command line: locust's page would show a key in its form. Paths stay texts: a master sends
    its options to its workers, and can't send a Path.
    """

    def __init__(self, parser: LocustArgumentParser) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **described: Any) -> None:
        if described.get("type") is Path:
            described["type"] = str
        self._parser.add_argument(*names, include_in_web_ui=False, **described)


@events.init.add_listener
def watch(environment: Environment, **_: object) -> None:
    global workers
    if isinstance(environment.runner, WorkerRunner):
        report(environment, alone)
        return
    if isinstance(environment.runner, MasterRunner):
        workers = gather(environment)
    show(environment, workers or alone, logger.info)


@events.test_start.add_listener
def begin(environment: Environment, **_: object) -> None:
    """Look at the endpoint before a user is spawned; where it can't be measured, say why and end the test."""
    global running
    StreamUser.load = None
    if workers is not None:
        workers.begin()
        return
    try:
        running = Test(environment)
    except (Usage, TlsError, EndpointError, OSError) as error:
        give_up(environment, str(error))
        return
    except ModuleNotFoundError as error:
        give_up(environment, remedy(error))
        return
    StreamUser.numbers = itertools.count()
    StreamUser.load, StreamUser.books = running.load, running.books
    alone.live = running.load.live


def give_up(environment: Environment, sentence: str) -> None:
    """Say why, and end the test: with the process where nobody watches a web page."""
    logger.error("%s", hide(sentence))
    environment.process_exit_code = 2
    assert environment.runner is not None
    gevent.spawn_later(0, environment.runner.stop if environment.web_ui else environment.runner.quit)


@events.quitting.add_listener
def nothing_measured(environment: Environment, **_: object) -> None:
    """A master whose workers could measure nothing says so by its exit code, as a single process does."""
    if isinstance(environment.runner, MasterRunner) and environment.stats.total.num_requests == 0:
        environment.process_exit_code = 2


@events.test_stopping.add_listener
def stopping(**_: object) -> None:
    if running is not None:
        running.load.stopped_ns = monotonic_ns()
        running.load.dispatch.close()


@events.test_stop.add_listener
def end(**_: object) -> None:
    global running
    if running is not None:
        running.close()
        running = None
