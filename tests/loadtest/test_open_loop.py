"""An open loop follows its schedule whatever the endpoint does: what comes late keeps its instant, nothing is lost.

Method: time is simulated, so instants are compared exactly, with the recursion of a first-come first-served queue as
the oracle. What wakes whom is tested with gevent's own loop.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, count, islice
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.dispatch import ids
from loadtest.measure import Order
from loadtest.open_loop import OpenLoop
from tests.loadtest.orders import CELL, prompts, sample

MS = 1_000_000


class SimulatedTime:
    """Time that stands still until every greenlet waits, then jumps to the next instant that one waits for."""

    def __init__(self, start_ns: int) -> None:
        self.now_ns = start_ns
        self._alarms: list[tuple[int, int, Event]] = []
        self._numbers = count()

    def clock(self) -> int:
        return self.now_ns

    def wait(self, event: Event, timeout_s: float | None) -> None:
        """Until the event is set or the time has come; an event loop may wake early, so this one does, by 0.1 ms."""
        if timeout_s is not None:
            timeout_ns = max(1, round(timeout_s * 1e9))
            alarm_ns = self.now_ns + (timeout_ns - MS // 10 if timeout_ns > MS // 10 else timeout_ns)
            heapq.heappush(self._alarms, (alarm_ns, next(self._numbers), event))
        event.wait()

    def sleep(self, duration_ns: int) -> None:
        event = Event()
        heapq.heappush(self._alarms, (self.now_ns + duration_ns, next(self._numbers), event))
        event.wait()

    def run(self, until: gevent.Greenlet[Any]) -> None:
        gevent.idle()
        while not until.dead:
            assert self._alarms, "every greenlet waits, and nothing will wake one"
            alarm_ns, _, event = heapq.heappop(self._alarms)
            self.now_ns = max(self.now_ns, alarm_ns)
            event.set()
            gevent.idle()


BEGIN_NS = 5_000 * MS


class OpenRun:
    """An open loop of simulated users; what they took, and when."""

    def __init__(
        self, offsets_ns: Sequence[int], services_ns: Sequence[int], users: int, run_time_ns: int, ramp_s: float = 0.0
    ) -> None:
        self.time = SimulatedTime(BEGIN_NS)
        self.loop = OpenLoop(
            replace(CELL, concurrency=users),
            prompts(),
            (str(number) for number in count()),
            iter(offsets_ns),
            run_time_ns / 1e9,
            ramp_s,
            clock=self.time.clock,
            wait=self.time.wait,
        )
        self.services_ns = services_ns
        self.took: list[tuple[Order, int]] = []  # and the instant
        self.takers: list[int] = []
        self.users = [gevent.spawn(self._user, number) for number in range(users)]
        self.finished = False

    def _user(self, number: int) -> None:
        while (order := self.loop.take(number)) is not None:
            self.took.append((order, self.time.now_ns))
            self.takers.append(number)
            self.time.sleep(self.services_ns[int(order.id)])
            self.loop.done(number, sample())

    def _work(self, drain_s: float) -> None:
        self.loop.begin()
        self.finished = self.loop.join(drain_s)
        self.loop.close()

    def __call__(self, drain_s: float = 3600.0) -> OpenRun:
        everyone = [gevent.spawn(self._work, drain_s), *self.users]
        self.time.run(gevent.spawn(gevent.joinall, everyone))
        for greenlet in everyone:
            greenlet.get()  # raises what it died of
        return self


def queue_starts_ns(offsets_ns: Sequence[int], services_ns: Sequence[int], users: int) -> list[int]:
    """When each request starts in a first-come first-served queue: at its arrival, or when the first server is free."""
    free_ns = [0] * users
    starts = []
    for offset_ns, service_ns in zip(offsets_ns, services_ns, strict=False):
        start_ns = max(offset_ns, heapq.heappop(free_ns))
        starts.append(start_ns)
        heapq.heappush(free_ns, start_ns + service_ns)
    return starts


requests = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 100)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(requests, st.integers(1, 5), st.integers(1, 600))
def test_every_request_of_the_run_is_handed_out_once_in_order_at_its_instant_or_to_the_first_user_that_comes_free(
    drawn: list[tuple[int, int]], users: int, run_time: int
):
    offsets_ns = list(accumulate(gap * MS for gap, _ in drawn))
    services_ns = [service * MS + 1 for _, service in drawn]
    scheduled_ns = [offset_ns for offset_ns in offsets_ns if offset_ns < run_time * MS]
    starts_ns = queue_starts_ns(scheduled_ns, services_ns, users)
    run = OpenRun(offsets_ns, services_ns, users, run_time * MS)()
    assert run.finished
    assert [int(order.id) for order, _ in run.took] == list(range(len(scheduled_ns)))
    assert [order.scheduled_ns - BEGIN_NS for order, _ in run.took] == scheduled_ns
    assert [taken_ns - BEGIN_NS for _, taken_ns in run.took] == starts_ns
    assert run.loop.taken == len(scheduled_ns)
    assert run.loop.late == sum(start > due for start, due in zip(starts_ns, scheduled_ns, strict=True))
    assert run.loop.waiting_late == 0
    assert len({order.prompt for order, _ in run.took}) == len(scheduled_ns)


def test_a_request_that_no_user_is_free_for_is_late_and_keeps_its_instant():
    run = OpenRun([0, 10 * MS, 20 * MS], [100 * MS] * 3, users=1, run_time_ns=30 * MS)()
    lags = [(taken_ns - order.scheduled_ns) // MS for order, taken_ns in run.took]
    assert lags == [0, 90, 180], "the last one starts long after the run's 30 ms, and is sent all the same"
    assert run.loop.late == 2


def test_requests_that_are_overdue_and_wait_for_a_user_can_be_counted_at_any_time():
    run = OpenRun([0, 10 * MS, 20 * MS, 30 * MS, 40 * MS], [25 * MS] * 5, users=1, run_time_ns=40 * MS)
    assert run.loop.waiting_late == 0, "nothing is late before the begin"
    counted = []

    def count_late() -> None:
        for _ in range(8):
            run.time.sleep(11 * MS)
            counted.append((run.time.now_ns // MS - 5_000, run.loop.waiting_late))

    watcher = gevent.spawn(count_late)
    run()
    # One request at a time, taken at 0, 25, 50 and 75 ms; due before the end at 40 ms: 0, 10, 20 and 30 ms.
    assert watcher.dead
    assert counted == [(11, 1), (22, 2), (33, 2), (44, 2), (55, 1), (66, 1), (77, 0), (88, 0)]


def test_a_request_due_at_the_end_of_the_run_is_not_part_of_it():
    run = OpenRun([0, 10 * MS, 20 * MS], [1] * 3, users=2, run_time_ns=20 * MS)()
    assert [order.id for order, _ in run.took] == ["0", "1"]


def test_a_run_without_a_request_ends_by_itself():
    run = OpenRun([50 * MS], [1], users=2, run_time_ns=20 * MS)()
    assert (run.finished, run.loop.taken) == (True, 0)


def test_the_end_waits_no_longer_than_it_was_told_to_and_what_is_left_can_be_counted():
    run = OpenRun([0, 10 * MS, 20 * MS], [100 * MS] * 3, users=1, run_time_ns=30 * MS)(drain_s=0.150)
    assert not run.finished
    assert (run.loop.taken, run.loop.waiting_late) == (2, 1)


def test_what_is_due_after_the_close_was_never_overdue():
    run = OpenRun([each * MS for each in (0, 10, 20, 60, 80)], [100 * MS] * 5, 1, run_time_ns=100 * MS)(drain_s=0.030)
    assert run.time.now_ns >= BEGIN_NS + 100 * MS, "it is asked when what ran has ended"
    assert (run.loop.taken, run.loop.waiting_late) == (1, 2)


def test_requests_due_in_the_first_seconds_are_ramp_also_where_they_are_sent_later():
    run = OpenRun([0, 10 * MS, 20 * MS], [100 * MS] * 3, users=1, run_time_ns=30 * MS, ramp_s=0.020)()
    assert [order.phase for order, _ in run.took] == ["ramp", "ramp", "steady"]


def test_the_user_that_came_last_goes_first_for_its_connection_is_the_freshest():
    run = OpenRun([10 * MS * i for i in range(6)], [MS] * 6, users=3, run_time_ns=100 * MS)()
    assert len(run.takers) == 6
    assert len(set(run.takers)) == 1


def real(offsets_ns: Sequence[int], users: int) -> OpenLoop:
    return OpenLoop(replace(CELL, concurrency=users), prompts(), ids("run", 0), iter(offsets_ns), 3600.0)


def test_the_schedule_begins_when_all_users_wait_and_no_request_comes_before_its_instant():
    loop = real([0, 20 * MS, 40 * MS], users=2)
    first = gevent.spawn(loop.take, 0)
    begin = gevent.spawn(loop.begin)
    gevent.sleep(0.02)
    assert not begin.dead
    before_ns = time.monotonic_ns()
    second = gevent.spawn(loop.take, 1)
    begin.get(timeout=5)
    orders, taken_ns = [], []
    for order in gevent.iwait([first, second], timeout=5):
        orders.append(order.get())
        taken_ns.append(time.monotonic_ns())
    orders.append(loop.take(2))
    taken_ns.append(time.monotonic_ns())
    assert [order.id for order in orders] == list(islice(ids("run", 0), 3))
    assert [order.scheduled_ns - orders[0].scheduled_ns for order in orders] == [0, 20 * MS, 40 * MS]
    assert orders[0].scheduled_ns >= before_ns
    assert all(taken >= order.scheduled_ns for taken, order in zip(taken_ns, orders, strict=True))
    loop.close()


@pytest.mark.parametrize("begun", [False, True])
def test_closing_an_open_loop_wakes_everyone_at_once(begun: bool):
    loop = real([3000 * 1000 * MS], users=3)
    users = [gevent.spawn(loop.take, number) for number in range(3)]
    if begun:
        gevent.spawn(loop.begin).get(timeout=5)
    joined = gevent.spawn(loop.join, 3600.0)
    gevent.sleep(0)
    loop.close()
    assert [user.get(timeout=5) for user in users] == [None] * 3
    assert joined.get(timeout=5) is False
    assert loop.take(9) is None


@pytest.mark.parametrize("handed_out", [False, True], ids=["while it waits", "while it is being woken"])
def test_what_a_killed_user_would_have_sent_is_sent_by_another(handed_out: bool):
    loop = real([0 if handed_out else 10 * MS, 3000 * 1000 * MS], users=2)
    stays, killed = (gevent.spawn(loop.take, number) for number in range(2))
    gevent.sleep(0)
    loop.begin()
    killed.kill(block=False)  # runs behind the schedule's first turn, and before whom that chose: the last to come
    gevent.sleep(0)
    assert isinstance(killed.value, gevent.GreenletExit)
    order = stays.get(timeout=5)
    assert order.id == next(ids("run", 0)), "at once, though the next one is due in an hour"
    assert loop.taken == 1
    loop.close()
