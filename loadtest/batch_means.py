"""The interval of a closed loop's figure, from blocks of its requests: the method of batch means.

Requests in flight together share a queue and decode steps, and a server that is slow stays so for a while: they are no
independent observations, and an interval that takes them for some is too narrow. Blocks of ten requests a user
hardly depend on one another. Of five to ten of them the interval is

    figure ± t · s / √b · √((1 + r) / (1 − r))

with b blocks; t, Student's of b − 1; s, how far the blocks' figures lie from that of the whole; r, what neighbours have
in common still. docs/report.md says how often it holds the true figure, and where it doesn't.

Source: B. W. Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30 (1982); around
the figure of the whole as M. K. Nakayama, Confidence intervals for quantiles using sectioning, ACM TOMACS 24 (2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest import stats
from loadtest.compare.intervals import alike
from loadtest.sample import Sample

ROUNDS = 10  # requests a user that a block has at least
LEAST, MOST = 5, 10  # blocks
#: Student's t of 0.975, by the number of blocks.
T: Mapping[int, float] = {5: 2.776445, 6: 2.570582, 7: 2.446912, 8: 2.364624, 9: 2.306004, 10: 2.262157}

#: What counts of a complete request.
RATES: Mapping[str, Callable[[Sample], float]] = {
    "throughput_total_tokens_per_s": lambda sample: (stats.input_tokens(sample) or 0) + sample.got.new_tokens,
    "throughput_output_tokens_per_s": lambda sample: sample.got.new_tokens,
    "requests_per_s": lambda _: 1,
}


class NoBlocks(ValueError):
    """Why the requests aren't cut into blocks, and what to do."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """of: 95 %, by metric, of the median or of the rate; seconds, or a second."""

    blocks: int
    each_s: float
    of: Mapping[str, tuple[float, float]]


def intervals(steady: Sequence[Sample], hosts: Mapping[int, str], open_loop: bool) -> Intervals:
    """Of one cell outside waves. hosts: machine name by process number. Raises: NoBlocks."""
    n = count(steady, hosts, open_loop)
    complete = sorted((s for s in steady if s.complete), key=lambda s: (s.scheduled_ns, s.id))
    found: dict[str, tuple[float, float]] = {}
    for name, median in stats.OF_REQUESTS.items():
        values = [value for sample in complete if (value := median(sample)) is not None]
        if len(values) >= ROUNDS * n * steady[0].cell.concurrency:  # a reply of one token has no TPOT
            found[name] = of_median(values, n)
    edges_ns = np.linspace(min(s.scheduled_ns for s in steady), max(s.ended_ns for s in steady), n + 1)
    for name, amount in RATES.items():
        found[name] = of_rate(complete, [amount(sample) for sample in complete], edges_ns)
    return Intervals(n, float(edges_ns[1] - edges_ns[0]) / 1e9, found)


def count(steady: Sequence[Sample], hosts: Mapping[int, str], open_loop: bool) -> int:
    """How many blocks there are. Raises: NoBlocks."""
    if open_loop:
        raise NoBlocks("an open loop's queue may outlast any block; compare five runs (`tokenclock compare`)")
    if len({hosts.get(sample.process, "") for sample in steady}) > 1:
        raise NoBlocks("requests came from several machines, whose instants are never mixed; compare five runs")
    complete, needed = sum(sample.complete for sample in steady), LEAST * ROUNDS * steady[0].cell.concurrency
    n = min(MOST, LEAST * complete // needed)
    if n < LEAST:
        longer = f": -t {math.ceil(1.1 * stats.wall_s(steady) * needed / complete)}s or longer" if complete else ""
        raise NoBlocks(f"{complete} complete requests, {needed} ({LEAST * ROUNDS} a user) are needed{longer}")
    return n


def of_median(values: Sequence[float], n: int) -> tuple[float, float]:
    """values: in the order in which their requests were begun."""
    parts = np.array_split(np.asarray(values, dtype=float), n)
    return around(float(np.median(values)), [float(np.median(part)) for part in parts])


def of_rate(complete: Sequence[Sample], amounts: Sequence[float], edges_ns: Any) -> tuple[float, float]:
    """Of equal times: what counts of a request, tokens or 1, counts evenly from its start to its end."""
    begun = np.array([s.scheduled_ns if s.started_ns is None else s.started_ns for s in complete], dtype=float)
    took = np.maximum(np.array([s.ended_ns for s in complete], dtype=float) - begun, 1.0)
    reached = [float(np.clip((edge - begun) / took, 0, 1) @ np.asarray(amounts, dtype=float)) for edge in edges_ns]
    rates = np.diff(reached) / (np.diff(edges_ns) / 1e9)
    return around(float(rates.mean()), rates.tolist())


def around(whole: float, parts: Sequence[float]) -> tuple[float, float]:
    """parts: the figure of each block, in their order. No time and no rate is below 0."""
    figures, b = np.asarray(parts, dtype=float), len(parts)
    r = alike(figures)
    error = math.sqrt(float(((figures - whole) ** 2).sum()) / (b - 1) / b * (1 + r) / (1 - r))
    return max(whole - T[b] * error, 0.0), whole + T[b] * error
