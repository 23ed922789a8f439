"""The client's error is what it measured less what really happened, request by request; the server's lateness is none.

The truth server stamps before each send and takes the kernel's stamp of each request; the client has stamps of its own.
Both are CLOCK_MONOTONIC of one machine in nanoseconds, so they compare. What was due when enters no error: a send that
came late is measured from when it came. What loopback itself takes, tens of microseconds, is part of the error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest import stats, trust
from loadtest.sample import Sample


@dataclass(frozen=True, slots=True)
class Pair:
    """One stream as both sides saw it, token by token."""

    started_ns: int  # client: the clock before the first byte was written
    arrivals_ns: Sequence[int]  # client: one for each token
    received_ns: int  # server: the request's last segment came in
    sent_ns: Sequence[int]  # server: the clock before each token's send


def pair(started_ns: int | None, arrivals_ns: Sequence[int], record: Mapping[str, Any] | None) -> Pair | None:
    """record: what the truth server has of the same request id. None where a side lacks the request or a token."""
    if started_ns is None or record is None or not arrivals_ns or len(arrivals_ns) != len(record["sent_ns"]):
        return None
    return Pair(started_ns, arrivals_ns, record["received_ns"], record["sent_ns"])


def ttft_error_s(of: Pair) -> float:
    """(client's first token − server's first send) + (server's receive − client's `started`), seconds."""
    return (of.arrivals_ns[0] - of.sent_ns[0] + of.received_ns - of.started_ns) / 1e9


def latency_error_s(of: Pair) -> float:
    """The same to the last token: (client's last token − server's last send) + (server's receive − `started`)."""
    return (of.arrivals_ns[-1] - of.sent_ns[-1] + of.received_ns - of.started_ns) / 1e9


def gap_errors_s(of: Pair) -> list[float]:
    """Client's gap − server's gap between the same two tokens; one less than there are tokens."""
    errors = np.diff(np.asarray(of.arrivals_ns)) - np.diff(np.asarray(of.sent_ns))
    return [float(error) for error in errors / 1e9]


def lateness_s(record: Mapping[str, Any]) -> list[float]:
    """Server's send − when it was due, of every token that was sent."""
    return [(sent - due) / 1e9 for sent, due in zip(record["sent_ns"], record["due_ns"], strict=False)]


def cpu_us_per_token(cpu_s: float, tokens: int) -> float | None:
    """cpu_s: CPU seconds of the client's process while the tokens were read."""
    return cpu_s / tokens * 1e6 if tokens else None


def wall_s(samples: Iterable[Sample]) -> float:
    """First scheduled start → last end."""
    ends = [(sample.scheduled_ns, sample.ended_ns) for sample in samples]
    return (max(end for _, end in ends) - min(begin for begin, _ in ends)) / 1e9


def spread(values_s: Iterable[float]) -> dict[str, Any]:
    """SPREAD of the package's docstring: of absolute values. `judged`: the p99, or what stands in for it."""
    values = [abs(value) for value in values_s]
    return {
        "n": len(values),
        "p50": stats.quantile(values, 0.5),
        "p99": stats.quantile(values, 0.99),
        "max": max(values, default=None),
        "judged": trust.stand_in_for_p99(values)[0],
    }


def worst(errors: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The largest p99 of the three errors, seconds: what a bound is held against."""
    return max((error["judged"] for error in errors.values() if error["judged"] is not None), default=None)


def compared(
    samples: Sequence[Sample],
    records: Iterable[Mapping[str, Any]],
    seen: Mapping[str, Any] | None,
    gap_s: float,
    first_s: float | None = None,
) -> dict[str, Any]:
    """CALIBRATED from `requests` on. seen: the entry of run.json's `client`; gap_s: the schedule's;
    first_s: of the load before its streams were shortened, which the limit of the client's lag hangs on.

    Only the steady phase enters errors, as it alone enters a run's figures; the CPU is that of all tokens that were
    read while it was counted. The schedule was kept where the server's p99 is no later than a gap: else the load was a
    lighter one.
    """
    truths = {record["request_id"]: record for record in records}
    counted = [sample for sample in samples if sample.phase == "steady"]
    of_ids = {s.id: pair(s.started_ns, [t for t, _, _ in s.events], truths.get(s.id)) for s in counted if s.complete}
    pairs = [each for each in of_ids.values() if each is not None]
    late = spread(each for record in truths.values() for each in lateness_s(record))
    watched = [s for s in samples if s.cell.wave is None or s.phase != "warmup"]
    tokens = sum(len(sample.events) for sample in watched)
    shared = trust.buffering(counted)["shared_read_share"]
    took_s = wall_s(watched) if watched else 0.0
    return {
        "requests": len(samples),
        "paired": len(pairs),
        "verdicts": dict(sorted(Counter(str(sample.verdict) for sample in samples).items())),
        "errors": {
            "ttft_s": spread(map(ttft_error_s, pairs)),
            "itl_s": spread(error for each in pairs for error in gap_errors_s(each)),
            "latency_s": spread(map(latency_error_s, pairs)),
        },
        "server_late_s": late,
        "schedule_kept": late["judged"] is not None and late["judged"] <= gap_s,
        "server_stamps": _share(record["received_clock"] == "kernel" for record in truths.values()),
        "kernel_stamps": _share(sample.clock == "kernel" for sample in counted),
        "shared_reads": 0.0 if shared is None else shared,
        "tokens_per_s": tokens / took_s if took_s else 0.0,
        "cpu_us_per_token": cpu_us_per_token(seen["cpu"] * took_s, tokens) if seen else None,
        "client": trust.client(counted, seen, first_s),
    }


def _share(truths: Iterable[bool]) -> float:
    every = list(truths)
    return sum(every) / len(every) if every else 0.0
