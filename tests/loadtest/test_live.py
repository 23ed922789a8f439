"""What is said of a run while it runs is what its samples say afterwards, whatever becomes of the messages.

Method: drawn durations and samples, numpy and loadtest/stats.py as the oracles; messages lost, doubled and late by
hypothesis. Tolerance: 0.06 % of a duration, its fineness; counts and Prometheus' buckets are exact.
"""

from __future__ import annotations

import json
import random
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import trust
from loadtest.live import calibrated
from loadtest.live.counting import AT_ONCE, Live
from loadtest.live.health import verdict
from loadtest.live.histogram import BOUNDS_S, EDGES_S, Histogram
from loadtest.live.page import as_csv, table
from loadtest.live.processes import REPORT, SILENT_S, Alone, Workers
from loadtest.live.rates import WINDOW_S, Rates
from loadtest.live.series import SERIES, Seen, families
from loadtest.live.state import TIMED, State, total
from loadtest.sample import Got, Sample
from loadtest.stats import itl_s, latency_s, tpot_s, ttft_s
from loadtest.transport.base import monotonic_ns
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Truth
from tests.loadtest.orders import sample

FINE = 0.0006
QS = (0.5, 0.95, 0.99, 1.0)


def histogram(values_s: list[float]) -> Histogram:
    made = Histogram()
    made.observe(values_s)
    return made


@pytest.mark.parametrize("n", [1, 2, 99, 1000, 20_000])
@pytest.mark.parametrize("scale_s", [0.0002, 0.147, 12])
def test_a_quantile_is_numpys_to_three_digits(n: int, scale_s: float):
    draw = random.Random(n)
    values_s = [scale_s * draw.lognormvariate(0, 1) for _ in range(n)]
    seen = histogram(values_s)
    assert seen.n == n
    expected = pytest.approx(list(np.quantile(values_s, QS)), rel=FINE, abs=2e-7)
    assert seen.quantiles(QS) == expected


def test_prometheus_buckets_are_exact_at_their_very_bounds():
    values_s = [*BOUNDS_S, *np.nextafter(BOUNDS_S, 2000), 0.0, -1.0]
    seen = histogram(values_s)
    assert seen.at_most() == [sum(value <= bound for value in values_s) for bound in BOUNDS_S] + [len(values_s)]
    assert seen.sum_s == pytest.approx(sum(values_s) + 1)  # what is below 0 counts as 0


def test_no_step_is_wider_than_it_is_said_to_be():
    assert max(np.diff(EDGES_S[257:]) / EDGES_S[257:-1]) < 0.0011


@given(st.lists(st.lists(st.floats(0, 2000)), max_size=5))
def test_histograms_of_processes_add_up_to_that_of_all(parts: list[list[float]]):
    whole = Histogram()
    for part in parts:
        whole.add(Histogram.unpacked(histogram(part).packed()))
    every = histogram([value for part in parts for value in part])
    assert whole.counts.tolist() == every.counts.tolist()
    assert whole.sum_s == pytest.approx(every.sum_s)


def drawn(seed: int, n: int) -> list[Sample]:
    """Requests of 4 users, one in five not complete."""
    draw = random.Random(seed)
    free_ns = [0, 0, 0, 0]
    made = []
    for i in range(n):
        user = i % len(free_ns)
        scheduled = free_ns[user] + draw.randrange(2_000_000)
        started = scheduled + draw.randrange(3_000_000)
        arrivals = list(np.cumsum([started + draw.randrange(10**8)] + [draw.randrange(10**7) for _ in range(11)]))
        free_ns[user] = int(arrivals[-1]) + 1000
        made.append(
            replace(
                sample(ended_ns=free_ns[user]),
                user=user,
                got=Got(8, 12, "server"),
                scheduled_ns=scheduled,
                started_ns=started,
                events=tuple((int(t_ns), 1, number) for number, t_ns in enumerate(arrivals)),
                verdict=draw.choice([Verdict.COMPLETE] * 4 + [Verdict.TIMEOUT]),
            )
        )
    return sorted(made, key=lambda each: each.ended_ns)


def seen_live(samples: list[Sample], process: int = 0, seconds: float = 10) -> Live:
    times = iter([0, *[int(seconds * 1e9)] * 9])
    live = Live(process, clock=lambda: next(times), cpu_s=lambda: 0.0)
    for each in samples:
        if (ttft := ttft_s(each)) is not None:
            live.first_token(round(ttft * 1e9))
        live.kept(each)
    return live


