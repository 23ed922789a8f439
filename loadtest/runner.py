"""Locust runs the users; the clock is ours. This module and the locustfile are the only ones that import locust.

Importing locust patches the standard library's sockets for gevent, so it must come before anything that opens one.

Locust's table gets its own row for every request (the whole exchange) and three beside it: TTFT, ITL and E2E. Those are
logged straight into its statistics' entries, not as requests, so `Aggregated` counts every request once.
"""

from __future__ import annotations

from locust import User, constant, stats, task  # isort: skip  (first: it patches)
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import gevent
from gevent.queue import JoinableQueue
from locust.env import Environment
from locust.exception import StopUser

from loadtest.dispatch import Dispatch, drained
from loadtest.endpoints.base import Endpoint
from loadtest.measure import measure
from loadtest.sample import Sample
from loadtest.stats import itl_s, latency_s, ttft_s
from loadtest.transport.base import Connect, Connection, Target, Timeouts, TransportError, monotonic_ns
from loadtest.verdict import Verdict

MOST_BEHIND = 4096  # samples of which memory is kept; a sample of 128 tokens has some 20 kB


class NotComplete(Exception):
    """What locust's table and failure list show for a request whose verdict isn't `complete`."""


def three_digits(milliseconds: float) -> float:
    """Locust's histogram keys with three significant digits: its own two would store a gap of 3.46 ms as 3."""
    if milliseconds <= 0:
        return 0
    return round(milliseconds, 2 - math.floor(math.log10(milliseconds)))


def log_all(entry: Any, milliseconds: Sequence[float]) -> None:
    """What `entry.log(each, 0)` would do for each of them, at a tenth of the cost: streams wait meanwhile.

    entry: a locust.stats.StatsEntry, whose annotations know whole milliseconds only.
    """
    if not milliseconds:
        return
    entry.log(milliseconds[0], 0)  # the first as locust would: it keeps a cache by the second
    rest = milliseconds[1:]
    entry.num_requests += len(rest)
    entry.num_reqs_per_sec[int(entry.last_request_timestamp)] += len(rest)
    entry.total_response_time += sum(rest)
    entry.min_response_time = min(entry.min_response_time, *milliseconds)
    entry.max_response_time = max(entry.max_response_time, *milliseconds)
    for key, times in Counter(map(three_digits, rest)).items():
        entry.response_times[key] += times


stats.bucket_response_time = three_digits  # type: ignore[assignment]  # the hook that locust documents; keys may be floats


@dataclass(slots=True)
class Load:
    """What the users of one environment share: whom they ask, who tells them when, and who gets the samples."""

    target: Target
    connect: Connect
    endpoint: Endpoint
    dispatch: Dispatch
    run: str
    process: int
    timeouts: Timeouts
    keep: Callable[[Sample], None]  # the recorder's `add`
    fail: Callable[[Exception], None]  # told what no request can go on after: prompts used up, a full disk, our own bug
    stopped_ns: int | None = None  # set when the run's time is over


class TokenUser(User):
    """One user, one connection, one request at a time. Subclasses carry the `load`."""

    abstract = True
    wait_time = constant(0)
    load: ClassVar[Load | None] = None  # None: there is nothing to do
    numbers: ClassVar[Iterator[int]]
    books: ClassVar[Books]
    number: int
    connection: Connection | None = None

    def on_start(self) -> None:
        if self.load is not None:
            self.number = next(self.numbers)
            self.connection = self.load.connect(self.load.target)

    def on_stop(self) -> None:
        if self.connection is not None:
            self.connection.close()

    @task
    def stream(self) -> None:
        if self.load is None or self.connection is None:
            raise StopUser
        try:
            sample = self._measured(self.load, self.connection)
        except Exception as error:  # locust would log it and go on, and the plan would wait for ever
            self.load.fail(error)
            raise StopUser from error
        if sample is None or sample.verdict is Verdict.CANCELLED:
            raise StopUser

    def _measured(self, load: Load, connection: Connection) -> Sample | None:
        """One request of the plan, kept; None when there are no more."""
        begun_ns, connect_ns = monotonic_ns(), None
        with suppress(TransportError):  # a server that closes after every reply: reconnect before the wave's release
            connect_ns = connection.ready(load.timeouts.connect_s)
        order = load.dispatch.take(self.number)
        if order is None:
            return None
        sample = measure(
            connection,
            load.endpoint,
            order,
            run=load.run,
            process=load.process,
            user=self.number,
            timeouts=load.timeouts,
            connect_ns=connect_ns if order.scheduled_ns <= begun_ns else None,
        )
        sample = drained(sample, load.stopped_ns)
        load.dispatch.done(self.number, sample)
        self.books.enter(sample)
        return sample


