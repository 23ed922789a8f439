"""What is known of a cell while it runs, as figures and in words; the same states as Prometheus' and locust's tab.

A quantile is shown where n(1 − q) ≥ 5, and a mean until the median may be, as in a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.live.health import verdict
from loadtest.live.histogram import Histogram
from loadtest.live.state import State, total
from loadtest.report.numbers import quantity
from loadtest.stats import printable
from loadtest.trust import worst_of
from loadtest.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Figures:
    """Of all processes together."""

    ttft: Histogram  # of every request that got a first token, as soon as it came
    itl: Histogram  # of complete requests
    output_tokens: int  # of requests that ended
    busy_s: float  # from when the first of them was due to when the last one ended
    complete: int
    others: Mapping[str, int]  # not complete: the most frequent first
    client: str  # ok | suspect | saturated: the worst of the processes
    why: Sequence[str]  # it is no better

    @property
    def output_tokens_per_s(self) -> float | None:
        """Σ new tokens / wall, both of the requests that ended."""
        return self.output_tokens / self.busy_s if self.busy_s > 0 and self.output_tokens else None


def figures(states: Sequence[State]) -> Figures:
    """states: one of each process, from the same begin on."""
    whole = total(states)
    clients = [(f"process {state.process}", _judged(state)) for state in states]
    client = clients[0][1] if len(clients) == 1 else worst_of(clients)
    others = {each: count for each, count in whole.requests.items() if count and each != Verdict.COMPLETE}
    return Figures(
        whole.timed["ttft"],
        whole.timed["itl"],
        whole.tokens["output"],
        whole.busy_s,
        whole.requests[Verdict.COMPLETE],
        dict(sorted(others.items(), key=lambda each: -each[1])),
        client["verdict"],
        client["reasons"],
    )


def _judged(state: State) -> dict[str, Any]:
    client, reasons = verdict(state)
    return {"verdict": client, "reasons": reasons}


def speed(seen: Figures) -> list[str]:
    """`TTFT p50 147.2 ms, p99 –`, `ITL p50 19.87 ms`, `output 201.3 tokens/s`."""
    return [
        f"TTFT {_typical(seen.ttft)}, p99 {_quantile(seen.ttft, 0.99)}",
        f"ITL {_typical(seen.itl)}",
        f"output {quantity(seen.output_tokens_per_s, 'tokens/s')}",
    ]


def counts(seen: Figures) -> str:
    """`12 complete, 3 not (2 timeout, 1 truncated)`."""
    named = ", ".join(f"{count} {each}" for each, count in seen.others.items())
    return f"{seen.complete:,} complete, {sum(seen.others.values()):,} not" + (f" ({named})" if named else "")


def health(seen: Figures) -> str:
    """`client ok`, or `client saturated: ` and the first reason."""
    more = f" (and {len(seen.why) - 1} more)" if len(seen.why) > 1 else ""
    return f"client {seen.client}" + (f": {seen.why[0]}{more}" if seen.why else "")


def _typical(timed: Histogram) -> str:
    n = timed.n
    if not n or printable(n, 0.5):
        return f"p50 {_quantile(timed, 0.5)}"
    return f"mean {quantity(timed.sum_s / n, 's')}"


def _quantile(timed: Histogram, q: float) -> str:
    return quantity(timed.quantiles([q])[0] if printable(timed.n, q) else None, "s")