@pytest.mark.parametrize("n", [1, AT_ONCE - 1, 5 * AT_ONCE + 3])
def test_what_was_counted_is_what_the_samples_say(n: int):
    samples = drawn(n, n)
    state = seen_live(samples).state()
    complete = [each for each in samples if each.complete]
    expected = {
        "ttft": [ttft_s(each) for each in samples],
        "itl": [gap_s for each in complete for gap_s in itl_s(each)],
        "tpot": [tpot_s(each) for each in complete],
        "e2e": [latency_s(each) for each in complete],
        "start_lag": trust.client_lags_s(samples),
        "loop_lag": [],
    }
    for name, values_s in expected.items():
        assert state.timed[name].counts.tolist() == histogram(values_s).counts.tolist(), name
        assert state.timed[name].sum_s == pytest.approx(sum(values_s)), name
    assert state.tokens == {"input": 8 * n, "output": 12 * n}
    assert sum(state.requests.values()) == n
    assert state.requests[Verdict.COMPLETE] == len(complete)


def test_the_verdict_on_the_client_is_the_reports():
    """What is no part of the steady phase, such as the first requests of all users, speaks against nobody."""
    for late_ms in (0.1, 1.5, 9):
        samples = [
            replace(each, started_ns=each.scheduled_ns + int(late_ms * 1e6), verdict=Verdict.COMPLETE)
            for each in drawn(3, 100)
        ]
        samples = [replace(each, events=((each.started_ns + 10_000_000, 1, 1), *each.events[1:])) for each in samples]
        expected = trust.client(samples, None)["verdict"]
        first = [replace(each, phase="warmup", started_ns=each.scheduled_ns + 10**8) for each in drawn(5, 4)]
        assert verdict(seen_live(first + samples).state())[0] == expected
        assert expected == {0.1: "ok", 1.5: "suspect", 9: "saturated"}[late_ms]


def test_a_first_token_is_told_when_it_comes_and_not_when_the_stream_ends(truth: Truth):
    told: list[tuple[int, int]] = []

    def first_token(ttft_ns: int) -> None:
        told.append((ttft_ns, monotonic_ns()))

    (one,) = truth.measure(new_tokens=20, gap_s=0.02, first_token=first_token)
    (cut,) = truth.measure(new_tokens=8, fault="truncate", fault_after=3, first_token=first_token)
    assert [ttft_ns for ttft_ns, _ in told] == [round(ttft_s(each) * 1e9) for each in (one, cut)]
    assert not cut.complete
    assert one.events[0][0] <= told[0][1] < one.events[-1][0]


@given(st.data())
def test_reports_that_are_lost_doubled_or_late_change_nothing(data: st.DataObject):
    """Each worker's state grows in three steps; any of its reports may come in any number and order, the last one
    at least once.
    """
    workers, expected, messages = Workers(lambda: 0), [], []
    for process in range(3):
        samples, live = drawn(process, 9), None
        for step in range(1, 4):
            live = seen_live(samples[: 3 * step], process, seconds=step)
            state = live.state()
            state.test = f"test of {process}"
            messages.append((str(process), {REPORT: state.packed()}))
        expected.append(state)
    last = messages[2::3]
    order = data.draw(st.permutations(last + data.draw(st.lists(st.sampled_from(messages), max_size=12))))
    for worker, report in order:
        workers.heard(worker, report)
    got, whole = total(workers.states()), total(expected)
    assert got.requests == whole.requests
    assert got.tokens == whole.tokens
    assert all(got.timed[name].counts.tolist() == whole.timed[name].counts.tolist() for name in TIMED)


def test_a_test_begins_with_nothing_and_late_reports_of_the_last_one_stay_out():
    workers, old, new = Workers(lambda: 0), seen_live(drawn(1, 5)), seen_live(drawn(2, 3))
    workers.heard("a", {REPORT: old.state().packed()})
    workers.begin()
    workers.heard("a", {REPORT: old.state().packed()})
    assert list(workers.states()) == []
    workers.heard("a", {REPORT: new.state().packed()})
    assert sum(total(workers.states()).requests.values()) == 3


def test_a_worker_that_is_sent_in_again_takes_nothing_back():
    workers = Workers(lambda: 0)
    for part in (seen_live(drawn(1, 5)), seen_live(drawn(2, 3))):
        workers.heard("a", {REPORT: part.state().packed()})
    assert sum(total(workers.states()).requests.values()) == 8


