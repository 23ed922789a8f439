"""Steady is what the users of all processes run in, and a worker finds out from its master.

Method: a worker's numbers as locust has them, and its event, set by hand; tests/e2e/test_distributed.py has real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.distributed.together import Together


class Hook:
    def add_listener(self, heard: Callable[..., None]) -> None:
        self.fire = heard


@pytest.fixture
def runner() -> Any:
    events = SimpleNamespace(spawning_complete=Hook())
    return SimpleNamespace(user_count=0, target_user_count=0, environment=SimpleNamespace(events=events))


def spawned(runner: Any, own: int, share: int, all_users: int | None = None) -> None:
    runner.user_count, runner.target_user_count = own, share
    if all_users is not None:
        runner.environment.events.spawning_complete.fire(user_count=all_users)


def test_a_workers_own_share_is_not_yet_the_whole(runner: Any):
    together = Together(runner, 4)
    spawned(runner, 2, 2)
    running, wanted = together()
    assert running != wanted == 4
    spawned(runner, 2, 2, 4)
    assert together() == (4, 4)


def test_a_worker_that_was_slow_is_not_complete_before_its_share_is_there(runner: Any):
    together = Together(runner, 4)
    spawned(runner, 0, 0, 4)  # the master waits for a second, and goes on
    spawned(runner, 1, 2)
    running, wanted = together()
    assert running != wanted
    spawned(runner, 2, 2)
    assert together() == (4, 4)


def test_other_users_are_wanted_while_a_test_runs(runner: Any):
    together = Together(runner, 4)
    spawned(runner, 2, 2, 4)
    assert together() == (4, 4)
    spawned(runner, 3, 3)
    running, wanted = together()
    assert running != wanted
    spawned(runner, 3, 3, 6)
    assert together() == (6, 6)
    spawned(runner, 2, 3)  # one of them has ended
    running, wanted = together()
    assert running != wanted


def test_the_next_test_begins_anew(runner: Any):
    together = Together(runner)
    spawned(runner, 2, 2, 4)
    together.expect(9)  # heard late: what was spawned is known better
    assert together() == (4, 4)
    together.forget()
    together.expect(8)
    spawned(runner, 2, 2)
    running, wanted = together()
    assert running != wanted == 8
