"""A test of plain `locust` in the process that measures: alone, or a worker of a master."""

from __future__ import annotations

from loadtest.runner import Load  # isort: skip  (first: importing locust patches sockets)

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.arguments import INPUT_TOKENS, Usage, check_wire, dataset, shared_prefix, wanted
from loadtest.books import Books
from loadtest.datasets import DatasetPrompts
from loadtest.dispatch import ClosedLoop, ids
from loadtest.distributed.attached import Attached
from loadtest.extras import needed, require
from loadtest.live.counting import Live
from loadtest.monitor import Monitor
from loadtest.plan import Cell
from loadtest.record import Recorder
from loadtest.redaction import hide
from loadtest.report import write
from loadtest.site import Look
from loadtest.transport.base import Timeouts
from loadtest.transport.choice import connecting, controlling, trusting

logger = logging.getLogger(__name__)


class Session:
    """Everything between Start and Stop in this process."""

    def __init__(self, environment: Any, master: Attached | None, fail: Callable[[Exception], None]) -> None:
        """environment: a locust.env.Environment. master: a worker's. fail: told what no request can go on after.

        Raises: Usage; TlsError; ModuleNotFoundError where an extra is missing; EndpointError where the endpoint can't
        be measured; OSError where results can't be written.
        """
        asked, runner = environment.parsed_options, environment.runner
        task = master.task() if master else alone(asked, runner.target_user_count)
        if task is None:
            raise Usage("the master says nothing of a test: is it another version of tokenclock?")
        process, users, seed = task["process"], task["users"], task["seed"]
        require(*needed(environment.host, asked.tokenizer))
        tls = trusting(asked.transport, asked.cacert and Path(asked.cacert), asked.insecure, asked.http2)
        check_wire(asked, environment.host)
        lines = dataset(asked, None if asked.input_tokens == INPUT_TOKENS else asked.input_tokens)
        look = Look(
            connecting(asked.transport, tls),
            controlling(asked.transport, tls),
            wanted(asked),
            asked.tokenizer and Path(asked.tokenizer),
            shared=shared_prefix(asked, asked.input_tokens, seed),
        )
        url, own_seed = environment.host or "", f"{seed}-{process}"
        if lines is None:
            found = look.at(url, own_seed, [asked.input_tokens], asked.input_tokens + asked.new_tokens)
            self.cell = Cell(None, found.description.slots, users, asked.input_tokens, asked.new_tokens)
        else:
            found = look.at_with(url, f"{seed}", lines, asked.dataset_order or "shuffle")
            self.cell = Cell(None, found.description.slots, users, None, None, dataset=lines.name)
        self.prompts: DatasetPrompts | None = None
        if isinstance(found.prompts, DatasetPrompts):
            self.prompts = found.prompts.among(task["turn"], task["of"])
        for note in found.notes:
            logger.info("%s", hide(note))
        self._master = master
        self.recorder: Recorder | None = None
        if master is None:
            self.recorder = recorded(asked, users, seed)
            self.recorder.endpoint(None, found.url, found.endpoint.protocol, found.description.info, None)
            self.recorder.shared_prefix(asked.shared_prefix_tokens)
            if self.prompts:
                self.recorder.dataset(self.prompts.said())
            run, keep, together = (
                self.recorder.run,
                self.recorder.add,
                lambda: (runner.user_count, runner.target_user_count),
            )
        else:
            self.shipper = master.shipper(Path(asked.results_dir))
            run, keep, together = self.shipper.run, self.shipper.keep, master.together
            master.found(
                {
                    "url": found.url,
                    "protocol": found.endpoint.protocol,
                    "info": found.description.info,
                    "shared_prefix_tokens": asked.shared_prefix_tokens,
                }
            )
        dispatch = ClosedLoop(self.cell, self.prompts or found.prompts, ids(run, process), together)
        self.load = Load(
            found.target, found.connect, found.endpoint, dispatch, run, process, Timeouts(), keep, fail,
            live=Live(process),
        )  # fmt: skip
        self.books = Books(environment, found.endpoint.route, keep, fail, self.load.live.kept)
        self.monitor = Monitor(self.load.live.loop_lags_s)
        self.monitor.start()

    def close(self) -> None:
        self.books.close()
        seen = self.monitor.stop()
        self.load.live.end()
        drawn = self.prompts.said() if self.prompts else None
        if self._master is not None:
            said = {"client": seen, "cell": asdict(self.cell), "dataset": drawn}
            self._master.stopped({**said, **self.shipper.finish(self._master.patience_s)})
        if self.recorder is None:
            return
        self.recorder.client(self.cell, seen)
        if self.prompts and drawn:
            self.recorder.dataset(drawn)
            if repeated := self.prompts.repeats(self.recorder.complete + self.recorder.other):
                logger.warning("%s", repeated)
        self.recorder.close(interrupted=False)
        logger.info("report: %s", write(self.recorder.folder))


def alone(asked: Any, users: int) -> dict[str, Any]:
    """What a master says, for a process that has none."""
    return {"process": 0, "turn": 0, "of": 1, "users": users, "seed": asked.seed or time.time_ns()}


def recorded(asked: Any, users: int, seed: int) -> Recorder:
    """Raises: OSError."""
    options = {name: value for name, value in vars(asked).items() if isinstance(value, str | int | float)}
    return Recorder(
        Path(asked.results_dir), f"{users}-users", plan=None, configs=[], waves=None, seed=seed, options=options
    )
