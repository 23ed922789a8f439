"""A worker's share of a run's load: looked at, begun, stopped and delivered."""

from __future__ import annotations

from loadtest import runner as locust_runner  # isort: skip  (first: importing locust patches sockets)

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from loadtest.books import collected_in_the_books
from loadtest.datasets import DatasetPrompts
from loadtest.dispatch import ClosedLoop, ids
from loadtest.distributed.link import Shipper, Tell
from loadtest.distributed.together import Together
from loadtest.free import PHASES, free_cell, look_free
from loadtest.live.counting import Live
from loadtest.live.processes import Alone
from loadtest.live.watch import report
from loadtest.loads import Options
from loadtest.machine import boot, clocks
from loadtest.monitor import Monitor
from loadtest.open_loop import OpenLoop
from loadtest.runner import Load
from loadtest.transport.base import monotonic_ns


class Share:
    """What one process of several measures. Its users are spawned by locust, as its master says."""

    def __init__(
        self,
        options: Options,
        task: dict[str, Any],
        run: str,
        results: Path,
        runner: Any,
        tell: Tell,
        fail: Callable[[Exception], None],
    ) -> None:
        """Looks at the endpoint. Prompts differ from those of every other process: made ones come from a seed of its
        own, a dataset is dealt out by turns, and so is the schedule of an open loop: what all send is what was asked
        for, whatever the arrivals.

        Raises: EndpointError; OSError where nothing can be kept.
        """
        self.options = options
        number, of = task["process"], task["of"]
        seed = f"{options.seed}-free" if options.dataset is not None else f"{options.seed}-free-{number}"
        found = look_free(options, task["url"], seed)
        if isinstance(found.prompts, DatasetPrompts):
            found = replace(found, prompts=found.prompts.among(number, of))
        self._found, self._cell = found, free_cell(options, found)
        self.loop: OpenLoop | None = None
        if options.arrivals is not None:
            offsets = islice(options.arrivals.offsets_ns(), number, None, of)
            self.loop = OpenLoop(self._cell, found.prompts, ids(run, number), offsets, options.run_time_s)
        together = Together(runner, self._cell.concurrency)
        dispatch = self.loop or ClosedLoop(self._cell, found.prompts, ids(run, number), together)
        self.shipper = Shipper(run, number, results, tell)
        self._load = Load(
            found.target,
            found.connect,
            found.endpoint,
            dispatch,
            run,
            number,
            options.timeouts,
            self.shipper.keep,
            fail,
            live=Live(number),
        )
        report(runner.environment, Alone(self._load.live))
        self._runner, self._monitor, self._calm = runner, Monitor(self._load.live.loop_lags_s), ExitStack()
        self._users = locust_runner.user_class(runner.environment, self._load)
        runner.environment.events.test_start.add_listener(self._spawned)
        self.began = False
        self.stopped = False

    def found(self) -> dict[str, Any]:
        """What the master is told of the endpoint."""
        return {
            "protocol": self._found.endpoint.protocol,
            "info": self._found.description.info,
            "notes": list(self._found.notes),
            "cell": asdict(self._cell),
            "dataset": self._dataset(),
        }

    def before(self) -> None:
        """Read the server's own metrics, when no process has sent anything yet that counts."""
        self._found.metrics.before()

    def after(self) -> dict[str, Any] | None:
        """What run.json's `server_metrics` holds, when all processes have stopped."""
        return self._found.metrics.after(self._cell, PHASES)

    def _spawned(self, **_: object) -> None:
        """Locust knows how many users there will be, and spawns them next."""
        self.began = True
        self._calm.enter_context(collected_in_the_books())
        self._monitor.start()

    def begin(self, at: dict[str, Any]) -> None:
        """An open loop's schedule: at that instant, where its clock is ours; of another machine now."""
        assert self.loop is not None
        self.loop.begin(at["mono_ns"] if at["boot"] and at["boot"] == boot() else monotonic_ns())

    def cut(self) -> None:
        """No more orders: who waits for the schedule's end, or for its users, goes on. Doesn't block."""
        self._load.dispatch.close()

    def stop(self, drain_s: float, patience_s: float) -> dict[str, Any]:
        """Let what runs finish for `drain_s` seconds, and deliver everything; returns what the master is told. May be
        interrupted and called again.
        """
        schedule = None
        if self.loop is not None:
            unsent = 0 if self.loop.join(drain_s) else self.loop.waiting_late
            schedule = {"taken": self.loop.taken, "late": self.loop.late, "unsent": unsent}
        self._load.stopped_ns = monotonic_ns()
        self._load.dispatch.close()
        self._runner.environment.stop_timeout = drain_s
        self._runner.stop()
        self._users.books.close()
        self._calm.close()
        seen = self._monitor.stop()
        self._load.live.end()
        shipped = self.shipper.finish(patience_s)
        self.stopped = True
        return {
            **shipped,
            "end": clocks(),
            "client": seen,
            "cell": asdict(self._cell),
            "schedule": schedule,
            "dataset": self._dataset(),
            "seen": self._load.live.state().packed(),
        }

    def _dataset(self) -> dict[str, Any] | None:
        prompts = self._found.prompts
        return prompts.said() if isinstance(prompts, DatasetPrompts) else None