@pytest.mark.parametrize("garbage", [{}, {"format": 99}, {"format": 1, "test": "x"}, 7, None])
def test_a_report_that_cannot_be_read_is_a_sentence(garbage: object, caplog: pytest.LogCaptureFixture):
    workers = Workers(lambda: 0)
    workers.heard("a", {REPORT: garbage})
    assert list(workers.states()) == []
    assert "worker a: not a state of this version" in caplog.text
    assert "run the same version of tokenclock on all machines" in caplog.text


def test_a_report_without_a_state_is_locusts_own():
    workers = Workers(lambda: 0)
    workers.heard("a", {"stats": []})
    assert list(workers.states()) == []


def grown(tokens: int, elapsed_s: float, test: str = "t") -> State:
    state = State(test, 0, elapsed_s)
    state.tokens["output"] = tokens
    return state


def test_a_rate_is_that_of_the_last_seconds_by_the_process_own_clock():
    rates = Rates()
    assert rates.per_second()["output"] == 0
    rates.add(grown(100, 2))
    assert rates.per_second()["output"] == 50  # since the test began
    for second in range(3, 40):
        rates.add(grown(100 + 10 * second, second))
    assert rates.per_second()["output"] == pytest.approx(10)
    rates.add(grown(490, 39))  # the test has ended: its time stands still
    assert rates.per_second()["output"] == pytest.approx(10)
    rates.add(grown(7, 1, "another"))
    assert rates.per_second()["output"] == 7
    assert len(rates._seen) < WINDOW_S + 3


def test_a_worker_that_fell_silent_has_no_rate_but_keeps_its_counts():
    now_s = 0.0
    workers = Workers(lambda: 0, clock=lambda: now_s)
    workers.heard("a", {REPORT: grown(100, 10, "a").packed()})
    workers.heard("b", {REPORT: grown(100, 10, "b").packed()})
    assert workers.per_second()["output"] == 20
    now_s = SILENT_S
    workers.heard("b", {REPORT: grown(110, 20, "b").packed()})
    assert workers.per_second()["output"] == pytest.approx(5.5)
    assert total(workers.states()).tokens["output"] == 210


def test_the_table_shows_a_quantile_only_where_enough_lies_beyond_it():
    few, many = (table(Alone(seen_live(drawn(n, n)))) for n in (99, 700))
    assert [few[0][name] for name in ("p95", "p99")] == ["–", "–"]
    assert "–" not in [many[0][name] for name in ("p50", "p95", "p99", "max")]
    assert [row["what"] for row in few[:7]] == [
        "TTFT",
        "ITL",
        "TPOT",
        "E2E",
        "input tokens",
        "output tokens",
        "requests: complete",
    ]
    assert few[7]["what"] == "requests: timeout"
    nothing = table(Alone())
    assert {row["count"] for row in nothing} == {"0"}
    assert as_csv(Alone()).splitlines()[1] == "TTFT,0,,,,,"


def test_every_declared_series_is_there_before_the_first_request():
    names = {family.name for family in families(Seen([], 0))}
    assert names == {series.name.removesuffix("_total") for series in SERIES}
    requests = next(family for family in families(Seen([], 0)) if family.name == "tokenclock_requests")
    assert {each.labels["verdict"] for each in requests.samples} == set(Verdict)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    spread = {"n": 9, "p50": 0.0001, "p99": None, "max": 0.002, "judged": 0.002}
    load = {"shape": {"concurrency": 4}, "errors": dict.fromkeys(("ttft_s", "itl_s", "latency_s"), spread)}
    for name, host, loads in (
        ("20260101-000000-a", socket.gethostname(), [load]),
        ("20260102-000000-b", socket.gethostname(), []),
        ("20260103-000000-c", "another", [load | {"shape": {"concurrency": 99}}]),
    ):
        (tmp_path / name).mkdir()
        said = {"processes": [{"host": host}], "calibration": {"loads": loads}}
        (tmp_path / name / "run.json").write_text(json.dumps(said), encoding="utf-8")
    (tmp_path / "20260104-000000-d").mkdir()
    (tmp_path / "20260104-000000-d" / "run.json").write_text("{", encoding="utf-8")
    return tmp_path


def test_the_calibrated_error_is_of_the_newest_run_that_has_one_on_this_machine(runs: Path):
    found = calibrated.newest(runs)
    assert {(each.metric, each.quantile, each.concurrency, each.error_s) for each in found} == {
        (metric, quantile, 4, error_s)
        for metric in ("ttft", "itl", "e2e")
        for quantile, error_s in (("0.5", 0.0001), ("1", 0.002))
    }
    assert calibrated.newest(runs / "nowhere") == []
