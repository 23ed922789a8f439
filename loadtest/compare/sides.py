"""The two sides of a comparison, and which of their cells may be compared: same plan, lengths, load and prompts.

What else differs between the sides (the endpoint, its slots, the machine) is what a comparison is made for, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.sample import Sample

Key = tuple[Any, ...]
KEY = ("config", "concurrency", "input_tokens", "new_tokens", "dataset")


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder, read. `samples` are there where blocks of it will be compared."""

    name: str  # of its folder
    run: Mapping[str, Any]  # run.json
    summary: Mapping[str, Any]
    samples: Mapping[Key, Sequence[Sample]] = field(default_factory=dict)  # steady ones, by cell

    @property
    def identity(self) -> tuple[Any, ...]:
        """What no other run has in common: a copy of a folder is the same run."""
        return tuple(self.run[name] for name in ("run", "created", "seed"))

    @property
    def hosts(self) -> dict[int, str]:
        return {process["process"]: process["host"] for process in self.run["processes"]}

    def cells(self) -> dict[Key, list[Mapping[str, Any]]]:
        """Entries of the summary. More than one of a key: served with different slots."""
        found: dict[Key, list[Mapping[str, Any]]] = {}
        for entry in self.summary["cells"]:
            found.setdefault(key_of(entry["cell"]), []).append(entry)
        return found


@dataclass(frozen=True, slots=True)
class Pair:
    """One cell of both sides: what each run has of it, in the order of the runs."""

    key: Key
    label: str
    a: Sequence[Mapping[str, Any]]
    b: Sequence[Mapping[str, Any]]
    loop: str  # waves | closed | open


@dataclass(frozen=True, slots=True)
class Unpaired:
    label: str
    why: str


class SidesError(ValueError):
    """The runs can't be the two sides of a comparison; the message says which and why."""


def key_of(cell: Mapping[str, Any]) -> Key:
    return tuple(cell[name] for name in KEY)


def check(a: Sequence[Run], b: Sequence[Run]) -> None:
    """Raises: SidesError where a run is there twice: it would count as a repetition that nobody made."""
    seen: dict[tuple[Any, ...], str] = {}
    for side, runs in (("A", a), ("B", b)):
        for run in runs:
            if (before := seen.get(run.identity)) is not None:
                raise SidesError(
                    f"{run.name} in {side} is the run that is already there as {before}: a run counts once; leave one "
                    "of them out"
                )
            seen[run.identity] = f"{run.name} in {side}"


def pairs(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[Pair], list[Unpaired]]:
    """The cells that every run of both sides measured in the same way; and the others, each with its reason."""
    runs = [("A", run) for run in a] + [("B", run) for run in b]
    cells = [run.cells() for _, run in runs]
    labels = {key: found[0]["label"] for each in cells for key, found in each.items()}
    paired, unpaired = [], []
    for key, label in labels.items():
        why = _absent(key, runs, cells) or _unlike(key, runs, cells)
        if why:
            unpaired.append(Unpaired(label, why))
            continue
        entries = [each[key][0] for each in cells]
        paired.append(Pair(key, label, entries[: len(a)], entries[len(a) :], _loop(runs[0][1], entries[0])))
    return paired, unpaired


def _absent(key: Key, runs: Sequence[tuple[str, Run]], cells: Sequence[Mapping[Key, Any]]) -> str | None:
    lacking = [f"{run.name} in {side}" for (side, run), each in zip(runs, cells, strict=True) if key not in each]
    return f"not measured by {_listed(lacking)}" if lacking else None


