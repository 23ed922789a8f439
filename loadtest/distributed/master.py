"""The master of `tokenclock run`: workers come, are told what to measure, get their users, and give everything back."""

from __future__ import annotations

from loadtest import runner as locust_runner  # isort: skip  (first: importing locust patches sockets)

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gevent

from loadtest.calibrate.after import share
from loadtest.calibrate.errors import worst
from loadtest.distributed.children import Children, children
from loadtest.distributed.crew import Crew, Member
from loadtest.distributed.facts import processes, same_endpoint, schedule, written
from loadtest.distributed.link import AGAIN_S
from loadtest.distributed.spread import Spread
from loadtest.free import progress_of, schedule_kept, until_over
from loadtest.interruption import GaveUp, Interrupted
from loadtest.live.exporter import exported
from loadtest.live.processes import REPORT, Workers
from loadtest.live.watch import gather
from loadtest.loads import Options, say, serving
from loadtest.machine import boot
from loadtest.plan import Cell
from loadtest.record import Recorder
from loadtest.redaction import hide

START_S = 60.0  # for our own processes to be there
LOOK_S = 600.0  # for workers to look at the endpoint
USERS_S = 60.0  # for users to be there
AHEAD_S = 0.1  # of the begin of an open loop it is told so long before
DRAIN_S = 60.0  # that a worker may need beyond the longest request
METRICS_S = 30.0  # to read a page of the server's metrics
CALIBRATE_S = 120.0


def measure_spread(options: Options, spread: Spread, recorder: Recorder) -> None:
    """A free run in several processes; see `loadtest.distributed`.

    Raises: GaveUp where it can't be measured, or where a worker can't go on; EndpointError where it can't be served.
    """
    recorder.workers([])
    with serving(options, None, recorder) as (url, command):
        _measure_at(url, command, options, spread, recorder)


def _measure_at(url: str, command: str | None, options: Options, spread: Spread, recorder: Recorder) -> None:
    try:
        runner = locust_runner.master(spread.host, spread.port)
    except OSError as error:
        raise GaveUp(f"workers can't connect: {error}; choose another --master-port") from error

    def ended(member: Member) -> bool:
        client = runner.clients.get(member.uid)
        if client is not None and client.state == "missing":  # for so long that it has stopped by itself
            return True
        return "task" in member.answers and started.ended(member.answers["task"]["who"]["pid"])

    crew = Crew(runner, partial(locust_runner.tell, runner), ended)
    crew.begin(recorder)
    seen = gather(runner.environment)
    with (
        _workers(spread, runner.server.port, options) as started,
        exported(seen, options.results, say),
    ):
        try:
            _gather(crew, runner, spread, started)
            cell = _prepare(crew, options, url, spread, recorder, command)
            _measure(crew, runner, options, recorder, cell, seen)
            if options.calibrate:
                recorder.calibration(_calibrated(crew, recorder))
        finally:
            locust_runner.dismiss(runner)


@contextmanager
def _workers(spread: Spread, port: int, options: Options) -> Iterator[Children]:
    if not spread.children:
        say(f"waiting for {spread.workers} workers on port {port}")
        yield Children(())
        return
    with children(spread.workers, port, options.results, spread.own) as started:
        yield started


def _gather(crew: Crew, runner: Any, spread: Spread, started: Children) -> None:
    """Wait until there are as many workers as there should be. Raises: GaveUp where our own don't come."""
    begun_s = time.monotonic()
    while len(runner.clients.ready) < spread.workers:
        gevent.sleep(0.05)
        if lost := started.lost():
            raise GaveUp(f"there is nothing to measure with: {'; '.join(lost)}")
        if spread.children and time.monotonic() - begun_s > START_S:
            raise GaveUp(f"{len(runner.clients.ready)} of {spread.workers} processes are there after {START_S:g} s")
    for process, client in enumerate(runner.clients.ready[: spread.workers]):
        crew.join(client.id, process)


def _prepare(crew: Crew, options: Options, url: str, spread: Spread, recorder: Recorder, command: str | None) -> Cell:
    """Tell every worker what it measures, and hear what it found there."""
    task = {
        "of": spread.workers,
        "url": url,
        "options": {**spread.options, "seed": options.seed},
        "held_back": list(spread.held_back),
        "dataset": options.dataset.sha256 if options.dataset else None,
    }
    silent = crew.ask("task", lambda member: {**task, "process": member.process}, LOOK_S)
    members = list(crew.members.values())
    recorder.workers(processes(members))
    _check(crew, silent)
    if gone := [member for member in members if crew.gone(member)]:
        raise GaveUp(f"{gone[0].name} left before the begin: start it again")
    found = members[0].answers["task"]["found"]
    if said := same_endpoint(members):
        raise GaveUp(said)
    for note in found["notes"]:
        say(note)
    recorder.endpoint(None, url, found["protocol"], found["info"], command)
    recorder.shared_prefix(options.look.shared.tokens if options.look.shared else 0)
    if found["dataset"]:
        recorder.dataset(found["dataset"])
    return Cell(**found["cell"])


