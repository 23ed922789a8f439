"""What speaks against a cell's figures is decided here, from its samples and the client's own lag.

Three questions: was the client the bottleneck, was the stream buffered on its way, were the requests those of the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loadtest import stats
from loadtest.plan import Cell
from loadtest.sample import Sample

LAG_LIMIT_S = 0.002
LAG_LIMIT_OF_TTFT = 0.1
SATURATED, SUSPECT, OK = "saturated", "suspect", "ok"  # verdicts on the client
RANK = (OK, SUSPECT, SATURATED).index  # of a verdict: the higher the worse
SUSPECT_OF_LIMIT = 0.5
ERROR_LIMIT = 0.1  # of the median of what it is an error of
SUSPECT_CPU = 0.9  # of a core: all that one process of ours can use
REMEDY = "fewer users, a slower rate, more --processes for a free run, or a machine with less else to do"
BUFFERED_SHARE = 0.5


def client_lags_s(samples: Iterable[Sample]) -> list[float]:
    """started − the instant that a request could have been sent: when the schedule wanted it, or when its user came
    free. Less what a fresh connection cost: that is the network's time, not the client's.
    """
    lag = StartLag()
    lags = [lag.of(sample) for sample in sorted(samples, key=lambda each: each.ended_ns)]
    return [late for late in lags if late is not None]


class StartLag:
    """`client_lags_s` of one sample after the other, in the order in which a user's requests end."""

    def __init__(self) -> None:
        self._free_ns: dict[tuple[int, int], int] = {}  # when a user's last request ended

    def of(self, sample: Sample) -> float | None:
        """Seconds; None where it was never started."""
        user = (sample.process, sample.user)
        free_ns = self._free_ns.get(user, sample.scheduled_ns)
        self._free_ns[user] = sample.ended_ns
        if sample.started_ns is None:
            return None
        return (sample.started_ns - max(sample.scheduled_ns, free_ns) - (sample.connect_ns or 0)) / 1e9


def client(
    steady: Sequence[Sample], seen: Mapping[str, Any] | None, usual_ttft_s: float | None = None
) -> dict[str, Any]:
    """Saturated where the 99th percentile of the client's lag passes max(2 ms, 10 % of the median TTFT); suspect where
    it passes half of that, or where the process had next to no CPU left; else ok.

    Two lags are held against the limit: that of the requests and that of the client's event loop. Where there are too
    few requests for a p99 the second largest stands in for it: one late request proves no p99, two are no accident.
    Of the event loop's too few are its median: a loop that stands still is seldom late, and long.

    seen: the entry of run.json's `client`, if any. usual_ttft_s: what stands for the median TTFT, where the samples'
    own is another load's.
    """
    ttfts = [ttft for s in steady if s.complete and (ttft := stats.ttft_s(s)) is not None]
    ttft_s = usual_ttft_s if usual_ttft_s is not None else float(np.median(ttfts)) if ttfts else 0.0
    lags = client_lags_s(steady)
    lag_s, statistic = stand_in_for_p99(lags)
    loop_lag_s, loop_statistic = loop_lag(seen)
    cpu = seen["cpu"] if seen else None
    judged = (
        (f"{statistic} of the requests' lag (n = {len(lags)})", lag_s),
        (f"{loop_statistic} of the event loop's lag", loop_lag_s),
    )
    verdict, reasons = verdict_on_client(judged, ttft_s, cpu)
    return {
        "verdict": verdict,
        "saturated": verdict == SATURATED,
        "reasons": reasons,
        "limit_s": lag_limit_s(ttft_s),
        "lag_s": lag_s,
        "lag_statistic": statistic,
        "lag_n": len(lags),
        "hub_lag_p99_s": loop_lag_s if loop_statistic == "p99" else None,
        "cpu": cpu,
    }


def lag_limit_s(ttft_s: float) -> float:
    return max(LAG_LIMIT_S, LAG_LIMIT_OF_TTFT * ttft_s)


def verdict_on_client(
    lags_s: Iterable[tuple[str, float | None]], ttft_s: float, cpu: float | None
) -> tuple[str, list[str]]:
    """Ok, suspect or saturated as `client` has it, and why. lags_s: by what they are; cpu: share of a core."""
    limit_s = lag_limit_s(ttft_s)
    named = [(name, late) for name, late in lags_s if late is not None]

    def above(share: float, what: str) -> list[str]:
        return [
            f"{name} is {late * 1e3:.1f} ms, above {what} of {limit_s * 1e3:.1f} ms"
            for name, late in named
            if late > share * limit_s
        ]

    if reasons := above(1, "the limit"):
        return SATURATED, reasons
    reasons = above(SUSPECT_OF_LIMIT, "half the limit")
    if cpu is not None and cpu > SUSPECT_CPU:
        reasons.append(f"the process used {100 * cpu:.0f} % of a core")
    return (SUSPECT if reasons else OK), reasons


