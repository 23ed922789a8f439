"""A worker's end: it does what its master asks, once, and ships its samples until all of them are acknowledged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from loadtest.distributed.shipping import Outbox
from loadtest.sample import Sample

ASK, ANSWER, SAMPLES, ACK = (f"tokenclock-{name}" for name in ("ask", "answer", "samples", "ack"))
AGAIN_S = 2.0  # after which what isn't answered goes once more
PAUSE_S = 0.25  # between two parcels: one of many samples costs less than many of one
PATIENCE_S = 20.0  # with one who is silent, at the end
IDLE_S = 1.0  # how long a parcel may wait for a moment in which no stream has anything to do

#: What a worker answers to `stop` that measured nothing.
NOTHING = {
    "samples": 0,
    "undelivered": 0,
    "saved": None,
    "end": None,
    "client": None,
    "schedule": None,
    "dataset": None,
}

#: Sends a message of a kind. Loses it, as a network may, where it can't be sent now.
Tell = Callable[[str, dict[str, Any]], None]


class Shipper:
    """Samples of one run, on their way to the master. Works where no stream has anything to do."""

    def __init__(self, run: str, process: int, results: Path, tell: Tell) -> None:
        """results: where what could not be delivered is left. Raises: OSError where there is no temporary file."""
        self.run, self.process = run, process
        self._results, self._tell = results, tell
        self._file = tempfile.TemporaryFile(prefix="tokenclock-")  # noqa: SIM115 - closed by `finish`
        self._outbox = Outbox(self._file)
        self._news, self._got, self._hurry = Event(), Event(), Event()
        self._heard_s = time.monotonic()
        self._greenlet = gevent.spawn(self._work)

    def keep(self, sample: Sample) -> None:
        """Raises: OSError where the temporary files' disk is full."""
        self._outbox.add(sample.to_json().encode())
        self._news.set()

    def acknowledged(self, has: int) -> None:
        self._heard_s = time.monotonic()
        if self._outbox.acknowledge(has):
            self._got.set()

    def finish(self, patience_s: float) -> dict[str, Any]:
        """Ship what there is; what nobody takes in `patience_s` seconds of silence is saved. No `keep` after this.

        Returns: {"samples", "undelivered", "saved": path or what kept it from being saved, None where all arrived}.
        """
        self._hurry.set()
        self._heard_s = time.monotonic()
        while self._outbox.acknowledged < self._outbox.put and time.monotonic() - self._heard_s < patience_s:
            gevent.sleep(0.02)
        self._greenlet.kill()
        left = self._outbox.put - self._outbox.acknowledged
        saved = self._save() if left else None
        self._file.close()
        return {"samples": self._outbox.put, "undelivered": left, "saved": saved}

    def _work(self) -> None:
        while True:
            parcel = self._outbox.parcel()
            if parcel is None:
                self._news.clear()
                self._news.wait()
                self._hurry.wait(PAUSE_S)
                continue
            with gevent.Timeout(IDLE_S, False):
                gevent.idle()
            self._got.clear()
            self._tell(SAMPLES, {"run": self.run, "first": parcel.first, "lines": parcel.lines})
            self._got.wait(AGAIN_S)

    def _save(self) -> str:
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            path = self._results / f"undelivered-{self.run}-{self.process}.jsonl"
            path.write_bytes(self._outbox.rest())
        except OSError as error:
            return f"nowhere: {error.strerror}"
        return str(path.absolute())


class Link:
    """What a worker hears of its master and answers."""

    def __init__(self, runner: Any, tell: Tell, heard: Callable[[str, dict[str, Any]], None]) -> None:
        """runner: a locust.runners.WorkerRunner. heard: told of everything that is asked, (kind, data), once; must not
        block, since nothing else is received meanwhile.
        """
        self.tell, self._heard = tell, heard
        self.run: str | None = None
        self.shipper: Shipper | None = None
        self._asked: set[str] = set()
        self._answers: dict[str, dict[str, Any]] = {}
        runner.register_message(ASK, self._ask)
        runner.register_message(ACK, self._acknowledged)

    def answer(self, kind: str, data: dict[str, Any]) -> None:
        """Also unasked: a worker may stop by itself."""
        self._answers[kind] = data
        self.tell(ANSWER, {"run": self.run, "kind": kind, "data": data})

    def _ask(self, msg: Any, **_: object) -> None:
        run, kind, data = msg.data["run"], msg.data["kind"], msg.data["data"]
        if kind == "task" and run != self.run:
            self.run, self._asked, self._answers = run, set(), {}
        if run != self.run:
            return
        if kind in self._answers:
            self.answer(kind, self._answers[kind])
        elif kind not in self._asked:
            self._asked.add(kind)
            self._heard(kind, data)

    def _acknowledged(self, msg: Any, **_: object) -> None:
        if self.shipper is not None and msg.data["run"] == self.shipper.run:
            self.shipper.acknowledged(msg.data["has"])
