"""The master of plain `locust`: a test's samples, from workers that come and go, in one folder with a report."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import gevent

from loadtest.distributed.crew import Crew, Member, TellWorker
from loadtest.distributed.facts import written
from loadtest.record import Recorder
from loadtest.redaction import hide
from loadtest.report import write

TASK_S = 60.0  # for a worker to hear that there is a test
DRAIN_S = 60.0  # that a worker may need beyond locust's stop timeout

logger = logging.getLogger(__name__)


class Conductor:
    """Of all tests of a process, one after the other."""

    def __init__(self, runner: Any, tell: TellWorker) -> None:
        """runner: a locust.runners.MasterRunner."""
        self._runner = runner
        self._crew = Crew(runner, tell)
        self._test: Recorder | None = None
        self._seed = 0
        self.lost = False  # whether anything is missing of the last test
        runner.environment.events.worker_connect.add_listener(self._came)

    def begin(self, recorder: Recorder, seed: int) -> None:
        """A test starts: tell the workers that are there, before locust spawns their users."""
        self._test, self._seed, self.lost = recorder, seed, False
        recorder.workers([])
        self._crew.begin(recorder)
        for client in self._runner.clients.all:
            self._crew.join(client.id, self._runner.get_worker_index(client.id))
        for client in self._runner.clients.all:
            self._came(client.id)

    def _came(self, client_id: str, **_: object) -> None:
        if self._test is not None:
            member = self._crew.join(client_id, self._runner.get_worker_index(client_id))
            self._crew.tell(member, "task", self._task(member))
            gevent.spawn(partial(self._crew.ask, "task", self._task, TASK_S, [member]))

    def _task(self, member: Member) -> dict[str, Any]:
        return {
            "process": member.process,
            "turn": sorted(each.process for each in self._crew.members.values()).index(member.process),
            "of": max(1, len(self._crew.members)),
            "seed": self._seed,
            "users": self._runner.target_user_count,
        }

    def end(self) -> None:
        """A test stops: let what runs finish, wait until every sample is here or known to be missing, and report.
        Only the first call of a test does anything.
        """
        recorder, self._test = self._test, None
        if recorder is None:
            return
        drain_s = self._runner.environment.stop_timeout
        self._crew.ask("stop", lambda _: {}, drain_s + DRAIN_S)
        found = [member.answers["found"] for member in self._crew.members.values() if "found" in member.answers]
        for each in found[:1]:
            recorder.endpoint(None, each["url"], each["protocol"], each["info"], None)
            recorder.shared_prefix(each["shared_prefix_tokens"])
        missing = written(self._crew, recorder)
        self.lost = bool(missing)
        for sentence in missing:
            logger.warning("%s", hide(sentence))
        recorder.close(interrupted=False)
        if recorder.complete + recorder.other:
            logger.info("report: %s", write(recorder.folder))
        else:
            recorder.discard()
