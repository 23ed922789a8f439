"""Whether the users of all processes run: what is the steady phase of a closed loop is decided by the whole of them."""

from __future__ import annotations

from typing import Any


class Together:
    """(running, wanted) users of the whole, as a worker knows them: for `ClosedLoop`.

    All of them run from when the master says that spawning is complete and this worker has its own share, until that
    share changes; before, a request is of the ramp, however complete the worker's share may be. The master doesn't wait
    for a worker that is slow to spawn, and of the others' users no worker knows.
    """

    def __init__(self, runner: Any, users: int = 1) -> None:
        """runner: a locust.runners.WorkerRunner. users: of all workers, before they are spawned."""
        self._runner = runner
        self._wanted = users
        self._complete = False  # as the master says
        self._share: int | None = None  # that this worker had then
        runner.environment.events.spawning_complete.add_listener(self._spawned)

    def expect(self, users: int) -> None:
        """So many will be spawned, where they aren't yet: this may be heard later than that."""
        if not self._complete:
            self._wanted = users

    def forget(self) -> None:
        """The test is over."""
        self._complete, self._share = False, None

    def __call__(self) -> tuple[int, int]:
        own, share = self._runner.user_count, self._runner.target_user_count
        if self._complete and self._share is None and own == share:
            self._share = share
        if own == share == self._share:
            return self._wanted, self._wanted
        return min(own, self._wanted - 1), self._wanted

    def _spawned(self, user_count: int, **_: object) -> None:
        self._wanted, self._complete, self._share = user_count, True, None
