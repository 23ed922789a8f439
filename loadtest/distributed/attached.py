"""A worker of plain `locust`: which test it is in, and where its samples go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from loadtest.distributed.link import NOTHING, Link, Shipper, Tell
from loadtest.distributed.parent import end_with, patience_s
from loadtest.distributed.together import Together
from loadtest.machine import boot, clocks, process

TASK_S = 60.0  # for the master to say what the test is, after locust has started it


class Attached:
    def __init__(self, runner: Any, tell: Tell, stop: Callable[[], None]) -> None:
        """stop: ends the test that runs, in order; says nothing where none does."""
        self._tell, self._stop = tell, stop
        self._link = Link(runner, tell, self._heard)
        self._parent: int | None = None
        self._told = Event()
        self._task: dict[str, Any] = {}
        self._answered = False
        self.together = Together(runner)

    def end_with_parent(self) -> None:
        """Of `locust --processes`."""
        self._parent = os.getppid()
        gevent.spawn(end_with, self._parent)

    def task(self) -> dict[str, Any] | None:
        """{"process", "of", "seed", "users"} of the test that locust starts; None where the master doesn't say."""
        told = self._told.wait(TASK_S)
        self._told.clear()
        return self._task if told else None

    def shipper(self, results: Path) -> Shipper:
        """Raises: OSError."""
        assert self._link.run is not None, "a task belongs to a run"
        self._link.shipper = Shipper(self._link.run, self._task["process"], results, self._tell)
        return self._link.shipper

    def found(self, said: dict[str, Any]) -> None:
        self._link.answer("found", said)

    def stopped(self, said: dict[str, Any]) -> None:
        """All that is there has been delivered, as far as it could be."""
        self._answered = True
        self.together.forget()
        self._link.answer("stop", {**NOTHING, "end": clocks(), **said})

    @property
    def patience_s(self) -> float:
        return patience_s(self._parent)

    def _heard(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "task":
            self._task, self._answered = data, False
            self._link.answer("task", {"who": {**process(data["process"]), "boot": boot()}})
            self.together.expect(data["users"])
            self._told.set()
        elif kind == "stop":
            gevent.spawn(self._end)

    def _end(self) -> None:
        self._stop()
        if not self._answered:
            self.stopped({})
