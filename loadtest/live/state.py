"""What one process has seen of one test so far. Every number only grows, so the last report of it is all of it.

A worker sends its state again and again; the master keeps the last one. A report that is lost is made good by the next,
and one that comes twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtest.live.histogram import Histogram
from loadtest.verdict import Verdict

FORMAT = 2
#: What is timed: TTFT of every request at its first token; ITL, TPOT and E2E of complete requests; how much later than
#: possible requests of the steady phase were started, and the event loop woke.
TIMED = ("ttft", "itl", "tpot", "e2e", "start_lag", "loop_lag")
KINDS = ("input", "output")


@dataclass(slots=True)
class State:
    """Counts of a test, and who counted them."""

    test: str  # unique to one test in one process
    process: int
    elapsed_s: float = 0.0  # since the test began there, on that process' clock; stands still once it has ended
    cpu_s: float = 0.0  # of the process, since the test began
    first_s: float | None = None  # as elapsed_s: when the first request that ended was due, since a cell began
    last_s: float = 0.0  # likewise: when the last one ended
    timed: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMED})
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))

    @property
    def busy_s(self) -> float:
        """From when the first request was due to when the last one ended; 0 where none has."""
        return 0.0 if self.first_s is None else max(0.0, self.last_s - self.first_s)

    def since(self, before: State | None) -> State:
        """What came after an earlier state of the same test, as if it had begun then. A copy: it stands still."""
        before = State(self.test, self.process) if before is None else before
        began_s = before.elapsed_s
        return State(
            self.test,
            self.process,
            self.elapsed_s - began_s,
            self.cpu_s - before.cpu_s,
            None if self.first_s is None else max(self.first_s - began_s, 0.0),
            max(self.last_s - began_s, 0.0),
            {name: histogram.since(before.timed[name]) for name, histogram in self.timed.items()},
            {kind: count - before.tokens[kind] for kind, count in self.tokens.items()},
            {verdict: count - before.requests[verdict] for verdict, count in self.requests.items()},
        )

    def packed(self) -> dict[str, Any]:
        """For a message that carries numbers, texts, bytes, lists and dictionaries."""
        return {
            "format": FORMAT,
            "test": self.test,
            "process": self.process,
            "elapsed_s": self.elapsed_s,
            "cpu_s": self.cpu_s,
            "first_s": self.first_s,
            "last_s": self.last_s,
            "timed": {name: histogram.packed() for name, histogram in self.timed.items()},
            "tokens": self.tokens,
            "requests": {str(verdict): count for verdict, count in self.requests.items()},
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> State:
        """Raises: ValueError where it isn't a state of this version."""
        try:
            if packed["format"] != FORMAT:
                raise ValueError(f"its format is {packed['format']!r}, not {FORMAT}")
            return cls(
                str(packed["test"]),
                int(packed["process"]),
                float(packed["elapsed_s"]),
                float(packed["cpu_s"]),
                None if packed["first_s"] is None else float(packed["first_s"]),
                float(packed["last_s"]),
                {name: Histogram.unpacked(packed["timed"][name]) for name in TIMED},
                {kind: int(packed["tokens"][kind]) for kind in KINDS},
                {verdict: int(packed["requests"][verdict]) for verdict in Verdict},
            )
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"not a state of this version: {error}") from error


def total(states: Iterable[State]) -> State:
    """All of them together; `elapsed_s` and `busy_s` are the longest. Instants aren't compared, only counts added."""
    whole = State("", 0, first_s=0.0)
    for state in states:
        whole.elapsed_s = max(whole.elapsed_s, state.elapsed_s)
        whole.last_s = max(whole.last_s, state.busy_s)
        whole.cpu_s += state.cpu_s
        for name in TIMED:
            whole.timed[name].add(state.timed[name])
        for kind in KINDS:
            whole.tokens[kind] += state.tokens[kind]
        for verdict in Verdict:
            whole.requests[verdict] += state.requests[verdict]
    return whole
