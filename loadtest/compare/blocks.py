"""One run cut into blocks whose figures hardly depend on one another: what stands in for runs where there are too few.

Requests that are in flight together share a queue and decode steps: four that were slow together are one observation,
not four. A block is a wave or several; outside waves a stretch of requests, in the order they were begun, at least
twice as many as are in flight. A rate's blocks are equal times. A run of which blocks are compared tells how its own
requests vary, and nothing of how the next run would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from loadtest import stats
from loadtest.compare.intervals import LEAST
from loadtest.compare.measures import OF_WAVES, RATES, Measure
from loadtest.sample import Sample

MOST = 10  # blocks of a run: the longer they are, the less they depend on one another


class TooFew(ValueError):
    """The run is too short to be cut; the message says what it has and what it takes."""


def figures(steady: Sequence[Sample], hosts: Mapping[int, str], measure: Measure) -> list[float]:
    """The measure of each block of one cell of one run. Raises: TooFew."""
    if len({hosts.get(sample.process, "") for sample in steady}) > 1:
        raise TooFew("requests came from several machines, whose instants are never mixed: compare five runs a side")
    in_waves = steady[0].cell.wave is not None
    if measure.metric in RATES.values() and not in_waves:
        return _rates(steady, measure.metric)
    units = list(_waves(steady)) if in_waves else list(_stretches(steady))
    values = [each for unit in units if (each := _values(unit, hosts, measure)).size]
    blocks = _joined(values, _most(values, measure.quantile))
    if len(blocks) < LEAST:
        what = "waves" if in_waves else "stretches of requests in flight together"
        raise TooFew(
            f"{len(values)} {what} are {len(blocks)} blocks for {measure.name}, {LEAST} are needed: measure longer"
        )
    if measure.quantile is None and measure.statistic == "mean":
        return [float(block.mean()) for block in blocks]
    return [_quantile(block, 0.5 if measure.quantile is None else measure.quantile) for block in blocks]


def _most(values: Sequence[np.ndarray], q: float | None) -> int:
    """Blocks that there may be at most: of a tail's quantile, each has one value beyond it on average."""
    beyond = sum(map(len, values)) * min(q, 1 - q) if q is not None and q != 0.5 else math.inf
    return int(min(MOST, len(values), beyond + 1e-9))


def _joined(values: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """So many blocks of neighbours, of nearly as many units each."""
    if count == 0:
        return []
    edges = np.linspace(0, len(values), count + 1).round().astype(int)
    return [np.concatenate(values[low:high]) for low, high in pairwise(edges)]


def _waves(steady: Sequence[Sample]) -> Iterator[list[Sample]]:
    members: dict[int, list[Sample]] = {}
    for sample in steady:
        assert sample.cell.wave is not None
        members.setdefault(sample.cell.wave, []).append(sample)
    return (members[number] for number in sorted(members))


def _stretches(steady: Sequence[Sample]) -> Iterator[list[Sample]]:
    ordered = sorted(steady, key=lambda sample: (sample.scheduled_ns, sample.id))
    wall_ns = max(s.ended_ns for s in ordered) - ordered[0].scheduled_ns
    in_flight = sum(s.ended_ns - (s.started_ns or s.scheduled_ns) for s in ordered) / max(wall_ns, 1)
    size = 2 * max(1, math.ceil(min(in_flight, ordered[0].cell.concurrency) - 0.5))
    return (ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size))


def _values(unit: Sequence[Sample], hosts: Mapping[int, str], measure: Measure) -> np.ndarray:
    """What a unit contributes: a figure of the wave, or one of each request, or its gaps. A failure is infinite."""
    complete = [sample for sample in unit if sample.complete]
    if measure.metric in OF_WAVES or measure.metric in RATES.values():
        found = stats.waves(unit, hosts)
        of_wave = [getattr(wave, measure.metric) for wave in found.counted]
        return np.array(of_wave + [math.inf] * (found.failed if measure.metric in OF_WAVES else 0), dtype=float)
    if measure.metric == "itl_s":
        return np.array([gap for sample in complete for gap in stats.itl_s(sample)], dtype=float)
    of = stats.OF_REQUESTS[measure.metric]
    values = [value for sample in complete if (value := of(sample)) is not None]
    failed = len(unit) - len(complete) if measure.metric in stats.FAILABLE and measure.statistic != "mean" else 0
    return np.array(values + [math.inf] * failed, dtype=float)


def _quantile(values: np.ndarray, q: float) -> float:
    """numpy's default, which may lie at or next to an infinite value."""
    ordered = np.sort(values)
    position = round((len(ordered) - 1) * q, 9)
    below = int(position)
    if position == below or math.isinf(ordered[below]):
        return float(ordered[below])
    return float(ordered[below] + (position - below) * (ordered[below + 1] - ordered[below]))


def _rates(steady: Sequence[Sample], metric: str) -> list[float]:
    """Of equal times between the first scheduled start and the last end: tokens count when their event comes, those of
    a prompt with the first one, a request when it ends.
    """
    complete = [sample for sample in steady if sample.complete]
    begin_ns, end_ns = min(s.scheduled_ns for s in steady), max(s.ended_ns for s in steady)
    instants: list[int] = []
    amounts: list[int] = []
    for sample in complete:
        if metric == RATES["requests"]:
            instants.append(sample.ended_ns)
            amounts.append(1)
            continue
        instants += [t for t, _, _ in sample.events]
        amounts += [tokens for _, tokens, _ in sample.events]
        if metric == RATES["throughput_total"] and sample.events:
            instants.append(sample.events[0][0])
            amounts.append(stats.input_tokens(sample) or 0)
    count = min(MOST, len(complete) // (2 * max(1, steady[0].cell.concurrency)))
    if count < LEAST:
        raise TooFew(
            f"{len(complete)} complete requests of {steady[0].cell.concurrency} users are {count} blocks for a rate, "
            f"{LEAST} are needed: measure longer"
        )
    sums = np.histogram(instants, bins=count, range=(begin_ns, end_ns), weights=amounts)[0]
    if not sums.all():
        raise TooFew("for a part of the run nothing came at all: compare five runs a side")
    return [float(each) for each in sums / ((end_ns - begin_ns) / 1e9 / count)]