def _unlike(key: Key, runs: Sequence[tuple[str, Run]], cells: Sequence[Mapping[Key, Any]]) -> str | None:
    for (side, run), each in zip(runs, cells, strict=True):
        if len(each[key]) > 1:
            return f"{run.name} in {side} has it {len(each[key])} times, with different slots"
    found: dict[str, dict[str, str]] = {}
    for (side, run), each in zip(runs, cells, strict=True):
        for name, value in _traits(run, each[key][0]).items():
            found.setdefault(name, {}).setdefault(str(value), f"{run.name} in {side}")
    for name, values in found.items():
        if len(values) > 1:
            return f"{name} differs: " + ", ".join(f"{value} in {where}" for value, where in values.items())
    for side in ("A", "B"):
        slots = {each[key][0]["cell"]["slots"] for (of, _), each in zip(runs, cells, strict=True) if of == side}
        if len(slots) > 1:
            return f"runs of {side} were served with different slots: {_listed(sorted(map(str, slots)))}"
    return None


def _loop(run: Run, entry: Mapping[str, Any]) -> str:
    return "waves" if entry["waves"] is not None else "open" if run.run.get("open_loop") else "closed"


def _traits(run: Run, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in every run, for a cell of the same name to be the same load."""
    loop = run.run.get("open_loop") or {}
    return {
        "plan": run.run["plan"] or "none",
        "loop": _loop(run, entry),
        "arrivals": f"{loop['kind']} {loop['rate_per_s']:g}/s, burstiness {loop['burstiness']:g}" if loop else "none",
        "shared prefix": f"{run.summary['shared_prefix_tokens']} tokens",
        "dataset": (run.run.get("dataset") or {}).get("sha256", "none")[:12],
        "streaming": "yes" if entry["streamed"] else "no",
    }


def differing(a: Sequence[Run], b: Sequence[Run]) -> Iterator[str]:
    """What isn't the same on both sides, or within one: `transport: gevent in A; httpx in B`."""
    for name in ("endpoint", "protocol", "served by", "slots", "transport", "machine", "tokenclock"):
        said = [sorted({str(_said(run)[name]) for run in side}) for side in (a, b)]
        if said[0] != said[1] or len(said[0]) > 1:
            yield f"{name}: {_listed(said[0])} in A; {_listed(said[1])} in B"


def _said(run: Run) -> dict[str, str]:
    endpoints = run.run["endpoints"]
    cells = run.summary["cells"]
    info = [endpoint["info"] or {} for endpoint in endpoints]
    machine = run.run["machine"]
    return {
        "endpoint": _listed(sorted({endpoint["command"] or endpoint["url"] for endpoint in endpoints})),
        "protocol": _listed(sorted({endpoint["protocol"] for endpoint in endpoints})),
        "served by": _listed(
            sorted({f"{each.get('model_id') or each.get('id')} {each.get('version') or ''}".strip() for each in info})
        ),
        "slots": _listed(sorted({f"{e['cell']['config'] or ''} {e['cell']['slots']}".strip() for e in cells})),
        "transport": _listed(sorted({name for entry in cells for name in entry["transports"]})),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['platform']}",
        "tokenclock": run.run["tool"]["version"],
    }


def doubts(runs: Sequence[Run]) -> Iterator[str]:
    """What speaks against the figures, as the runs' own reports say it: one sentence for each kind of doubt."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.summary["interrupted"]:
            found.setdefault("the run was interrupted", []).append(run.name)
        if run.summary.get("lost"):
            found.setdefault("samples of some of its processes are missing", []).append(run.name)
        if (verdict := run.summary["client"]["verdict"]) != "ok":
            found.setdefault(f"the client was {verdict}", []).append(run.name)
        for entry in run.summary["cells"]:
            if failed := entry["samples"]["failed"]:
                of = f"{failed} of {entry['samples']['steady']}"
                found.setdefault("requests failed", []).append(f"{of} of {entry['label']} in {run.name}")
            if entry["off_plan"]:
                found.setdefault("requests were off plan", []).append(f"{entry['label']} in {run.name}")
            if entry["stream"]["buffered"]:
                found.setdefault("the stream was buffered", []).append(f"{entry['label']} in {run.name}")
    for what, where in found.items():
        yield f"{what} ({', '.join(where)}); the run's report says more"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
