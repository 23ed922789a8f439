"""Whether the users of all processes run: what is the steady phase of a closed loop is decided by the whole of them."""

from __future__ import annotations

from typing import Any


class Together:
    """(running, wanted) users of the whole, as a worker knows them: for `ClosedLoop`.

    All of them run from when the master says that spawning is complete, as long as this worker has its own share; until
    then a request is of the ramp, however complete its own share may be.
    """

    def __init__(self, runner: Any, users: int = 1) -> None:
        """runner: a locust.runners.WorkerRunner. users: of all workers, before they are spawned."""
        self._runner = runner
        self._wanted = users
        self._share: int | None = None  # of the users that are all there
        runner.environment.events.spawning_complete.add_listener(self._complete)

    def expect(self, users: int) -> None:
        """So many will be spawned, where they aren't yet: this may be heard later than that."""
        if self._share is None:
            self._wanted = users

    def forget(self) -> None:
        """The test is over."""
        self._share = None

    def __call__(self) -> tuple[int, int]:
        own = self._runner.user_count
        if own == self._share == self._runner.target_user_count:
            return self._wanted, self._wanted
        return min(own, self._wanted - 1), self._wanted

    def _complete(self, user_count: int, **_: object) -> None:
        self._wanted, self._share = user_count, self._runner.target_user_count