class Books:
    """Keeps finished samples: the file, and locust's table. Works where no stream has anything to do, so it delays
    none; only when `MOST_BEHIND` samples wait does it take its turn with them.
    """

    def __init__(self, environment: Environment, load: Load) -> None:
        self._environment = environment
        self._load = load
        self._queue: JoinableQueue[Sample] = JoinableQueue()
        self._greenlet = gevent.spawn(self._work)

    def enter(self, sample: Sample) -> None:
        self._queue.put(sample)

    def settle(self) -> None:
        """Wait until everything entered is kept: between two waves, so that none is released into this work."""
        self._queue.join()

    def close(self) -> None:
        self.settle()
        self._greenlet.kill()

    def _work(self) -> None:
        for sample in self._queue:
            try:
                self._breathe()
                self._load.keep(sample)
                self._breathe()
                self._show(sample)
            except OSError as error:
                self._load.fail(error)
            finally:
                self._queue.task_done()

    def _breathe(self) -> None:
        if self._queue.qsize() < MOST_BEHIND:
            gevent.idle()
        else:
            gevent.sleep(0)

    def _show(self, sample: Sample) -> None:
        if sample.verdict is Verdict.CANCELLED:  # ended by the end of the test: no answer of the endpoint's
            return
        name = self._load.endpoint.route
        begun_ns = sample.scheduled_ns if sample.started_ns is None else sample.started_ns
        self._environment.events.request.fire(
            request_type="POST",
            name=name,
            response_time=(sample.ended_ns - begun_ns) / 1e6,
            response_length=sample.got.new_tokens,
            exception=None if sample.complete else NotComplete(f"{sample.verdict}: {sample.detail}"),
            context={},
        )
        if not sample.complete:
            return
        entries = self._environment.stats.entries
        for row, value_s in (("TTFT", ttft_s(sample)), ("E2E", latency_s(sample))):
            if value_s is not None:
                entries[(name, row)].log(value_s * 1e3, 0)  # type: ignore[arg-type]
        self._breathe()
        log_all(entries[(name, "ITL")], [gap_s * 1e3 for gap_s in itl_s(sample)])


@dataclass(frozen=True, slots=True)
class Running:
    """Users at work."""

    environment: Environment
    books: Books


def user_class(environment: Environment, load: Load) -> type[TokenUser]:
    """A TokenUser bound to a load; its books are open until `close`."""
    fields: dict[str, Any] = {
        "abstract": False,
        "load": load,
        "numbers": itertools.count(),
        "books": Books(environment, load),
    }
    return type("TokenUser", (TokenUser,), fields)


@contextmanager
def spawned(load: Load, users: int, spawn_rate: float | None = None, drain_s: float = 0.0) -> Iterator[Running]:
    """Run `users` users of a load through locust; on the way out they are stopped and every sample is kept.

    spawn_rate: users a second; None spawns all at once. drain_s: how long running requests may go on after the stop;
    then they are `cancelled`.
    """
    environment = Environment(host=load.target.origin, stop_timeout=drain_s)
    bound = user_class(environment, load)
    environment.user_classes = [bound]
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=spawn_rate or users)
    try:
        yield Running(environment, bound.books)
    except BaseException:
        environment.stop_timeout = 0  # what runs now is cancelled: nobody waits for a drain after Ctrl-C
        raise
    finally:
        load.stopped_ns = monotonic_ns()
        load.dispatch.close()
        runner.quit()
        bound.books.close()
