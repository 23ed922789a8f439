"""Every metric is computed here, from the raw instants of samples and nothing else.

Instants are monotonic nanoseconds of one machine; every function returns seconds, or None where the metric is
undefined. `DEFINITIONS` says in one line each what the functions below compute; the report prints it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.sample import Sample

Values = Sequence[float] | NDArray[np.float64]

MIN_BEYOND = 5  # observations that must lie beyond a quantile before it is printed
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Definition:
    unit: str
    formula: str


DEFINITIONS = {
    "ttft_s": Definition("s", "first token event − started"),
    "ttft_text_s": Definition("s", "first visible text − started"),
    "ttft_from_schedule_s": Definition("s", "first token event − scheduled (no coordinated omission)"),
    "latency_s": Definition("s", "last token event − started"),
    "tpot_s": Definition("s", "(latency − TTFT) / (new tokens − tokens in the first event), per request"),
    "itl_s": Definition("s", "gaps between consecutive token events, pooled; an event of several tokens is one gap"),
    "lag_s": Definition("s", "started − scheduled, of every request that was started, failed ones included"),
    "encoding_time_s": Definition("s", "release of a wave → the last first token event of the wave"),
    "batch_latency_s": Definition("s", "release of a wave → the last token event of the wave"),
    "throughput_total_tokens_per_s": Definition(
        "tokens/s", "Σ(input + new tokens) / batch latency, per wave; outside waves Σ over complete requests / wall"
    ),
    "throughput_output_tokens_per_s": Definition("tokens/s", "the same with new tokens only"),
    "requests_per_s": Definition("requests/s", "complete requests / wall, outside waves"),
    "goodput_rps": Definition("requests/s", "complete requests that met every objective / wall, outside waves"),
}


def _since(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else (end_ns - start_ns) / 1e9


def _first_ns(sample: Sample) -> int | None:
    return sample.events[0][0] if sample.events and sample.streamed else None


def _last_ns(sample: Sample) -> int | None:
    return sample.events[-1][0] if sample.events else None


def ttft_s(sample: Sample) -> float | None:
    return _since(sample.started_ns, _first_ns(sample))


def ttft_text_s(sample: Sample) -> float | None:
    return _since(sample.started_ns, sample.first_text_ns)


def ttft_from_schedule_s(sample: Sample) -> float | None:
    return _since(sample.scheduled_ns, _first_ns(sample))


def latency_s(sample: Sample) -> float | None:
    """Up to the last token event; frames after it do not count. Only of a complete request is this its latency."""
    return _since(sample.started_ns, _last_ns(sample))


def tpot_s(sample: Sample) -> float | None:
    """(latency − TTFT) / (new tokens − tokens in the first event); undefined where all tokens came in the first."""
    whole_s, first_s = latency_s(sample), ttft_s(sample)
    if whole_s is None or first_s is None:
        return None
    later_tokens = sample.got.new_tokens - sample.events[0][1]
    return (whole_s - first_s) / later_tokens if later_tokens > 0 else None


#: Metrics of single requests.
OF_REQUESTS: Mapping[str, Callable[[Sample], float | None]] = {
    "ttft_s": ttft_s,
    "ttft_text_s": ttft_text_s,
    "ttft_from_schedule_s": ttft_from_schedule_s,
    "latency_s": latency_s,
    "tpot_s": tpot_s,
}
#: Those of them for which a failed request counts as infinitely slow.
FAILABLE = {"ttft_s", "ttft_text_s", "ttft_from_schedule_s", "latency_s"}


def gaps_ns(sample: Sample) -> list[int]:
    """One gap less than there are token events; see `gaps_of_several_tokens` for those that hide a token."""
    return [after[0] - before[0] for before, after in zip(sample.events, sample.events[1:], strict=False)]


def itl_s(sample: Sample) -> list[float]:
    return [gap / 1e9 for gap in gaps_ns(sample)]


def gaps_of_several_tokens(sample: Sample) -> int:
    """Gaps that end in an event of more than one token: each counts once in `itl_s` and so overstates the gap."""
    return sum(tokens > 1 for _, tokens, _ in sample.events[1:])


def events_of_shared_reads(sample: Sample) -> int:
    """Token events that came out of a read with others of the same request: of those only the last is exact."""
    reads = [read for _, _, read in sample.events]
    if len(set(reads)) == len(reads):
        return 0
    return sum(count for count in Counter(reads).values() if count > 1)


def lag_s(sample: Sample) -> float | None:
    return _since(sample.scheduled_ns, sample.started_ns)


def input_tokens(sample: Sample) -> int | None:
    """The server's count; where it gave none, what was demanded; None where nobody counted."""
    return sample.demanded.input_tokens if sample.got.input_tokens is None else sample.got.input_tokens


