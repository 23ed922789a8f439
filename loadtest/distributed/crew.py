"""The master's end: who its workers are, what each of them said, and every sample of theirs, written down once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event

from loadtest.distributed.link import ACK, AGAIN_S, ANSWER, ASK, PATIENCE_S, SAMPLES
from loadtest.distributed.shipping import Inbox
from loadtest.record import Recorder

POLL_S = 0.2

#: Sends a message of a kind to a worker of that id. Loses it, as a network may, where it can't be sent now.
TellWorker = Callable[[str, dict[str, Any], str], None]


@dataclass(slots=True, eq=False)
class Member:
    """One worker, as far as its master knows."""

    uid: str  # locust's
    process: int  # as in its samples
    users: int = 0  # that it was last known to run
    heard_s: float = field(default_factory=time.monotonic)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: bool = False  # before it was asked to stop

    @property
    def name(self) -> str:
        who = self.answers.get("task", {}).get("who")
        return f"process {self.process}" + (f" ({who['host']}, pid {who['pid']})" if who else "")


class Crew:
    """All workers of a run. One at a time: `begin`, then `finish`."""

    def __init__(self, runner: Any, tell: TellWorker, ended: Callable[[Member], bool] = lambda _: False) -> None:
        """runner: a locust.runners.MasterRunner. ended: whether a worker's process is known to be gone."""
        self._runner, self._tell, self._ended = runner, tell, ended
        self.recorder: Recorder | None = None
        self.members: dict[str, Member] = {}
        self.known_gone: set[str] = set()  # of them, who was told to be
        self.problem: Exception | None = None  # samples could not be written
        self._stopping = False
        self._inbox = Inbox(self._write)
        self._news = Event()
        runner.register_message(ANSWER, self._answered)
        runner.register_message(SAMPLES, self._samples)
        runner.environment.events.heartbeat_sent.add_listener(self._beat)
        runner.environment.events.worker_report.add_listener(self._report)

    def begin(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.members, self.known_gone = {}, set()
        self.problem, self._stopping = None, False
        self._inbox = Inbox(self._write)

    def join(self, uid: str, process: int) -> Member:
        return self.members.setdefault(uid, Member(uid, process))

    def tell(self, member: Member, kind: str, data: Mapping[str, Any]) -> None:
        assert self.recorder is not None
        self._tell(ASK, {"run": self.recorder.run, "kind": kind, "data": dict(data)}, member.uid)

    def gone(self, member: Member) -> bool:
        """Whether its process is known to have ended, or it has taken its leave. One that is silent may come back."""
        return self._ended(member) or member.uid not in self._runner.clients

    def ask(
        self,
        kind: str,
        data: Callable[[Member], Mapping[str, Any]],
        most_s: float,
        among: Sequence[Member] | None = None,
    ) -> list[Member]:
        """Ask all of them, until each has answered, is gone, or is silent for PATIENCE_S; `most_s` seconds at most.
        Returns who has not answered.
        """
        begun_s = time.monotonic()
        self._stopping = self._stopping or kind == "stop"
        asked_s: dict[str, float] = {}
        members = list(self.members.values()) if among is None else list(among)
        while True:
            self._news.clear()
            open_ = [member for member in members if kind not in member.answers]
            now_s = time.monotonic()
            if self.problem or now_s > begun_s + most_s:
                return open_
            if all(self.gone(each) or now_s > max(each.heard_s, begun_s) + PATIENCE_S for each in open_):
                return open_
            for member in open_:
                if now_s - asked_s.get(member.uid, 0.0) >= AGAIN_S:
                    asked_s[member.uid] = now_s
                    self.tell(member, kind, data(member))
            self._news.wait(POLL_S)

    def workers(self) -> list[dict[str, Any]]:
        """What run.json's `distributed` says of each: see run.schema.json."""
        return [
            {
                "process": member.process,
                "users": member.users,
                "samples": self._inbox.has(member.uid),
                "whole": member.answers.get("stop", {}).get("samples") == self._inbox.has(member.uid),
            }
            for member in sorted(self.members.values(), key=lambda each: each.process)
        ]

    def missing(self) -> list[str]:
        """Sentences, one for each worker of which something is missing: run.json's `distributed` keeps them."""
        ordered = sorted(self.members.values(), key=lambda each: each.process)
        return [said for member in ordered if (said := self._missing(member)) is not None]

    def _missing(self, member: Member) -> str | None:
        """Compares what a worker says it measured with what is in the file."""
        has = self._inbox.has(member.uid)
        stopped = member.answers.get("stop")
        users = f"{member.users} of {self._runner.target_user_count} users vanished with it"
        if stopped is None:
            return (
                f"{member.name} was gone before the end: {users}; {has} samples that it had sent are kept, what else "
                "it measured is lost"
            )
        if has != stopped["samples"]:
            return (
                f"{stopped['samples'] - has} of {stopped['samples']} samples of {member.name} did not arrive; they are "
                f"on its machine: {stopped['saved'] or 'nowhere'}; append those that samples.jsonl lacks, by their id, "
                "and report again"
            )
        if member.left:
            return f"{member.name} left before the end: {users}; its {has} samples are all here"
        return None

    def _write(self, lines: Sequence[bytes]) -> None:
        assert self.recorder is not None
        self.recorder.add_lines(lines)

    def _samples(self, msg: Any, **_: object) -> None:
        member, said = self._heard(msg.node_id), msg.data
        if member is None or self.recorder is None or said["run"] != self.recorder.run or self.problem:
            return
        try:
            has = self._inbox.take(member.uid, said["first"], said["lines"])
        except OSError as error:  # a line may be half there: nothing more is written behind it
            self.problem = error
            self._news.set()
            return
        self._tell(ACK, {"run": said["run"], "has": has}, member.uid)

    def _answered(self, msg: Any, **_: object) -> None:
        member, said = self._heard(msg.node_id), msg.data
        if member is not None and self.recorder is not None and said["run"] == self.recorder.run:
            member.left = member.left or (said["kind"] == "stop" and not self._stopping)
            member.answers[said["kind"]] = said["data"]
            self._news.set()

    def _heard(self, uid: str) -> Member | None:
        if member := self.members.get(uid):
            member.heard_s = time.monotonic()
        return member

    def _beat(self, client_id: str, **_: object) -> None:
        self._heard(client_id)

    def _report(self, client_id: str, data: Mapping[str, Any], **_: object) -> None:
        member = self._heard(client_id)
        if member is not None and "stop" not in member.answers and data.get("user_count"):
            member.users = data["user_count"]
