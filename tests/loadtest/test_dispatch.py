"""Waves are released together; a closed loop follows a test that changes its users, and spares a dead endpoint."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import gevent
import pytest

from loadtest import dispatch
from loadtest.dispatch import ClosedLoop, Waves, drained, ids
from tests.loadtest.orders import CELL, prompts, sample


def test_a_wave_waits_for_its_users_is_released_at_one_instant_and_ends_with_its_last_sample():
    ticks = iter(range(100, 1000, 100))
    waves = Waves(prompts(), ids("run", 2), clock=lambda: next(ticks))
    orders: list[Any] = []

    def user(number: int) -> None:
        while (order := waves.take(number)) is not None:
            orders.append(order)
            gevent.sleep(0.001 * number)
            waves.done(number, sample())

    users = [gevent.spawn(user, number) for number in range(3)]
    done = list(waves.run(CELL, "steady", 2))
    waves.close()
    gevent.joinall(users, timeout=5, raise_error=True)
    assert [len(samples) for samples in done] == [3, 3]
    assert [(order.scheduled_ns, order.cell.wave) for order in orders] == [(100, 0)] * 3 + [(200, 1)] * 3
    assert len({order.id for order in orders}) == len({order.prompt for order in orders}) == 6


def test_request_ids_are_uuids_of_their_run_process_and_number():
    made = [each for run in ("a", "b") for process in (0, 1) for each in islice(ids(run, process), 3)]
    assert [str(uuid.UUID(each)) for each in made] == made
    assert {uuid.UUID(each).version for each in made} == {8}
    assert len(set(made)) == 12
    assert list(islice(ids("a", 0), 3)) == made[:3]


def test_closing_releases_users_that_wait():
    waves = Waves(prompts(), ids("run", 0))
    users = [gevent.spawn(waves.take, number) for number in range(3)]
    gevent.sleep(0.01)
    waves.close()
    assert [user.get(timeout=5) for user in users] == [None] * 3
    assert waves.take(9) is None


def loop(users: Callable[[], tuple[int, int]]) -> ClosedLoop:
    return ClosedLoop(CELL, prompts(), ids("run", 0), users, clock=lambda: 7)


def test_the_first_request_of_a_user_is_warm_up_and_the_next_follow_its_last_end():
    closed = loop(lambda: (2, 2))
    first = closed.take(0)
    closed.done(0, sample(ended_ns=50))
    second = closed.take(0)
    assert first is not None
    assert second is not None
    assert [(order.phase, order.scheduled_ns) for order in (first, second)] == [("warmup", 7), ("steady", 50)]


@pytest.mark.parametrize(("running", "wanted", "phase"), [(1, 2, "ramp"), (2, 2, "steady"), (6, 2, "ramp")])
def test_requests_are_steady_only_while_as_many_users_run_as_are_wanted(running: int, wanted: int, phase: str):
    closed = loop(lambda: (running, wanted))
    closed.take(0)
    closed.done(0, sample())
    order = closed.take(0)
    assert order is not None
    assert (order.phase, order.cell.concurrency) == (phase, wanted)


def test_a_user_whose_request_got_no_reply_takes_a_breath_that_counts_as_nobodys_lag(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(dispatch.gevent, "sleep", slept.append)
    closed = loop(lambda: (1, 1))
    closed.take(0)
    closed.done(0, sample(status=None))
    order = closed.take(0)
    assert slept == [dispatch.BREATHER_S]
    assert order is not None
    assert order.scheduled_ns == 7, "from the clock, not from the end of the failed request"


def test_what_ends_after_the_stop_is_drain():
    assert drained(sample(ended_ns=5), None).phase == drained(sample(ended_ns=5), 5).phase == "steady"
    assert drained(sample(ended_ns=6), 5) == replace(sample(ended_ns=6), phase="drain")
