"""Every Prometheus series of the load generator, in one place; docs/metrics.md is written from here.

They are sums over all processes of a test, and begin again at 0 with the next test, which Prometheus takes for a
restart. Durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from loadtest.live.calibrated import Calibrated
from loadtest.live.health import verdict
from loadtest.live.histogram import BOUNDS_S, Histogram
from loadtest.live.state import State, total
from loadtest.trust import OK, SATURATED, SUSPECT


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    kind: str  # counter | gauge | histogram
    meaning: str
    labels: tuple[str, ...] = ()


TIMED = {
    "ttft": Series(
        "tokenclock_ttft_seconds",
        "histogram",
        "First byte sent to first token, of every request that got one, when it came",
    ),
    "itl": Series("tokenclock_itl_seconds", "histogram", "Gaps between token events of complete requests"),
    "tpot": Series(
        "tokenclock_tpot_seconds", "histogram", "First to last token over later tokens, by complete request"
    ),
    "e2e": Series("tokenclock_e2e_seconds", "histogram", "First byte sent to last token of complete requests"),
    "start_lag": Series(
        "tokenclock_client_start_lag_seconds",
        "histogram",
        "How much later than possible the client sent a request of the steady phase",
    ),
    "loop_lag": Series(
        "tokenclock_client_loop_lag_seconds", "histogram", "How late the client's event loop woke, 200 times a second"
    ),
}
TOKENS = Series("tokenclock_tokens_total", "counter", "Tokens of requests that ended, as counted so far", ("kind",))
REQUESTS = Series("tokenclock_requests_total", "counter", "Requests that ended, by verdict", ("verdict",))
USERS = Series("tokenclock_users", "gauge", "Users that run")
CPU = Series(
    "tokenclock_client_cpu_seconds_total", "counter", "CPU time of a client process in this test", ("process",)
)
VERDICT = Series(
    "tokenclock_client_verdict", "gauge", "1 at the verdict on a client process so far, 0 elsewhere",
    ("process", "verdict"),
)  # fmt: skip
CALIBRATED = Series(
    "tokenclock_calibrated_error_seconds",
    "gauge",
    "The client's own error, of the newest calibrated run of this machine in the results folder",
    ("metric", "quantile", "concurrency"),
)
SERIES = (*TIMED.values(), TOKENS, REQUESTS, USERS, CPU, VERDICT, CALIBRATED)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a scrape is told, taken at one instant."""

    states: Sequence[State]
    users: int
    calibrated: Sequence[Calibrated] = field(default=())


def families(seen: Seen) -> Iterator[Metric]:
    """All of SERIES; every value of a label that there can be is there from the start."""
    whole = total(seen.states)
    for name, series in TIMED.items():
        yield _histogram(series, whole.timed[name])
    yield _counter(TOKENS, whole.tokens)
    yield _counter(REQUESTS, whole.requests)
    yield GaugeMetricFamily(USERS.name, USERS.meaning, value=seen.users)
    cpu_s: dict[str, float] = {}
    last: dict[str, State] = {}
    for state in seen.states:
        number = str(state.process)
        cpu_s[number] = cpu_s.get(number, 0.0) + state.cpu_s
        last[number] = state
    yield _counter(CPU, cpu_s)
    verdicts = GaugeMetricFamily(VERDICT.name, VERDICT.meaning, labels=VERDICT.labels)
    for number, state in last.items():
        of_process = verdict(state)[0]
        for each in (OK, SUSPECT, SATURATED):
            verdicts.add_metric((number, each), float(each == of_process))
    yield verdicts
    errors = GaugeMetricFamily(CALIBRATED.name, CALIBRATED.meaning, labels=CALIBRATED.labels)
    for error in seen.calibrated:
        errors.add_metric((error.metric, error.quantile, str(error.concurrency)), error.error_s)
    yield errors


def _histogram(series: Series, values: Histogram) -> Metric:
    bounds = [*(repr(bound).removesuffix(".0") for bound in BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, map(float, values.at_most()), strict=True))
    return HistogramMetricFamily(series.name, series.meaning, buckets=buckets, sum_value=values.sum_s)


def _counter(series: Series, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(series.name, series.meaning, labels=series.labels)
    for label, value in values.items():
        family.add_metric((str(label),), value)
    return family