def all_input_tokens(samples: Iterable[Sample]) -> int | None:
    """Their sum; None where one of them is unknown: the sum of the others would be too small."""
    total = 0
    for count in map(input_tokens, samples):
        if count is None:
            return None
        total += count
    return total


@dataclass(frozen=True, slots=True)
class Wave:
    """Requests released together, all complete, each with at least one token event: one observation."""

    samples: tuple[Sample, ...]

    @property
    def release_ns(self) -> int:
        return min(sample.scheduled_ns for sample in self.samples)

    @property
    def encoding_time_s(self) -> float:
        return (max(sample.events[0][0] for sample in self.samples) - self.release_ns) / 1e9

    @property
    def batch_latency_s(self) -> float:
        return (max(sample.events[-1][0] for sample in self.samples) - self.release_ns) / 1e9

    @property
    def throughput_total_tokens_per_s(self) -> float:
        read = all_input_tokens(self.samples)
        assert read is not None, "the cell of a wave says how long its prompts are"
        return (read + sum(s.got.new_tokens for s in self.samples)) / self.batch_latency_s

    @property
    def throughput_output_tokens_per_s(self) -> float:
        return sum(s.got.new_tokens for s in self.samples) / self.batch_latency_s


@dataclass(frozen=True, slots=True)
class Waves:
    counted: tuple[Wave, ...]
    failed: int  # a request of the wave was not complete
    unfinished: int  # requests of the wave are missing (the run was interrupted)


def waves(steady: Iterable[Sample], hosts: Mapping[int, str]) -> Waves:
    """The waves of one cell. Only a whole wave counts: exactly `concurrency` requests, all complete, from one machine.

    hosts: machine name by process number; instants of two machines are never mixed.
    """
    members: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in steady:
        if sample.cell.wave is not None:
            members[hosts.get(sample.process, ""), sample.cell.wave].append(sample)
    counted, failed, unfinished = [], 0, 0
    for _, wave in sorted(members.items()):
        if not all(sample.complete and sample.events for sample in wave):
            failed += 1
        elif len(wave) != wave[0].cell.concurrency:
            unfinished += 1
        else:
            counted.append(Wave(tuple(wave)))
    return Waves(tuple(counted), failed, unfinished)


def wall_s(samples: Iterable[Sample]) -> float:
    """First scheduled start → last end, of requests of one machine."""
    samples = list(samples)
    return (max(s.ended_ns for s in samples) - min(s.scheduled_ns for s in samples)) / 1e9


