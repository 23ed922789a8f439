"""Who is sent next, and when: waves released together, or a closed loop. Users ask, the plan answers.

Both sides are greenlets of one process. A user calls `take`, which blocks until the plan wants a request of it,
measures it, and calls `done`. No locust here: it only runs the users.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import gevent
from gevent.event import AsyncResult
from gevent.queue import Queue

from loadtest.endpoints.base import Prompt
from loadtest.measure import Order
from loadtest.plan import Asked, Cell
from loadtest.sample import Sample
from loadtest.transport.base import Clock, monotonic_ns


class Source(Protocol):
    """Where prompts come from."""

    def drawn_for(self, cell: Cell) -> tuple[Prompt, Asked | None]:
        """The next prompt and what its request asks for; None: what the cell says."""


class Dispatch(Protocol):
    def take(self, user: int) -> Order | None:
        """The user's next order; None when there will be no more."""

    def done(self, user: int, sample: Sample) -> None: ...

    def close(self) -> None:
        """Give no more orders; users that wait for one get None."""


def ids(run: str, process: int) -> Iterator[str]:
    """Request ids that are unique in a run, as UUIDs, since servers there are that take no others: of version 8, the
    run's hash, the process and the number.
    """
    digest = hashlib.sha256(run.encode()).hexdigest()
    of_process = f"{digest[:8]}-{digest[8:12]}-8{process & 0xFFF:03x}-8000-"
    for number in itertools.count():
        yield f"{of_process}{number:012x}"


class Waves:
    """The requests of a wave are released together; the next wave waits for the last of them."""

    def __init__(self, prompts: Source, next_id: Iterator[str], clock: Clock = monotonic_ns) -> None:
        self._prompts = prompts
        self._next_id = next_id
        self._clock = clock
        self._waiting: Queue[AsyncResult[Order | None]] = Queue()
        self._done: Queue[Sample] = Queue()
        self._closed = False

    def take(self, user: int) -> Order | None:
        if self._closed:
            return None
        order: AsyncResult[Order | None] = AsyncResult()
        self._waiting.put(order)
        return order.get()  # type: ignore[no-any-return]

    def done(self, user: int, sample: Sample) -> None:
        self._done.put(sample)

    def close(self) -> None:
        self._closed = True
        while not self._waiting.empty():
            self._waiting.get().set(None)

    def run(self, cell: Cell, phase: str, waves: int, first: int = 0) -> Iterator[list[Sample]]:
        """Release `waves` waves of a cell, one after the other; yields the samples of each when its last one is there.
        Their numbers begin with `first`.

        Blocks until as many users wait as the cell has requests in flight.
        """
        for wave in range(first, first + waves):
            users = [self._waiting.get() for _ in range(cell.concurrency)]
            drawn = [self._prompts.drawn_for(cell) for _ in users]
            request_ids = [next(self._next_id) for _ in users]
            now = self._clock()
            for user, (prompt, asked), request_id in zip(users, drawn, request_ids, strict=True):
                user.set(Order(request_id, cell.in_wave(wave), phase, prompt, now, asked))
            yield [self._done.get() for _ in users]


BREATHER_S = 0.5  # after a request that no reply came to: a dead endpoint isn't asked in a tight loop


class ClosedLoop:
    """Every user sends its next request when its last one has ended.

    The first request of a user is `warmup`; while fewer or more users run than wanted, the others are `ramp`; then
    `steady`. `users` gives (running, wanted): a test may change its mind while it runs.
    """

    def __init__(
        self,
        cell: Cell,
        prompts: Source,
        next_id: Iterator[str],
        users: Callable[[], tuple[int, int]],
        clock: Clock = monotonic_ns,
    ) -> None:
        self._cell = cell
        self._prompts = prompts
        self._next_id = next_id
        self._users = users
        self._clock = clock
        self._last: dict[int, Sample] = {}
        self._closed = False

    def take(self, user: int) -> Order | None:
        last = self._last.get(user)
        if last is not None and last.status is None:
            gevent.sleep(BREATHER_S)
        if self._closed:
            return None
        running, wanted = self._users()
        phase = "warmup" if last is None else "steady" if running == wanted else "ramp"
        scheduled_ns = self._clock() if last is None or last.status is None else last.ended_ns
        if wanted != self._cell.concurrency:
            self._cell = replace(self._cell, concurrency=wanted)
        cell = self._cell
        prompt, asked = self._prompts.drawn_for(cell)
        return Order(next(self._next_id), cell, phase, prompt, scheduled_ns, asked)

    def done(self, user: int, sample: Sample) -> None:
        self._last[user] = sample

    def close(self) -> None:
        self._closed = True


def drained(sample: Sample, stopped_ns: int | None) -> Sample:
    """A request that ended after the stop belongs to the drain, whatever it was begun as."""
    if stopped_ns is None or sample.ended_ns <= stopped_ns:
        return sample
    return replace(sample, phase="drain")
