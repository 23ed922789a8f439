"""A worker of `tokenclock run`: it measures what its master tells it, and ends with it.

Exit codes: 0 all that it measured has arrived; 1 it hasn't; 2 there was nothing to measure; 130 interrupted.
"""

from __future__ import annotations

from loadtest import runner as locust_runner  # isort: skip  (first: importing locust patches sockets)

import contextlib
import io
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent.queue import Empty, Queue

from loadtest.arguments import Usage
from loadtest.calibrate.after import replay_share
from loadtest.distributed.link import PATIENCE_S, Link
from loadtest.distributed.parent import end_with, patience_s
from loadtest.distributed.share import Share
from loadtest.distributed.spread import PATHS
from loadtest.endpoints.base import EndpointError
from loadtest.extras import remedy
from loadtest.interruption import GaveUp, Interrupted, interruptible
from loadtest.loads import Options, say
from loadtest.machine import boot, process
from loadtest.redaction import hide

POLL_S = 0.2
ALONE_S = 60.0  # after the end of the run's time a worker that isn't told to stop does it by itself
GOODBYE_S = 0.3  # for the last messages to be on their way

OptionsOf = Callable[[Namespace], Options]


def run(host: str, port: int, parent: int | None, own: Namespace, options_of: OptionsOf) -> int:
    """parent: the process that started this one as its child. own: the worker's command line, with the keys that no
    message carries. options_of: checks and completes options.
    """
    worker: Worker | None = None

    def work() -> None:
        nonlocal worker
        if parent is not None:
            gevent.spawn(end_with, parent)
        else:
            say(f"connecting to the master at {host}:{port}")
        try:
            runner = locust_runner.worker(host, port)
        except ConnectionError as error:
            raise GaveUp(f"no master answers at {host}:{port}: is it running, and its port open?") from error
        worker = Worker(runner, own, options_of)
        worker.serve()

    problem = interruptible(work)
    if worker is not None:
        worker.leave(patience_s(parent))
    if isinstance(problem, Interrupted):
        return 130
    if problem is not None:
        say(str(problem))
    return worker.code if worker is not None and problem is None else 2


class Worker:
    def __init__(self, runner: Any, own: Namespace, options_of: OptionsOf) -> None:
        self._runner, self._own, self._options_of = runner, own, options_of
        self._asked: Queue[tuple[str, dict[str, Any]]] = Queue()
        self._link = Link(runner, partial(locust_runner.tell, runner), self._heard)
        self._share: Share | None = None
        self._alone_s: float | None = None  # when it stops by itself
        self._problem: dict[str, str] = {}  # what no request can go on after, once it has come
        self.code = 2

    def serve(self) -> None:
        """Do what is asked, until the master says goodbye or isn't heard any more: then locust ends its greenlets."""
        while len(self._runner.greenlet):
            try:
                kind, data = self._asked.get(timeout=POLL_S)
            except Empty:
                if self._alone_s is not None and time.monotonic() > self._alone_s:
                    self._stop(0.0, PATIENCE_S)
                continue
            match kind:
                case "task":
                    self._take(data)
                case "before" if self._share:
                    self._share.before()
                    self._link.answer(kind, {})
                case "after" if self._share:
                    self._link.answer(kind, {"read": self._share.after()})
                case "gather" if self._share and self._share.loop:
                    self._share.loop.gather(self._runner.target_user_count)
                    self._link.answer(kind, {})
                case "begin" if self._share:
                    self._share.begin(data)
                    self._link.answer(kind, {})
                case "stop":
                    self._stop(data["drain_s"], PATIENCE_S)
                case "calibrate":
                    with contextlib.redirect_stderr(io.StringIO()):  # every process would show a bar of its own
                        self._link.answer(kind, replay_share(data))

    def leave(self, patience_s: float) -> None:
        """Stop and deliver, where that wasn't done, and take leave of the master."""
        self._stop(0.0, patience_s if len(self._runner.greenlet) else 0.0)
        self._runner.environment.events.quitting.fire(environment=self._runner.environment)  # so locust says goodbye
        gevent.sleep(GOODBYE_S)
        self._runner.quit()

    def _heard(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "cut":  # while it stops, too
            if self._share is not None:
                self._share.cut()
            self._runner.environment.stop_timeout = 0
            self._runner.user_greenlets.kill(block=False)
            self._link.answer(kind, {})
        else:
            self._asked.put((kind, data))

    def _take(self, task: dict[str, Any]) -> None:
        who = {**process(task["process"]), "boot": boot()}
        try:
            options = self._options_of(self._asked_for(task))
            if options.dataset is not None and options.dataset.sha256 != task["dataset"]:
                raise Usage(f"{options.dataset.name} is another file here than at the master: copy that one")
            assert self._link.run is not None
            self._share = Share(
                options, task, self._link.run, self._own.results, self._runner, self._link.tell, self._fail
            )
        except (Usage, EndpointError, OSError, ValueError) as error:
            self._link.answer("task", {"who": who, "problem": hide(str(error))})
            return
        except ModuleNotFoundError as error:
            self._link.answer("task", {"who": who, "problem": remedy(error)})
            return
        self._link.shipper = self._share.shipper
        self._alone_s = time.monotonic() + options.run_time_s + options.timeouts.total_s + ALONE_S
        self._link.answer("task", {"who": who, "found": self._share.found()})

    def _asked_for(self, task: dict[str, Any]) -> Namespace:
        """The master's options; what it never sends, this worker's own. Raises: Usage where it has none."""
        asked = Namespace(**{**vars(self._own), **task["options"], "url": task["url"], "serve": None})
        for name in PATHS:
            value = getattr(asked, name)
            setattr(asked, name, None if value is None else Path(value))
        if "extra_body" not in {*task["options"], *task["held_back"]}:
            asked.extra_body = {}
        for name in task["held_back"]:
            if not getattr(self._own, name):
                option = f"--{name.replace('_', '-')}"
                raise Usage(f"the master was given {option}, and keys are never sent: give it to this worker too")
        return asked

    def _stop(self, drain_s: float, patience_s: float) -> None:
        if self._share is None:
            return
        if self._share.stopped:
            return
        said = self._share.stop(drain_s, patience_s)
        self._alone_s = None
        self.code = 1 if said["undelivered"] else 0
        if said["undelivered"]:
            say(f"{said['undelivered']} of {said['samples']} samples could not be delivered, they are {said['saved']}")
        self._link.answer("stop", said | self._problem)

    def _fail(self, error: Exception) -> None:
        self._problem = {"problem": hide(f"the run can't go on: {error}")}
        self._link.answer("failed", self._problem)