def _check(crew: Crew, silent: list[Member]) -> None:
    """Raises: GaveUp naming a worker that is gone, or has no more to do."""
    for member in crew.members.values():
        for said in member.answers.values():
            if problem := said.get("problem"):
                raise GaveUp(f"{member.name}: {problem}")
    if silent:
        raise GaveUp(f"{silent[0].name} does not answer: look at what it says itself")
    if crew.problem is not None:
        raise GaveUp(f"the run can't go on: {crew.problem}")


def _measure(crew: Crew, runner: Any, options: Options, recorder: Recorder, cell: Cell, seen: Workers) -> None:
    first = list(crew.members.values())[:1]  # one is enough to read what the server says of itself
    crew.ask("before", lambda _: {}, METRICS_S, first)
    if options.arrivals:
        recorder.open_loop(options.arrivals, options.run_time_s, options.users)
    with progress_of(options, cell, seen) as progress:
        try:
            _send_home(runner, [uid for uid in runner.clients if uid not in crew.members])
            runner.start(options.users, spawn_rate=options.users)
            _wait_for_users(crew, runner, options.users)
            if options.arrivals:
                _check(crew, crew.ask("gather", lambda _: {}, USERS_S))
                at = {"boot": boot(), "mono_ns": time.monotonic_ns() + round(AHEAD_S * 1e9)}
                crew.ask("begin", lambda _: at, AGAIN_S)  # who hears it late is late, and every sample of its says so
            for _ in until_over(options.run_time_s, progress):
                _check(crew, [])
                _say_who_is_gone(crew)
            progress.now("the time is over, what runs may finish")
            _stop(crew, recorder, options.timeouts.total_s, seen)
        except BaseException:
            crew.ask("cut", lambda _: {}, AGAIN_S)  # nobody waits for a drain after Ctrl-C
            _stop(crew, recorder, 0.0, seen)
            raise
    _check(crew, [])
    crew.ask("after", lambda _: {}, METRICS_S, first)
    recorder.server_metrics(first[0].answers.get("after", {}).get("read"))
    if sums := schedule(crew.members.values()):
        schedule_kept(options, **sums)


def _send_home(runner: Any, surplus: list[str]) -> None:
    """Workers that came beyond those expected weren't told what is measured, and would be given users all the same."""
    for uid in surplus:
        say(f"worker {uid} is one more than --expect-workers says: it is left out")
        locust_runner.tell(runner, "quit", {}, uid)
        del runner.clients[uid]


def _say_who_is_gone(crew: Crew) -> None:
    """Raises: GaveUp where all are."""
    gone = {uid for uid, member in crew.members.items() if crew.gone(member)}
    for uid in gone - crew.known_gone:
        member = crew.members[uid]
        say(f"{member.name} is gone, and its {member.users} users with it")
    crew.known_gone |= gone
    if len(gone) == len(crew.members):
        raise GaveUp("all processes are gone")


def _wait_for_users(crew: Crew, runner: Any, users: int) -> None:
    deadline_s = time.monotonic() + USERS_S
    while (there := runner.user_count) < users:
        _check(crew, [])
        if time.monotonic() > deadline_s:
            raise GaveUp(f"{there} of {users} users are there after {USERS_S:g} s")
        gevent.sleep(0.02)
    for member in crew.members.values():
        if (client := runner.clients.get(member.uid)) is not None:
            member.users = client.user_count


def _stop(crew: Crew, recorder: Recorder, drain_s: float, seen: Workers) -> None:
    """Let what runs finish, and wait until every sample is here or known to be missing: all of it into run.json."""
    # An open loop's rest of the schedule may take as long, and then what still runs.
    crew.ask("stop", lambda _: {"drain_s": drain_s}, 2 * drain_s + DRAIN_S)
    for member in crew.members.values():
        if last := member.answers.get("stop", {}).get("seen"):  # an older worker's answer has none
            seen.heard(member.uid, {REPORT: last})  # all of it: locust's last report may be 3 s old
    for sentence in written(crew, recorder):
        say(sentence)


def _calibrated(crew: Crew, recorder: Recorder) -> dict[str, Any]:
    """What run.json's `calibration` holds: all processes replay their share at once; the worst of them stands."""
    members = [member for member in crew.members.values() if not crew.gone(member)]
    try:
        asked = share(recorder.folder, len(crew.members))
        say(f"calibrating the clocks of {len(members)} processes at once, {asked['seconds']:g} s")
        silent = crew.ask("calibrate", lambda _: asked, CALIBRATE_S, members)
    except (Interrupted, OSError, ValueError, KeyError, TypeError) as error:
        return {"loads": [], "reason": hide(str(error) or repr(error))}
    answers = {member: member.answers["calibrate"] for member in members if "calibrate" in member.answers}
    reasons = [f"{member.name} did not answer" for member in silent]
    reasons += [f"{member.name}: {said['problem']}" for member, said in answers.items() if "problem" in said]
    loads = [
        {**said["load"], "process": member.process, "processes": len(crew.members)}
        for member, said in answers.items()
        if "load" in said
    ]
    loads.sort(key=lambda load: worst(load["errors"]) or 0.0)
    return {"loads": loads[-1:], "reason": "; ".join(reasons) or None}