def by_host(samples: Iterable[Sample], hosts: Mapping[int, str]) -> dict[str, list[Sample]]:
    """hosts: machine name by process number."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[hosts.get(sample.process, "")].append(sample)
    return dict(found)


def totals(steady: Iterable[Sample], hosts: Mapping[int, str]) -> dict[str, Any]:
    """Wall (of several machines the longest), and tokens of complete requests: what is read there is None where nobody
    counted a prompt.
    """
    machines = by_host(steady, hosts).values()
    complete = [sample for samples in machines for sample in samples if sample.complete]
    return {
        "wall_s": max(map(wall_s, machines)),
        "input_tokens": all_input_tokens(complete),
        "new_tokens": sum(sample.got.new_tokens for sample in complete),
    }


def rates(steady: Iterable[Sample], hosts: Mapping[int, str]) -> dict[str, float]:
    """Tokens and complete requests per second of wall, outside waves; several machines' rates are added.

    wall = first scheduled start → last end, of all steady requests of one machine: a failed one takes its time too.
    Where nobody counted a prompt there is no total.
    """
    found = dict.fromkeys(("throughput_total_tokens_per_s", "throughput_output_tokens_per_s", "requests_per_s"), 0.0)
    counted = True
    for samples in by_host(steady, hosts).values():
        complete = [s for s in samples if s.complete]
        if not complete:
            continue
        wall = wall_s(samples)
        new_tokens = sum(s.got.new_tokens for s in complete)
        read = all_input_tokens(complete)
        counted = counted and read is not None
        found["throughput_total_tokens_per_s"] += ((read or 0) + new_tokens) / wall
        found["throughput_output_tokens_per_s"] += new_tokens / wall
        found["requests_per_s"] += len(complete) / wall
    if not counted:
        del found["throughput_total_tokens_per_s"]
    return found


def goodput_rps(steady: Iterable[Sample], good: Iterable[Sample], hosts: Mapping[int, str]) -> float:
    """Requests that met every objective per second of wall, as `rates` has it; several machines' are added."""
    walls: dict[str, tuple[int, int]] = {}
    for sample in steady:
        host = hosts.get(sample.process, "")
        begin_ns, end_ns = walls.get(host, (sample.scheduled_ns, sample.ended_ns))
        walls[host] = min(begin_ns, sample.scheduled_ns), max(end_ns, sample.ended_ns)
    met = Counter(hosts.get(sample.process, "") for sample in good)
    return sum(met[host] / ((end_ns - begin_ns) / 1e9) for host, (begin_ns, end_ns) in walls.items())


def printable(n: int, q: float) -> bool:
    """n(1 − q) ≥ 5, and below the median n·q ≥ 5: at least five observations lie beyond the quantile."""
    return n * min(q, 1 - q) >= MIN_BEYOND - 1e-9  # 50 × (1 − 0.9) is 4.999… in binary


def quantile(values: Values, q: float) -> float | None:
    """Linear interpolation between order statistics, numpy's default; None where it is not `printable`."""
    return float(np.quantile(values, q)) if printable(len(values), q) else None


def quantile_with_failures(values: Values, failed: int, q: float) -> float | None:
    """The same quantile of `values` and `failed` infinities: `math.inf` where it falls among them or next to them."""
    n = len(values) + failed
    if not printable(n, q):
        return None
    position = round((n - 1) * q, 9)  # 0 is the smallest value
    if position > len(values) - 1:
        return math.inf
    return float(np.interp(position, np.arange(len(values)), np.sort(np.asarray(values, dtype=float))))


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float
    coverage: float  # what the interval really covers: 0.95 or a little more


def median_interval(values: Values, confidence: float = CONFIDENCE) -> Interval | None:
    """The distribution-free interval [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] of the median, for the largest k that covers as much as asked.

    coverage = P(k ≤ B ≤ n − k) with B ~ Binomial(n, ½): exact for independent observations of any continuous
    distribution. It is summed outwards from the middle; lgamma keeps it to 1e-7 up to ten million observations.
    None where even the whole range covers less: for 95 %, below n = 6.

    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    n = len(values)
    if n == 0 or 1 - 2.0 ** (1 - n) < confidence:
        return None
    k = n // 2
    mass = math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
    coverage = mass if n % 2 == 0 else 2 * mass
    while coverage < confidence:
        mass *= k / (n - k + 1)  # P(B = k − 1) from P(B = k)
        k -= 1
        coverage += 2 * mass
    ordered = np.sort(np.asarray(values, dtype=float))
    return Interval(float(ordered[k - 1]), float(ordered[n - k]), coverage)
