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

FORMAT = 1
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
    timed: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in TIMED})
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))

    def packed(self) -> dict[str, Any]:
        """For a message that carries numbers, texts, bytes, lists and dictionaries."""
        return {
            "format": FORMAT,
            "test": self.test,
            "process": self.process,
            "elapsed_s": self.elapsed_s,
            "cpu_s": self.cpu_s,
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
                {name: Histogram.unpacked(packed["timed"][name]) for name in TIMED},
                {kind: int(packed["tokens"][kind]) for kind in KINDS},
                {verdict: int(packed["requests"][verdict]) for verdict in Verdict},
            )
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"not a state of this version: {error}") from error


def total(states: Iterable[State]) -> State:
    """All of them together; `elapsed_s` is the longest. Instants aren't compared, only counts added."""
    whole = State("", 0)
    for state in states:
        whole.elapsed_s = max(whole.elapsed_s, state.elapsed_s)
        whole.cpu_s += state.cpu_s
        for name in TIMED:
            whole.timed[name].add(state.timed[name])
        for kind in KINDS:
            whole.tokens[kind] += state.tokens[kind]
        for verdict in Verdict:
            whole.requests[verdict] += state.requests[verdict]
    return whole
