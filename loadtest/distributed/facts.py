"""What run.json says of the processes, from what each said of itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from loadtest.distributed.crew import Crew, Member
from loadtest.plan import Cell
from loadtest.record import Recorder


def processes(members: Iterable[Member]) -> list[dict[str, Any]]:
    """run.json's `processes`. Machines that are called the same and aren't get different names: by the name it is
    decided whose instants may be compared.
    """
    said = {m.process: (m.answers["task"]["who"], m.answers.get("stop")) for m in members if "task" in m.answers}
    boots: dict[str, set[str]] = defaultdict(set)
    for who, _ in said.values():
        boots[who["host"]].add(who["boot"])
    return [
        {
            "process": process,
            "host": who["host"] if len(boots[who["host"]]) == 1 else f"{who['host']} ({who['boot'][:8]})",
            "pid": who["pid"],
            "start": who["start"],
            "end": stopped["end"] if stopped else None,
        }
        for process, (who, stopped) in sorted(said.items())
    ]


def written(crew: Crew, recorder: Recorder) -> list[str]:
    """What the workers said at their end, into run.json; returns a sentence for each of which something is missing."""
    members = list(crew.members.values())
    recorder.workers(processes(members))
    stopped = {member.process: member.answers["stop"] for member in members if "stop" in member.answers}
    for process, said in stopped.items():
        if said["client"]:
            recorder.client(Cell(**said["cell"]), said["client"], process)
    drawn = [said["dataset"] for said in stopped.values() if said["dataset"]]
    if drawn:
        recorder.dataset({**drawn[0], "drawn": sum(each["drawn"] for each in drawn)})
    if (sums := schedule(members)) and all("stop" in member.answers for member in members):
        recorder.schedule(**sums)
    missing = crew.missing()
    recorder.distributed(crew.workers(), missing)
    return missing


def schedule(members: Iterable[Member]) -> dict[str, int] | None:
    """What became of an open loop's schedule by those who said; None where nobody did."""
    said = [kept for each in members if (kept := each.answers.get("stop", {}).get("schedule"))]
    return {name: sum(each[name] for each in said) for name in ("taken", "late", "unsent")} if said else None


def same_endpoint(members: Sequence[Member]) -> str | None:
    """A sentence where two workers found different endpoints: their figures are not one run's."""
    first = members[0].answers["task"]["found"]
    for member in members[1:]:
        found = member.answers["task"]["found"]
        for what in ("protocol", "cell"):
            if found[what] != first[what]:
                return (
                    f"{members[0].name} and {member.name} found different endpoints, {what} {first[what]} and "
                    f"{found[what]}: let the URL mean the same on every machine"
                )
    return None
