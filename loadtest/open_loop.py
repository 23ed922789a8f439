"""An open loop: requests are sent when a schedule says, and one that could not be sent in time is late, never skipped.

The schedule is `arrivals.py`'s; here it meets users, of whom there is a limited number. Greenlets of one process.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import NamedTuple

import gevent
from gevent.event import AsyncResult, Event

from loadtest.dispatch import Source
from loadtest.endpoints.base import Prompt
from loadtest.measure import Order
from loadtest.plan import Asked, Cell
from loadtest.sample import Sample
from loadtest.transport.base import Clock, monotonic_ns


class Due(NamedTuple):
    """A request of the schedule with its prompt drawn; sorts as the schedule does."""

    offset_ns: int  # after the begin of the run
    number: int
    id: str
    prompt: Prompt
    asked: Asked | None


class OpenLoop:
    """Requests are sent when the schedule says, whatever the endpoint does; users are only the cap of those in flight.

    A waiting user gets the next request at its instant, never before: the user that came last, because its connection
    is the freshest. Where every user is busy then, the first that comes free takes the request, late: `scheduled_ns`
    stays what the schedule says, nothing is skipped or planned anew. That holds past the end of the run too: every
    request that is due before it is sent, unless `close` comes first; `join` waits for them.

    The timer is gevent's: it wakes 0 to 1 ms late, since epoll counts in milliseconds, and later where other greenlets
    keep the loop busy. Both are in started − scheduled. Where a user waits, its prompt is drawn before the instant.

    Phase: `ramp` where a request is due in the first `ramp_s` seconds, `steady` after it. There is no `warmup`: a
    user's first request may come at any time.
    """

    def __init__(
        self,
        cell: Cell,
        prompts: Source,
        next_id: Iterator[str],
        offsets_ns: Iterator[int],
        run_time_s: float,
        ramp_s: float = 0.0,
        clock: Clock = monotonic_ns,
        wait: Callable[[Event, float | None], object] = Event.wait,
    ) -> None:
        """offsets_ns: never falling, after the begin of the run. cell.concurrency: the users there will be."""
        self._cell = cell
        self._prompts = prompts
        self._next_id = next_id
        end_ns = round(run_time_s * 1e9)
        self._offsets_ns = takewhile(lambda offset_ns: offset_ns < end_ns, offsets_ns)
        self._ramp_ns = round(ramp_s * 1e9)
        self._clock = clock
        self._wait = wait
        self._begun_ns: int | None = None
        self._ahead: deque[int] = deque()  # offsets that were looked at, and have no prompt yet
        self._due: list[Due] = []  # a heap: one for each user that waits, while the schedule lasts
        self._idle: list[AsyncResult[Due | None]] = []
        self._changed = Event()  # whatever may change who gets what when
        self._settled = Event()
        self._drawn = 0
        self._in_flight = 0
        self._closed = False
        self._closed_ns: int | None = None
        self.taken = 0  # requests handed out
        self.late = 0  # those that no user waited for at their instant: all were busy

    def begin(self, at_ns: int | None = None) -> None:
        """Start the schedule now, when all users wait (connecting them is no part of the run), or at that instant."""
        if at_ns is None:
            self.gather(self._cell.concurrency)
        self._begun_ns = self._clock() if at_ns is None else at_ns
        gevent.spawn(self._pace)

    def gather(self, users: int) -> None:
        """Blocks until so many users wait: where others of the cell are in other processes, before `begin`."""
        while len(self._idle) < users and not self._closed:
            self._changed.clear()
            self._changed.wait()

    def take(self, user: int) -> Order | None:
        """Blocks until a request is due; after the last one, until `close`."""
        if self._closed:
            return None
        self._draw()
        turn: AsyncResult[Due | None] = AsyncResult()
        self._idle.append(turn)
        self._changed.set()
        try:
            due = turn.get()
        except BaseException:  # the user was killed: what it would have sent is another's
            self._give_back(turn)
            raise
        if due is None:
            return None
        assert self._begun_ns is not None
        phase = "ramp" if due.offset_ns < self._ramp_ns else "steady"
        return Order(due.id, self._cell, phase, due.prompt, self._begun_ns + due.offset_ns, due.asked)

    def done(self, user: int, sample: Sample) -> None:
        self._in_flight -= 1
        self._settle()

    def close(self) -> None:
        if not self._closed:
            self._closed, self._closed_ns = True, self._clock()
        while self._idle:
            self._idle.pop().set(None)
        self._changed.set()
        self._settled.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until all requests of the schedule are done. False where `timeout_s` or `close` came first."""
        self._settle()
        self._wait(self._settled, timeout_s)
        return self._all_done()

    @property
    def waiting_late(self) -> int:
        """Requests that are overdue now, or were at the `close`, and still wait for a user."""
        if self._begun_ns is None:
            return 0
        now_ns = (self._clock() if self._closed_ns is None else self._closed_ns) - self._begun_ns
        while (last_ns := self._ahead[-1] if self._ahead else self._peek()) is not None and last_ns < now_ns:
            if (offset_ns := next(self._offsets_ns, None)) is None:
                break
            self._ahead.append(offset_ns)
        ahead = len(self._ahead) - (1 if self._ahead and self._ahead[-1] >= now_ns else 0)
        return ahead + sum(due.offset_ns < now_ns for due in self._due)

    def _peek(self) -> int | None:
        """The offset of the next request without a prompt; None where there is none before the end."""
        if not self._ahead and (offset_ns := next(self._offsets_ns, None)) is not None:
            self._ahead.append(offset_ns)
        return self._ahead[0] if self._ahead else None

    def _draw(self) -> None:
        """Make the next request ready: for the user that begins to wait, or for one that waits longer."""
        if (offset_ns := self._peek()) is None:
            return
        if self._begun_ns is not None and self._begun_ns + offset_ns < self._clock():
            self.late += 1
        heapq.heappush(
            self._due, Due(offset_ns, self._drawn, next(self._next_id), *self._prompts.drawn_for(self._cell))
        )
        self._drawn += 1
        self._ahead.popleft()

    def _pace(self) -> None:
        """Hand each request to a user at its instant."""
        while not self._closed:
            self._changed.clear()
            left_s = self._left_s()
            if left_s is None or left_s > 0:
                self._wait(self._changed, left_s)
            else:
                self._in_flight += 1
                self.taken += 1
                self._idle.pop().set(heapq.heappop(self._due))

    def _left_s(self) -> float | None:
        """How long until a request is to be handed out; None where a user or a request must come first."""
        if not self._due or not self._idle:
            return None
        assert self._begun_ns is not None
        return (self._begun_ns + self._due[0].offset_ns - self._clock()) / 1e9

    def _give_back(self, turn: AsyncResult[Due | None]) -> None:
        if turn in self._idle:
            self._idle.remove(turn)
        elif turn.value is not None:
            heapq.heappush(self._due, turn.value)
            self._in_flight -= 1
            self.taken -= 1
            self._changed.set()

    def _all_done(self) -> bool:
        return not self._in_flight and not self._due and self._peek() is None

    def _settle(self) -> None:
        if self._all_done():
            self._settled.set()
