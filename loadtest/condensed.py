"""A run's samples in bounded memory: of each request its ends, of what lies between only what is counted and pooled.

A sample of 128 tokens takes some 20 kB of memory, its ends 1 kB: 100,000 requests fit where the report is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest import stats
from loadtest.gaps import Gaps
from loadtest.plan import Cell
from loadtest.sample import Sample


@dataclass(slots=True)
class Streams:
    """The token events of a cell's complete requests of the steady phase."""

    gaps: Gaps = field(default_factory=Gaps)
    token_events: int = 0
    shared_reads: int = 0  # events that came out of a read with others of the same request
    several_tokens: int = 0  # gaps that end in an event of several tokens
    fewer_events: int = 0  # requests whose events carry another number of tokens than the server counted

    longest_ns: int = -1
    longest_in: int | None = None  # number of the sample with the longest gap

    def add(self, sample: Sample, number: int) -> None:
        gaps = stats.gaps_ns(sample)
        self.gaps.add(gaps)
        if (longest := max(gaps, default=-1)) > self.longest_ns:
            self.longest_ns, self.longest_in = longest, number
        self.token_events += len(sample.events)
        self.shared_reads += stats.events_of_shared_reads(sample)
        self.several_tokens += stats.gaps_of_several_tokens(sample)
        self.fewer_events += sum(tokens for _, tokens, _ in sample.events) != sample.got.new_tokens


@dataclass(frozen=True, slots=True)
class Condensed:
    """samples: every one, in the order of the file, with its first and its last event only; `streams` by cell, without
    its wave.
    """

    samples: list[Sample]
    streams: dict[Cell, Streams]


def condense(samples: Iterable[Sample]) -> Condensed:
    """Takes one sample at a time; what it has seen of a sample it lets go of."""
    ends: list[Sample] = []
    streams: dict[Cell, Streams] = defaultdict(Streams)
    seen: dict[Any, Any] = {}  # texts and cells are the same in most samples: one of each is kept

    for number, sample in enumerate(samples):
        if sample.phase == "steady" and sample.complete:
            streams[sample.cell.in_wave(None)].add(sample, number)
        same = {name: seen.setdefault(value, value) for name in _ALIKE if (value := getattr(sample, name)) is not None}
        ends.append(replace(sample, events=sample.events[:1] + sample.events[1:][-1:], **same))
    return Condensed(ends, dict(streams))


_ALIKE = ("run", "cell", "got", "clock", "transport", "detail", "phase", "asked")
