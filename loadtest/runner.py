"""Locust runs the users; the clock is ours. This module and the locustfile are the only ones that import locust.

Importing locust patches the standard library's sockets for gevent, so it must come before anything that opens one.

What becomes of their samples: `books.py`.
"""

from __future__ import annotations

from locust import User, constant, runners, stats, task  # isort: skip  (first: it patches)
import inspect
import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import zmq
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.exception import RPCError, StopUser

from loadtest.books import Books, collected_in_the_books
from loadtest.dispatch import Dispatch, drained
from loadtest.endpoints.base import Endpoint
from loadtest.live.counting import Live
from loadtest.measure import measure
from loadtest.monitor import three_digits
from loadtest.sample import Sample
from loadtest.transport.base import Connect, Connection, Target, Timeouts, TransportError, monotonic_ns
from loadtest.verdict import Verdict

stats.bucket_response_time = three_digits  # type: ignore[assignment]  # the hook that locust documents; keys may be floats


AWAY_S = 120  # how long a master and a worker may hear nothing of each other before they go on alone


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
    live: Live = field(default_factory=Live)  # what is known while it runs


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
            self.load.live.users += 1

    def on_stop(self) -> None:
        if self.load is not None and self.connection is not None:
            self.load.live.users -= 1
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
            first_token=load.live.first_token,
        )
        sample = drained(sample, load.stopped_ns)
        load.dispatch.done(self.number, sample)
        self.books.enter(sample)
        return sample


@dataclass(frozen=True, slots=True)
class Running:
    """Users at work."""

    environment: Environment
    books: Books


def user_class(environment: Environment, load: Load) -> type[TokenUser]:
    """A TokenUser bound to a load, which is what the environment spawns; its books are open until `close`."""
    fields: dict[str, Any] = {
        "abstract": False,
        "load": load,
        "numbers": itertools.count(),
        "books": Books(environment, load.endpoint.route, load.keep, load.fail, load.live.kept),
    }
    bound = type("TokenUser", (TokenUser,), fields)
    environment.user_classes = [bound]
    inspect.stack()  # locust looks at it to stop: the first time takes 50 ms, and streams may be draining then
    return bound


@contextmanager
def spawned(load: Load, users: int, spawn_rate: float | None = None, drain_s: float = 0.0) -> Iterator[Running]:
    """Run `users` users of a load through locust; on the way out they are stopped and every sample is kept.

    spawn_rate: users a second; None spawns all at once. drain_s: how long running requests may go on after the stop;
    then they are `cancelled`.
    """
    environment = Environment(host=load.target.origin, stop_timeout=drain_s)
    bound = user_class(environment, load)
    runner = environment.create_local_runner()
    with collected_in_the_books():
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


class Shares(UsersDispatcher):
    """Users stay with the worker that they were given to: where one vanishes its users do too, and nobody's load grows;
    where one comes back it has them still.
    """

    def add_worker(self, worker_node: Any) -> None: ...

    def remove_worker(self, worker_node: Any) -> None: ...


def master(host: str, port: int) -> runners.MasterRunner:
    """A master that workers of `worker` can connect to; its own users it leaves to them. port: 0 for any free one.

    Raises: OSError where it can't listen there.
    """
    # Locust gives a worker up after 3 s without a heartbeat, and after 60 s its users to the others.
    runners.HEARTBEAT_LIVENESS = AWAY_S
    runners.HEARTBEAT_DEAD_INTERNAL = -(2**31)
    users = type(TokenUser.__name__, (TokenUser,), {"abstract": False})
    environment = Environment(user_classes=[users], dispatcher_class=Shares)
    try:
        made = environment.create_master_runner(host, port)
    except SystemExit as error:
        raise OSError(f"port {port} of {host} is busy") from error
    except RPCError as error:
        raise OSError(str(error)) from error
    take_over(made)
    return made


def dismiss(made: runners.MasterRunner) -> None:
    """Send the workers home, and listen no more."""
    made.quit()
    made.server.close(linger=1000)


def take_over(made: runners.MasterRunner) -> None:
    """Let a worker that connects anew in, although its old connection isn't known to be dead: where a network was cut
    that may take the kernel minutes, and without this zmq would ignore the worker until then.
    """
    made.server.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)


def worker(host: str, port: int) -> runners.WorkerRunner:
    """A worker, connected to its master; users are what `user_class` makes, and set before the master spawns any.

    Raises: ConnectionError where there is no master for 5 minutes.
    """
    runners.MASTER_HEARTBEAT_TIMEOUT = AWAY_S
    made = Environment().create_worker_runner(host, port)
    made.environment.parsed_options = Namespace(headless=True)  # else locust reads the options of a locustfile
    return made


def tell(
    runner: runners.MasterRunner | runners.WorkerRunner, kind: str, data: dict[str, Any], to: str | None = None
) -> None:
    """Send a message, or lose it, as a network may: zmq takes no more than 1,000 for one who is away."""
    with suppress(RPCError):
        runner.send_message(kind, data, to)
