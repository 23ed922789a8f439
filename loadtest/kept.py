"""What an interrupted run has measured and what is left of its plan, read from its samples. Waves are kept whole.

Everything that was measured stays in the figures, so that nobody can drop what he doesn't like by interrupting it. A
cell goes on with the waves that it lacks: a wave is one observation, and no instants of two processes meet in it. A
wave that was cut is in the file, and no observation; nor is its number used again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loadtest.endpoints.base import EndpointError
from loadtest.plan import Cell
from loadtest.sample import Sample

Key = tuple[str | None, int, int | None, int | None]

#: What tells one endpoint from another in what it says of itself: TGI's names, OpenAI's, vLLM's, ours.
IDENTITY = (
    "model_id",
    "model_sha",
    "model_dtype",
    "id",
    "root",
    "router",
    "version",
    "max_total_tokens",
    "max_model_len",
    "backend",
)


class Lack(NamedTuple):
    """Waves that a cell has still to be measured in."""

    cell: Cell
    waves: int
    first: int  # the least number from which on no wave of the cell has had one


@dataclass(frozen=True, slots=True)
class Kept:
    """Nothing, unless a run goes on."""

    full: Mapping[Key, int] = field(default_factory=dict)  # steady waves that are there whole
    used: Mapping[Key, int] = field(default_factory=dict)  # wave numbers, whatever their phase
    endpoints: Sequence[Mapping[str, Any]] = ()  # as in run.json
    cells: frozenset[Cell] = frozenset()  # without their waves

    def lacking(self, cells: Iterable[Cell], waves: int) -> list[Lack]:
        """What is left of these cells, where each has `waves` waves in the end."""
        lacks = (Lack(cell, waves - self.full.get(_key(cell), 0), self.used.get(_key(cell), 0)) for cell in cells)
        return [lack for lack in lacks if lack.waves > 0]

    def check(
        self, config: str | None, url: str, protocol: str, info: Mapping[str, Any] | None, slots: int | None
    ) -> None:
        """An endpoint must be the one that a configuration was begun with; where none was, it may be any.

        info: as run.json has it. Raises: EndpointError saying what differs.
        """
        begun = {cell.slots for cell in self.cells if cell.config == config}
        if not begun:
            return
        found = [f"it has {_slots(slots)}, not {_slots(each)}" for each in begun if each != slots]
        for known in self.endpoints:
            if known["config"] == config:
                if known["protocol"] != protocol:
                    found.append(f"it speaks {protocol}, not {known['protocol']}")
                found += _of_info(known["info"] or {}, info or {})
        if found:
            raise EndpointError(
                f"{url} is not the endpoint that {config} was begun with: {'; '.join(dict.fromkeys(found))}; "
                "bring that one back, or begin a new run"
            )


NOTHING = Kept()


def kept(samples: Iterable[Sample], endpoints: Sequence[Mapping[str, Any]]) -> Kept:
    """endpoints: as in run.json."""
    members: Counter[tuple[Key, int, int]] = Counter()
    used: dict[Key, int] = {}
    cells = set()
    for sample in samples:
        cell = sample.cell
        cells.add(cell.in_wave(None))
        if cell.wave is None:
            continue
        used[_key(cell)] = max(used.get(_key(cell), 0), cell.wave + 1)
        if sample.phase == "steady":
            members[_key(cell), sample.process, cell.wave] += 1
    full = Counter(key for (key, _, _), requests in members.items() if requests == key[1])
    return Kept(full, used, endpoints, frozenset(cells))


def _key(cell: Cell) -> Key:
    """A cell of the plan; what the endpoint says of its slots is no part of that."""
    return cell.config, cell.concurrency, cell.input_tokens, cell.new_tokens


def _of_info(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in IDENTITY:
        if name in known and now.get(name) != known[name]:
            yield f"its {name} is {now.get(name)!r}, not {known[name]!r}"


def _slots(slots: int | None) -> str:
    return "an unknown number of slots" if slots is None else f"{slots} slot{'s' if slots != 1 else ''}"