def clients(
    steady: Sequence[Sample], seen: Mapping[int, Mapping[str, Any]], names: Mapping[int, str]
) -> dict[str, Any]:
    """`client` of the process that is worst off, and which that is: one that was late is not made up for by others.

    seen: entries of run.json's `client`; names: of the processes, where there are several.
    """
    of: dict[int, list[Sample]] = {}
    for sample in steady:
        of.setdefault(sample.process, []).append(sample)
    found = {process: client(samples, seen.get(process)) for process, samples in of.items()}
    worst = max(found, key=lambda process: _badness(found[process]))
    if len(found) == 1:
        return found[worst]
    name = names.get(worst, f"process {worst}")
    return {**found[worst], "reasons": [f"{name}: {reason}" for reason in found[worst]["reasons"]]}


def worst_of(clients: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """(name, verdict on the client) of each → the worst verdict, and the reasons of those that have it; ok of none."""
    verdict = max((each["verdict"] for _, each in clients), key=RANK, default=OK)
    reasons = [
        f"{name}: {reason}" for name, each in clients if each["verdict"] == verdict for reason in each["reasons"]
    ]
    return {"verdict": verdict, "saturated": verdict == SATURATED, "reasons": reasons}


def _badness(judged: Mapping[str, Any]) -> tuple[int, float]:
    return RANK(judged["verdict"]), max(judged["lag_s"] or 0.0, judged["hub_lag_p99_s"] or 0.0) / judged["limit_s"]


def loop_lag(seen: Mapping[str, Any] | None) -> tuple[float | None, str]:
    """The 99th percentile of the event loop's lag, or its median where there are too few for that; and which it is."""
    for statistic, name, q in (("p99", "hub_lag_p99_s", 0.99), ("median", "hub_lag_p50_s", 0.5)):
        if seen and stats.printable(seen["hub_lag_samples"], q):
            return seen[name], statistic
    return None, "p99"


def imprecise(errors: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> list[str]:
    """Sentences, one for each calibrated error that is above 10 % of the median it is an error of.

    errors: of CALIBRATED (loadtest/calibrate); metrics: of the cell, as in summary.json.
    """
    said = []
    for name, error in errors.items():
        median_s = metrics.get(name, {}).get("p50")
        if median_s and error["judged"] is not None and error["judged"] > ERROR_LIMIT * median_s:
            share = 100 * error["judged"] / median_s
            said.append(
                f"the calibrated error of {name} is {error['judged'] * 1e3:.2f} ms, {share:.0f} % of its median"
            )
    return said


def stand_in_for_p99(values: Sequence[float]) -> tuple[float | None, str]:
    """The 99th percentile and its name, or what is judged in its place where it may not be printed."""
    if (p99 := stats.quantile(values, 0.99)) is not None:
        return p99, "p99"
    ordered = sorted(values)
    return (ordered[-2], "second largest") if len(ordered) > 1 else (max(ordered, default=None), "max")


def buffering(complete: Iterable[Sample]) -> dict[str, Any]:
    """The share of token events that came out of a read with other token events of the same request."""
    counts = [(len(sample.events), stats.events_of_shared_reads(sample)) for sample in complete]
    return buffered(sum(events for events, _ in counts), sum(shared for _, shared in counts))


def buffered(events: int, shared: int) -> dict[str, Any]:
    """`stream` of a cell in summary.json: shared of so many token events came out of a read with others."""
    share = shared / events if events else None
    return {
        "token_events": events,
        "shared_read_share": share,
        "buffered": share is not None and share > BUFFERED_SHARE,
    }


def off_plan(complete: Sequence[Sample], cell: Cell) -> list[str]:
    """Sentences, one per kind of mismatch between what was demanded and what the server counted; empty where none.

    Where each request asks for its own, one sentence for all that got more or fewer.
    """
    said = []
    for kind in ("input", "new"):
        pairs = [(getattr(s.got, f"{kind}_tokens"), getattr(s.demanded, f"{kind}_tokens")) for s in complete]
        wrong = Counter((got, asked) for got, asked in pairs if None not in (got, asked) and got != asked)
        of = f"of {len(complete)} complete requests had"
        if cell.new_tokens is not None:
            said += [f"{n} {of} {got} {kind} tokens, not {asked}" for (got, asked), n in sorted(wrong.items())]
        elif wrong:
            by = [got - asked for got, asked in wrong]
            said.append(f"{wrong.total()} {of} other {kind} tokens than asked for, by {min(by):+,} to {max(by):+,}")
    return said
