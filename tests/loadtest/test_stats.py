"""Every metric equals its closed form, and only what may enter a figure does.

Samples are made from chosen instants, so each expected value can be worked out by hand; quantiles are held against
numpy, the interval of the median against exact binomial sums in rational numbers. Durations agree to 1e-12 s.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from loadtest import stats
from loadtest.plan import Cell
from loadtest.sample import Got, Sample
from loadtest.summary import summarise
from loadtest.verdict import Verdict

MS = 1_000_000
CELL = Cell("T", 4, 2, input_tokens=100, new_tokens=4)


def made(
    *,
    cell: Cell = CELL,
    scheduled_ms: float = 1000,
    lag_ms: float = 1,
    ttft_ms: float = 50,
    gap_ms: float = 10,
    tokens: tuple[int, ...] = (1, 1, 1, 1),
    **changes: object,
) -> Sample:
    """A complete steady request: first event at scheduled + lag + TTFT, then one event per entry of `tokens`."""
    started = scheduled_ms + lag_ms
    arrivals = [started + ttft_ms + gap_ms * i for i in range(len(tokens))]
    sample = Sample(
        run="r",
        id=f"{scheduled_ms}-{lag_ms}-{ttft_ms}",
        process=0,
        user=0,
        cell=cell,
        phase="steady",
        got=Got(cell.input_tokens, sum(tokens), "server"),
        scheduled_ns=int(scheduled_ms * MS),
        connect_ns=None,
        started_ns=int(started * MS),
        sent_ns=int(started * MS),
        headers_ns=int(started * MS),
        events=tuple((int(t * MS), n, i) for i, (t, n) in enumerate(zip(arrivals, tokens, strict=True))),
        first_text_ns=int((arrivals[0] + 5) * MS) if arrivals else None,
        ended_ns=int((arrivals[-1] if arrivals else started) * MS),
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
    )
    return replace(sample, **changes)


def failed(**changes: object) -> Sample:
    return made(tokens=(1,), verdict=Verdict.TIMEOUT, detail="nothing arrived for 5 s", **changes)


def run(**changes: object) -> dict:
    base = {
        "run": "r",
        "plan": None,
        "configs": [],
        "waves": None,
        "endpoints": [],
        "processes": [],
        "client": [],
        "interrupted": False,
    }
    return base | changes


def only_cell(samples: list[Sample], **changes: object) -> dict:
    (cell,) = summarise(samples, run(**changes))["cells"]
    return cell


def closed_loop(n: int, **changes: object) -> list[Sample]:
    """n requests one after the other with TTFTs of n, … 2, 1 ms."""
    return [made(scheduled_ms=1000 + 1000 * i, ttft_ms=n - i, **changes) for i in range(n)]


# One request


def test_the_metrics_of_one_request_are_differences_of_its_instants():
    sample = made(lag_ms=1, ttft_ms=50, gap_ms=10)
    assert stats.ttft_s(sample) == pytest.approx(0.050)
    assert stats.ttft_text_s(sample) == pytest.approx(0.055)
    assert stats.ttft_from_schedule_s(sample) == pytest.approx(0.051)
    assert stats.latency_s(sample) == pytest.approx(0.080)
    assert stats.tpot_s(sample) == pytest.approx(0.010)
    assert stats.itl_s(sample) == pytest.approx([0.010] * 3)
    assert stats.lag_s(sample) == pytest.approx(0.001)


def test_frames_after_the_last_token_are_no_part_of_the_latency():
    assert stats.latency_s(made(ended_ns=9_000 * MS)) == pytest.approx(0.080)


def test_tpot_leaves_out_all_tokens_of_the_first_event():
    assert stats.tpot_s(made(tokens=(3, 1, 1), gap_ms=10)) == pytest.approx(0.020 / 2)


def test_tpot_is_undefined_where_all_tokens_came_in_the_first_event():
    assert stats.tpot_s(made(tokens=(1,))) is None
    assert stats.tpot_s(made(tokens=(4,))) is None


def test_an_event_of_several_tokens_is_one_gap_and_is_flagged():
    sample = made(tokens=(2, 1, 3, 1))
    assert len(stats.itl_s(sample)) == 3
    assert stats.gaps_of_several_tokens(sample) == 1  # the first event ends no gap


def test_where_nothing_arrived_every_metric_is_undefined():
    sample = made(tokens=(), verdict=Verdict.CONNECTION, started_ns=None)
    metrics = (stats.ttft_s, stats.ttft_text_s, stats.ttft_from_schedule_s, stats.latency_s, stats.tpot_s, stats.lag_s)
    assert [metric(sample) for metric in metrics] == [None] * 6
    assert stats.itl_s(sample) == []


# Waves and rates


def wave(number: int, *, slower_ms: float = 0, cell: Cell = CELL) -> list[Sample]:
    """Two requests released together: TTFT 50 and 80 ms, last tokens 80 and 110 ms after their start, 1 ms of lag."""
    at = 1000.0 * (number + 1)
    return [
        made(cell=cell.in_wave(number), scheduled_ms=at, ttft_ms=50),
        made(cell=cell.in_wave(number), scheduled_ms=at, ttft_ms=80 + slower_ms),
    ]


def test_a_wave_lasts_from_its_release_to_the_last_first_token_and_to_the_last_token():
    (one,) = stats.waves(wave(0), {}).counted
    assert one.encoding_time_s == pytest.approx(0.081)
    assert one.batch_latency_s == pytest.approx(0.111)
    assert one.throughput_total_tokens_per_s == pytest.approx(2 * (100 + 4) / 0.111)
    assert one.throughput_output_tokens_per_s == pytest.approx(2 * 4 / 0.111)


def test_only_whole_waves_count():
    spoiled = [wave(1)[0], replace(wave(1)[1], verdict=Verdict.TRUNCATED)]
    seen = stats.waves([*wave(0), *spoiled, wave(2)[0]], {})
    assert (len(seen.counted), seen.failed, seen.unfinished) == (1, 1, 1)


def test_a_wave_never_mixes_instants_of_two_machines():
    one, other = wave(0)
    other = replace(other, process=1)
    assert len(stats.waves([one, other], {0: "a", 1: "a"}).counted) == 1
    assert stats.waves([one, other], {0: "a", 1: "b"}) == stats.Waves((), failed=0, unfinished=2)


def test_outside_waves_tokens_are_divided_by_the_wall_and_a_failure_takes_its_time():
    samples = closed_loop(3)
    slow = failed(scheduled_ms=4000, ended_ns=11_000 * MS)  # wall: 1 s → 11 s
    assert stats.rates([*samples, slow], {}) == pytest.approx(
        {
            "throughput_total_tokens_per_s": 3 * 104 / 10,
            "throughput_output_tokens_per_s": 3 * 4 / 10,
            "requests_per_s": 3 / 10,
        }
    )


def test_rates_of_two_machines_are_added_without_comparing_their_clocks():
    here = [made(scheduled_ms=0, lag_ms=0, ended_ns=1000 * MS)]
    there = [made(scheduled_ms=500_000, lag_ms=0, ended_ns=502_000 * MS, process=1)]
    assert stats.rates([*here, *there], {0: "a", 1: "b"})["requests_per_s"] == pytest.approx(1 / 1 + 1 / 2)


# Estimators


@pytest.mark.parametrize(("q", "least"), [(0.5, 10), (0.9, 50), (0.95, 100), (0.99, 500), (0.1, 50), (0.01, 500)])
def test_a_quantile_is_printed_from_five_observations_beyond_it(q: float, least: int):
    values = list(np.random.default_rng(1).random(least))
    assert stats.quantile(values, q) == np.quantile(values, q)
    assert stats.quantile(values[1:], q) is None


@pytest.mark.parametrize("failures", [0, 1, 5, 6, 20])
@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_failure_counts_as_slower_than_anything(failures: int, q: float):
    """Oracle: failures replaced by 1e30 s; a quantile that touches one of them is enormous there and infinite here."""
    values = [0.001 * i for i in range(1, 61)]
    oracle = np.quantile(values + [1e30] * failures, q)
    found = stats.quantile_with_failures(values, failures, q)
    assert found == (math.inf if oracle > 1e20 else pytest.approx(oracle))


def test_where_half_of_the_requests_failed_the_median_with_failures_is_infinite():
    assert stats.quantile_with_failures([0.1] * 10, 9, 0.5) == pytest.approx(0.1)
    assert stats.quantile_with_failures([0.1] * 10, 10, 0.5) == math.inf


def test_no_interval_of_the_median_below_six_observations():
    assert stats.median_interval([1, 2, 3, 4, 5]) is None
    assert stats.median_interval([6, 5, 4, 3, 2, 1]) == stats.Interval(1, 6, pytest.approx(1 - 2 / 64))
    assert stats.median_interval([6, 5, 4, 3, 2, 1], 0.98) is None
    assert stats.median_interval([7, 6, 5, 4, 3, 2, 1], 0.98) == stats.Interval(1, 7, pytest.approx(1 - 2 / 128))


def test_of_ten_observations_the_interval_is_second_to_ninth():
    found = stats.median_interval([float(i) for i in range(1, 11)])
    assert found == stats.Interval(2.0, 9.0, pytest.approx(1 - 2 * (1 + 10) / 1024))
    surer = stats.median_interval([float(i) for i in range(1, 11)], 0.99)
    assert surer == stats.Interval(1.0, 10.0, pytest.approx(1 - 2 / 1024))


@pytest.mark.parametrize("n", [*range(6, 60), 100, 101, 999, 1000])
def test_the_interval_is_the_narrowest_symmetric_one_that_covers_95_percent(n: int):
    """Oracle: 1 − 2·P(B ≤ k − 1), B ~ Binomial(n, ½), in rational numbers."""
    covered, tail = {}, Fraction(0)
    for k in range(1, n // 2 + 1):
        tail += Fraction(math.comb(n, k - 1), 2**n)
        covered[k] = 1 - 2 * tail
    k = max(k for k, coverage in covered.items() if coverage >= Fraction(95, 100))
    found = stats.median_interval(list(range(1, n + 1)))
    assert found is not None
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.coverage == pytest.approx(float(covered[k]), abs=1e-10)


# The summary


def test_every_metric_of_the_summary_is_that_of_its_complete_steady_requests():
    cell = only_cell(closed_loop(100))
    ttft = cell["metrics"]["ttft_s"]
    assert ttft["n"] == 100
    assert ttft["mean"] == pytest.approx(0.0505)
    assert ttft["std"] == pytest.approx(np.std(np.arange(1, 101) / 1000, ddof=1))
    assert (ttft["min"], ttft["max"]) == (0.001, 0.100)
    assert ttft["p50"] == pytest.approx(0.0505)
    assert ttft["p95"] == pytest.approx(np.quantile(np.arange(1, 101) / 1000, 0.95))
    assert ttft["p99"] is None
    few = only_cell(closed_loop(99))
    assert few["metrics"]["ttft_s"]["ci95_of_median"] is None, "requests in flight together aren't independent"
    assert few["blocks"]["why"].startswith("99 complete requests, 100 (50 a user) are needed: -t ")
    assert cell["blocks"]["n"] == 5
    alone = only_cell(closed_loop(100, cell=replace(CELL, concurrency=1)))["metrics"]["ttft_s"]
    assert alone["ci95_of_median"] == pytest.approx([0.040, 0.061])
    assert cell["metrics"]["itl_s"]["n"] == 300
    assert cell["waves"] is None


def test_warm_up_ramp_and_drain_enter_no_figure_but_are_counted():
    others = [failed(scheduled_ms=i, phase=phase) for i, phase in enumerate(("warmup", "ramp", "drain"))]
    steady = closed_loop(10)
    with_others, without = summarise([*steady, *others], run()), summarise(steady, run())
    assert with_others["cells"] == without["cells"]
    assert with_others["verdicts"]["counts"] == {"complete": 10, "timeout": 3}
    assert with_others["verdicts"]["by_phase"]["ramp"] == {"timeout": 1}
    assert with_others["verdicts"]["details"] == {"timeout": ["nothing arrived for 5 s"]}


def test_beside_each_quantile_stands_the_one_with_failures_as_infinitely_slow():
    ttft = only_cell([*closed_loop(50), *(failed(scheduled_ms=90_000 + i) for i in range(6))])["metrics"]["ttft_s"]
    assert ttft["n"] == 50
    assert ttft["p90"] == pytest.approx(0.0451)
    beside = ttft["with_failures"]
    assert (beside["n"], beside["failed"]) == (56, 6)
    assert beside["p50"] == pytest.approx(0.0285)
    assert (beside["p90"], beside["infinite"]) == (None, ["p90"])
    assert beside["p95"] is None  # too few requests: not infinite, unknown


def test_a_failed_wave_counts_as_infinitely_slow():
    waves = [sample for number in range(12) for sample in wave(number)]
    waves[0] = replace(waves[0], verdict=Verdict.TRUNCATED)
    encoding = only_cell(waves)["metrics"]["encoding_time_s"]
    assert encoding["n"] == 11
    assert encoding["with_failures"]["failed"] == 1


def test_the_requests_of_a_wave_get_no_interval_and_the_waves_do():
    metrics = only_cell([sample for number in range(10) for sample in wave(number, slower_ms=number)])["metrics"]
    assert metrics["ttft_s"]["n"] == 20
    assert metrics["ttft_s"]["ci95_of_median"] is None
    assert metrics["itl_s"]["ci95_of_median"] is None
    assert metrics["encoding_time_s"]["n"] == 10
    assert metrics["encoding_time_s"]["ci95_of_median"] == pytest.approx([0.082, 0.089])


def test_the_order_of_the_file_does_not_move_a_figure():
    samples = [sample for number in range(12) for sample in wave(number, slower_ms=number / 7)]
    samples += [failed(scheduled_ms=10 + i, phase="warmup") for i in range(3)]
    shuffled = random.Random(4).sample(samples, len(samples))
    assert shuffled != samples
    assert summarise(shuffled, run()) == summarise(samples, run())


def test_the_summary_is_json_without_infinity():
    samples = [failed(scheduled_ms=i) for i in range(20)]
    assert only_cell(samples)["metrics"]["latency_s"]["with_failures"]["infinite"] == ["p50"]
    json.dumps(summarise(samples, run()), allow_nan=False)


# Trust


@pytest.mark.parametrize(
    ("ttft_ms", "lag_ms", "verdict"),
    [
        (5, 0.9, "ok"),
        (5, 1.9, "suspect"),
        (5, 2.1, "saturated"),
        (50, 2.4, "ok"),
        (50, 4.9, "suspect"),
        (50, 5.1, "saturated"),
    ],
)
def test_the_client_is_saturated_above_two_milliseconds_and_a_tenth_of_the_median_ttft(ttft_ms, lag_ms, verdict):
    samples = [made(scheduled_ms=1000 * i, lag_ms=0, ttft_ms=ttft_ms) for i in range(8)]
    late = [made(scheduled_ms=8000 + 1000 * i, lag_ms=lag_ms, ttft_ms=ttft_ms) for i in range(2)]
    seen = only_cell([*samples, *late])["client"]
    assert (seen["verdict"], seen["saturated"]) == (verdict, verdict == "saturated")
    assert (seen["lag_statistic"], seen["lag_n"]) == ("second largest", 10)
    assert seen["lag_s"] == pytest.approx(lag_ms / 1000)
    assert len(seen["reasons"]) == (verdict != "ok")


def test_a_loop_that_stands_still_has_few_lags_and_is_seen_by_their_median():
    seen = {"config": "T", "concurrency": 2, "input_tokens": 100, "new_tokens": 4, "cpu": 0.5}
    seen |= {"hub_lag_p50_s": 0.035, "hub_lag_p99_s": 0.04, "hub_lag_max_s": 0.04, "hub_lag_samples": 30}
    client = only_cell(closed_loop(10), client=[seen])["client"]
    assert client["reasons"] == ["median of the event loop's lag is 35.0 ms, above the limit of 2.0 ms"]
    assert only_cell(closed_loop(10), client=[seen | {"hub_lag_samples": 9}])["client"]["verdict"] == "ok"


def test_a_client_without_cpu_left_is_suspect():
    seen = {"config": "T", "concurrency": 2, "input_tokens": 100, "new_tokens": 4, "cpu": 0.95}
    seen |= {"hub_lag_p50_s": 0.0, "hub_lag_p99_s": 0.0, "hub_lag_max_s": 0.0, "hub_lag_samples": 500}
    summary = summarise(closed_loop(10), run(client=[seen]))
    assert summary["client"] == {
        "verdict": "suspect",
        "saturated": False,
        "reasons": ["T 100→4: the process used 95 % of a core"],
    }


@pytest.mark.parametrize(("error_ms", "verdict"), [(0.9, "ok"), (1.1, "suspect")])
def test_a_calibrated_error_above_a_tenth_of_a_median_makes_its_cells_client_suspect(error_ms: float, verdict: str):
    spread = {"n": 500, "p50": 0.0, "p99": error_ms / 1e3, "max": 0.005, "judged": error_ms / 1e3}
    load = {"cells": ["T 100→4"], "errors": {"itl_s": spread}}
    other = replace(CELL, new_tokens=5)
    samples = [made(scheduled_ms=1000 * i, lag_ms=0, gap_ms=10) for i in range(10)]
    samples += [replace(sample, cell=other) for sample in samples]
    summary = summarise(samples, run(calibration={"loads": [load], "reason": None}))
    assert [entry["client"]["verdict"] for entry in summary["cells"]] == [verdict, "ok"]
    assert summary["client"]["verdict"] == verdict
    said = ["T 100→4: the calibrated error of itl_s is 1.10 ms, 11 % of its median"]
    assert summary["client"]["reasons"] == (said if verdict == "suspect" else [])


@pytest.mark.parametrize(
    ("n", "late", "saturated"), [(1, 1, True), (10, 1, False), (10, 2, True), (499, 2, True), (500, 2, False)]
)
def test_below_500_requests_one_late_one_is_forgiven_and_two_are_not(n, late, saturated):
    samples = [made(scheduled_ms=1000 * i, lag_ms=900 if i < late else 0) for i in range(n)]
    assert only_cell(samples)["client"]["saturated"] is saturated


def test_the_cost_of_a_fresh_connection_is_not_the_clients_lag():
    assert only_cell([made(lag_ms=30)])["client"]["saturated"]
    assert not only_cell([made(lag_ms=30, connect_ns=29 * MS)])["client"]["saturated"]


def test_a_late_event_loop_saturates_its_own_cell_only():
    other = replace(CELL, new_tokens=5)
    late = {"config": "T", "concurrency": 2, "input_tokens": 100, "new_tokens": 4, "cpu": 0.9}
    late |= {"hub_lag_p50_s": 0.001, "hub_lag_p99_s": 0.040, "hub_lag_max_s": 0.050, "hub_lag_samples": 500}
    samples = [*closed_loop(10), *(replace(sample, cell=other) for sample in closed_loop(10))]
    summary = summarise(samples, run(client=[late]))
    assert [entry["client"]["saturated"] for entry in summary["cells"]] == [True, False]
    assert summary["client"]["saturated"]
    assert summary["client"]["reasons"][0].startswith("T 100→4: p99 of the event loop's lag is 40.0 ms")
    few = summarise(samples, run(client=[late | {"hub_lag_samples": 499}]))
    assert not few["client"]["saturated"], "499 timers prove no p99"


@pytest.mark.parametrize(
    ("reads", "share", "buffered"), [((0, 1, 2, 3), 0, False), ((0, 1, 2, 2), 0.5, False), ((0, 1, 1, 1), 0.75, True)]
)
def test_a_stream_is_buffered_where_most_token_events_shared_a_read(reads, share, buffered):
    samples = [
        replace(s, events=tuple((t, n, r) for (t, n, _), r in zip(s.events, reads, strict=True)))
        for s in closed_loop(2)
    ]
    assert only_cell(samples)["stream"] == {"token_events": 8, "shared_read_share": share, "buffered": buffered}


def test_a_cell_with_other_token_counts_than_demanded_is_off_plan():
    longer = made(scheduled_ms=5000, got=Got(101, 4, "server"))
    uncounted = made(scheduled_ms=6000, got=Got(None, 4, "events"))
    assert only_cell([made(), uncounted])["off_plan"] == []
    assert only_cell([made(), longer])["off_plan"] == ["1 of 2 complete requests had 101 input tokens, not 100"]


def test_the_servers_own_times_are_medians_over_the_requests_that_told_them():
    samples = [
        replace(s, server={"queue_s": 0.001 * i, "prefill_s": 0.010, "decode_s": 0.03, "batch_sizes": {"4": 3}})
        for i, s in enumerate(made(scheduled_ms=1000 * i, ttft_ms=15 + i) for i in range(11))
    ]
    told = only_cell([*samples, made(scheduled_ms=99_000)])["server"]
    assert told["n"] == 11
    assert (told["queue_s"], told["prefill_s"], told["decode_s"]) == pytest.approx((0.005, 0.010, 0.03))
    assert told["steps_by_batch_size"] == {"4": 33}
    assert only_cell([made()])["server"] is None


def test_the_cold_first_call_of_each_configuration_is_kept_apart():
    warm = [made(scheduled_ms=at, ttft_ms=ttft, phase="warmup") for at, ttft in ((20, 60), (10, 700))]
    assert summarise([*warm, *closed_loop(3)], run())["cold"] == [
        {"config": "T", "label": "T 100→4", "ttft_s": 0.7, "verdict": "complete"}
    ]


def test_cells_of_the_plan_that_were_not_reached_are_named():
    cell = Cell("L", 1, 1, 256, 1)
    done = [made(cell=cell.in_wave(i), scheduled_ms=1000 * i, tokens=(1,)) for i in range(10)]
    summary = summarise(done, run(plan="published", waves=12, configs=["L"], interrupted=True))
    assert summary["missing"] == ["L 512→1", "L 768→1", "L 256→256", "L 256→512", "L 256→768"]
    assert "the run was interrupted" in summary["notes"]
    assert "L 256→1: 10 of 12 waves count (0 failed, 0 unfinished)" in summary["notes"]
