"""What plain `locust` runs: users in a closed loop against a TGI endpoint, with locust's own page and tables.

    locust                      # http://127.0.0.1:8089, then Start
    locust --headless -t 30s    # the table in the terminal

Every request is one row of locust's own; TTFT, ITL and E2E stand beside it and leave `Aggregated` as it is. A test
leaves its raw samples and a report in a folder of `--results-dir`; those of workers come to their master.
"""

from __future__ import annotations

from loadtest.runner import TokenUser, take_over, tell  # isort: skip  (first: importing locust patches sockets)

import itertools
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.arguments import INPUT_TOKENS, NEW_TOKENS, Usage, add_dataset, add_endpoint, add_wire
from loadtest.distributed.attached import Attached
from loadtest.distributed.conductor import Conductor
from loadtest.endpoints.base import EndpointError
from loadtest.extras import remedy
from loadtest.live.processes import Alone, Workers
from loadtest.live.watch import gather, report, show
from loadtest.redaction import guard_logs, hide
from loadtest.session import Session, recorded
from loadtest.transport.base import monotonic_ns
from loadtest.transport.tls import TlsError

logger = logging.getLogger(__name__)
guard_logs()


class StreamUser(TokenUser):
    """The user that locust spawns; `load` is set when a test starts, and nobody begins before."""

    decided = Event()  # what `load` is

    def on_start(self) -> None:
        self.decided.wait()
        super().on_start()


running: Session | None = None
conductor: Conductor | None = None  # of a master
master: Attached | None = None  # of a worker
own = Alone()  # what this process sees
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
def connect(environment: Environment, **_: object) -> None:
    """Of several processes: be ready for what master and worker say of samples, from before the first test."""
    global conductor, master
    runner = environment.runner
    if isinstance(runner, MasterRunner):
        for name in ("api_key", "header"):  # locust tells all workers its options, in plain text: each has its own keys
            vars(environment.parsed_options).pop(name, None)
        take_over(runner)
        conductor = Conductor(runner, partial(tell, runner))
    elif isinstance(runner, WorkerRunner):
        master = Attached(runner, partial(tell, runner), partial(stop, runner))
        environment.events.quitting.add_listener(lambda **_: stop(runner))  # before locust says goodbye
        if environment.parsed_options is not None and environment.parsed_options.processes:
            master.end_with_parent()


@events.init.add_listener
def watch(environment: Environment, **_: object) -> None:
    """Be ready to say what is seen, from before the first test."""
    global workers
    if isinstance(environment.runner, WorkerRunner):
        report(environment, own)
        return
    if isinstance(environment.runner, MasterRunner):
        workers = gather(environment)
    show(environment, workers or own, logger.info)


@events.init.add_listener
def look_at_the_clock(**_: object) -> None:
    """A loop that has never run yet counts from when it was made: `-t 3s` would end so much sooner as imports took."""
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def begin(environment: Environment, **_: object) -> None:
    """Look at the endpoint before a user begins; where it can't be measured, say why and end the test. A worker looks
    while locust goes on, since nothing could be received meanwhile.
    """
    StreamUser.load = None
    StreamUser.decided.clear()
    if workers is not None:
        workers.begin()
    if conductor is not None:
        asked, runner = environment.parsed_options, environment.runner
        assert asked is not None
        assert runner is not None
        users, seed = runner.target_user_count, asked.seed or time.time_ns()
        try:
            conductor.begin(recorded(asked, users, seed), seed)
        except OSError as error:
            give_up(environment, str(error))
    elif master is not None:
        gevent.spawn(measure, environment)
    else:
        measure(environment)


def measure(environment: Environment) -> None:
    global running
    try:
        running = Session(environment, master, partial(cannot_go_on, environment))
    except (Usage, TlsError, EndpointError, OSError) as error:
        give_up(environment, str(error))
    except ModuleNotFoundError as error:
        give_up(environment, remedy(error))
    else:
        StreamUser.numbers = itertools.count()
        StreamUser.load, StreamUser.books = running.load, running.books
        own.live = running.load.live
    StreamUser.decided.set()


def stop(runner: WorkerRunner) -> None:
    """Of a worker, before locust's own messages stop it: nothing is received while those are followed."""
    runner.stop()
    runner.environment.stop_timeout = 0  # locust would wait for it once more


def cannot_go_on(environment: Environment, error: Exception) -> None:
    give_up(environment, f"the test can't go on: {error}")


def give_up(environment: Environment, sentence: str) -> None:
    """Say why, and end the test: with the process where nobody watches a web page."""
    logger.error("%s", hide(sentence))
    environment.process_exit_code = 2
    assert environment.runner is not None
    gevent.spawn_later(0, environment.runner.stop if environment.web_ui else environment.runner.quit)


@events.quitting.add_listener
def nothing_measured(environment: Environment, **_: object) -> None:
    """Who could measure nothing says so by its exit code, as a master does whose workers couldn't; a master that lacks
    samples fails. A page that waited for its Start in vain has nothing to say.
    """
    code, nothing = environment.process_exit_code, environment.stats.total.num_requests == 0
    if conductor is not None and nothing and environment.web_ui is None:
        environment.process_exit_code = 2
    elif conductor is not None and conductor.lost and code is None:
        environment.process_exit_code = 1
    elif conductor is None and master is None and environment.web_ui is None and nothing and code is None:
        logger.error("no request ended before the test did: give it a longer -t")
        environment.process_exit_code = 2


@events.test_stopping.add_listener
def stopping(**_: object) -> None:
    if conductor is not None:
        conductor.end()  # before locust tells its workers to stop
    if running is not None:
        running.load.stopped_ns = monotonic_ns()
        running.load.dispatch.close()


@events.test_stop.add_listener
def end(**_: object) -> None:
    global running
    test, running = running, None
    if test is not None:
        test.close()
    if conductor is not None:
        conductor.end()
