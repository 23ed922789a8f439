"""A calibration blames the client for what the client did, replays what a run did, and finds how far a load can go.

Method: streams whose every delay is chosen, so that errors are known in closed form; searches over clients whose limit
is known; loads read back from samples made of known waits. No sockets.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import Arrivals
from loadtest.calibrate.errors import compared, gap_errors_s, latency_error_s, lateness_s, pair, spread, ttft_error_s
from loadtest.calibrate.search import Attempt, highest
from loadtest.calibrate.shape import Shape, ShapeError, heaviest, shapes
from loadtest.plan import Cell
from loadtest.report.clock import calibrated_said
from loadtest.sample import Got, Sample
from loadtest.verdict import Verdict

MS = 1_000_000
CELL = Cell("T", 4, 2, input_tokens=100, new_tokens=4)
delays = st.integers(0, 10**9)


def sample(
    number: int = 0, *, started: int = 1000, ttft: float = 50, gap: float = 10, tokens: int = 4, **changes: Any
) -> Sample:
    """A complete steady request; times in ms."""
    arrivals = [started + ttft + gap * i for i in range(tokens)]
    made = Sample(
        run="r",
        id=f"id-{number}",
        process=0,
        user=number % 2,
        cell=CELL,
        phase="steady",
        got=Got(100, tokens, "server"),
        scheduled_ns=started * MS,
        connect_ns=None,
        started_ns=started * MS,
        sent_ns=started * MS,
        headers_ns=started * MS,
        events=tuple((int(t * MS), 1, i) for i, t in enumerate(arrivals)),
        first_text_ns=None,
        ended_ns=int(arrivals[-1] * MS),
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
    )
    return replace(made, **changes)


def record(of: Sample, wire: float = 0.0, client_late: float = 0.0, late: float = 0.0) -> dict[str, Any]:
    """What the truth server has of a sample: it was received `wire` ms after the start, each token was sent `wire` ms
    before it should have been read, the client read it `client_late` ms later than that; it was due `late` ms before.
    """
    sent = [int(t - (wire + client_late) * MS) for t, _, _ in of.events]
    return {
        "request_id": of.id,
        "received_ns": of.started_ns + int(wire * MS),
        "received_clock": "kernel",
        "sent_ns": sent,
        "due_ns": [int(t - late * MS) for t in sent],
    }


# Errors


@given(
    st.integers(0, 10**15),
    delays,
    delays,
    st.lists(st.tuples(delays, delays), min_size=1, max_size=20),
)
def test_an_error_is_what_the_client_added_whatever_the_server_did(
    began: int, there_ns: int, thinks_ns: int, tokens: list[tuple[int, int]]
):
    """tokens: (since the send before, what the client added to it)."""
    received, sent, arrivals = began + there_ns, [], []
    at = received + thinks_ns
    for gap_ns, added_ns in tokens:
        at += gap_ns
        sent.append(at)
        arrivals.append(at + added_ns)
    found = pair(began, arrivals, {"received_ns": received, "sent_ns": sent})
    assert found is not None
    assert ttft_error_s(found) == pytest.approx((there_ns + tokens[0][1]) / 1e9, abs=1e-9)
    assert latency_error_s(found) == pytest.approx((there_ns + tokens[-1][1]) / 1e9, abs=1e-9)
    added = [after[1] - before[1] for before, after in pairwise(tokens)]
    assert gap_errors_s(found) == pytest.approx([each / 1e9 for each in added], abs=1e-9)


def test_a_stream_is_paired_where_both_sides_have_all_of_it():
    whole = {"received_ns": 1, "sent_ns": [2, 3]}
    assert pair(0, [4, 5], whole) is not None
    assert pair(None, [4, 5], whole) is None, "it was never begun"
    assert pair(0, [4, 5], None) is None, "it never came"
    assert pair(0, [4], whole) is None, "a token is missing"
    assert pair(0, [], {"received_ns": 1, "sent_ns": []}) is None


def test_a_late_server_is_measured_and_not_blamed_on_the_client():
    samples = [sample(i, started=1000 * (i + 1)) for i in range(20)]
    found = compared(samples, [record(each, wire=0.02, client_late=0.03, late=40) for each in samples], None, 0.01)
    assert found["paired"] == 20
    assert found["errors"]["ttft_s"]["max"] == pytest.approx(0.00005 + 0.00002)
    assert found["errors"]["itl_s"]["max"] == pytest.approx(0)
    assert found["server_late_s"]["max"] == pytest.approx(0.040)
    assert not found["schedule_kept"], "40 ms are more than a gap of 10: the load was another one"
    assert lateness_s(record(samples[0], late=3)) == pytest.approx([0.003] * 4)


def test_only_complete_requests_of_the_steady_phase_enter_errors():
    late = sample(1, phase="warmup")
    drained = sample(2, phase="drain")
    broken = sample(3, verdict=Verdict.TRUNCATED)
    good = sample(4)
    records = [record(good, wire=0.1), *(record(each, client_late=500) for each in (late, drained, broken))]
    found = compared([late, drained, broken, good], records, {**SEEN, "cpu": 0.5}, 0.01)
    assert (found["requests"], found["paired"], found["verdicts"]) == (4, 1, {"complete": 3, "truncated": 1})
    assert found["errors"]["ttft_s"] == {
        "n": 1,
        "p50": None,
        "p99": None,
        "max": pytest.approx(0.0002),
        "judged": pytest.approx(0.0002),
    }
    # 16 tokens were read in the 80 ms from the first schedule to the last end, at half a core.
    assert found["cpu_us_per_token"] == pytest.approx(0.5 * 80_000 / 16)


SEEN = {"hub_lag_p50_s": 0.0, "hub_lag_p99_s": 0.0, "hub_lag_max_s": 0.0, "hub_lag_samples": 500}


def test_an_error_has_no_sign_and_a_p99_only_of_enough():
    assert spread([-0.003, 0.001])["max"] == 0.003
    assert spread([0.001] * 499)["p99"] is None
    assert spread([0.001] * 500)["p99"] == 0.001
    assert spread([]) == {"n": 0, "p50": None, "p99": None, "max": None, "judged": None}


# Loads


def a_run(**changes: Any) -> dict[str, Any]:
    return {
        "options": {"transport": "httpx"},
        "endpoints": [{"protocol": "sagemaker, openai-chat"}],
        "open_loop": None,
        "seed": 3,
        **changes,
    }


def test_the_load_of_a_run_is_read_from_its_samples_cell_by_cell():
    other = replace(CELL, concurrency=8, new_tokens=2)
    samples = [sample(i, ttft=50 + i, gap=10, tokens=4) for i in range(3)]
    samples += [sample(i, ttft=20, gap=5, tokens=2, cell=other.in_wave(i)) for i in range(3)]
    samples += [sample(9, ttft=900, phase="warmup"), sample(9, ttft=900, verdict=Verdict.TRUNCATED)]
    found = shapes(samples, a_run(), event_bytes=300)
    assert found[CELL] == Shape(2, 100, 4, 0.051, 0.01, 300, None, False, "openai-chat", "httpx")
    assert found[other] == Shape(8, 100, 2, 0.02, 0.005, 300, None, True, "openai-chat", "httpx")
    assert [(shape.concurrency, cells) for shape, cells in heaviest(found)] == [(8, [other]), (2, [CELL])]


@pytest.mark.parametrize(
    ("sizes", "said", "event_bytes"),
    [
        ([None], 0, 0),  # an older file
        ([400, 2000, 1000, None], 0, 250),  # of four token events each
        ([400, 2000, 1000], 300, 300),
        ([2**24], 0, 65_536),
    ],
)
def test_an_event_is_as_large_as_what_came_for_one(sizes: list[int | None], said: int, event_bytes: int):
    samples = [sample(i, tokens=4, body_bytes=size) for i, size in enumerate(sizes)]
    assert shapes(samples, a_run(), said)[CELL].event_bytes == event_bytes


def test_an_open_loops_load_has_its_rate():
    loop = {"kind": "gamma", "rate_per_s": 3.0, "burstiness": 0.5}
    shape = shapes([sample()], a_run(open_loop=loop))[CELL]
    assert shape.arrivals == Arrivals("gamma", 3.0, 0.5, 3)
    assert (shape.level, shape.at(6.0).arrivals.rate_per_s, shape.at(6.0).concurrency) == (3.0, 6.0, 4)


@pytest.mark.parametrize(
    ("samples", "changes", "sentence"),
    [
        ([], {}, "no request was complete in the steady phase"),
        ([sample(phase="warmup")], {}, "no request was complete in the steady phase"),
        ([sample(streamed=False)], {}, "nothing was streamed"),
        ([sample()], {"options": {"transport": "boto3"}}, "boto3 speaks to SageMaker only"),
    ],
)
def test_a_load_that_cannot_be_replayed_says_why(samples: list[Sample], changes: dict[str, Any], sentence: str):
    with pytest.raises(ShapeError, match=sentence):
        shapes(samples, a_run(**changes))


SHAPES = st.builds(
    Shape,
    concurrency=st.integers(1, 2000),
    input_tokens=st.just(8),
    tokens=st.integers(1, 1000),
    first_s=st.floats(0.001, 10),
    gap_s=st.floats(0.0005, 2),
)


@given(SHAPES, st.floats(0.5, 60), st.none() | st.floats(0.01, 20))
def test_a_load_that_is_shortened_fits_and_is_no_lighter(shape: Shape, seconds: float, rate: float | None):
    if rate is not None:
        shape = replace(shape, arrivals=Arrivals("poisson", rate))
    short = shape.within(seconds)
    assert short.stream_s <= seconds / 4 * 1.0001
    assert (short.concurrency, short.tokens > 1) == (shape.concurrency, shape.tokens > 1)
    assert short.events_per_s >= shape.events_per_s * 0.9999
    assert 0 < short.gap_s <= shape.gap_s
    if rate is not None:
        in_flight = [each.arrivals.rate_per_s * each.stream_s for each in (short, shape)]
        assert in_flight[0] == pytest.approx(in_flight[1])
    if shape.stream_s <= seconds / 4:
        assert short == shape, "what fits is left as it is"


# The highest load


@given(st.integers(1, 5000), st.integers(1, 300))
def test_the_highest_load_is_found_between_two_that_were_tried(limit: int, start: int):
    tried: list[float] = []

    def attempt(level: float) -> Attempt:
        tried.append(level)
        return Attempt(None if level <= limit else "late")

    found = highest(start, True, attempt, lambda: True)
    assert found.under in tried
    assert found.over in tried
    assert found.under <= limit < found.over
    assert found.over - found.under <= max(1, 0.05 * found.under)
    assert all(level == int(level) and level >= 1 for level in tried)
    assert len(tried) <= 2 * (2 * math.log2(5000) + 4)


@given(st.floats(0.2, 500), st.floats(0.2, 500))
def test_a_rate_is_found_as_well(limit: float, start: float):
    found = highest(start, False, lambda level: Attempt("late" if level > limit else None), lambda: True, least=0.1)
    assert found.under <= limit < found.over <= 1.0501 * found.under


def test_one_hiccup_of_the_machine_ends_no_search():
    hiccups = iter([True])
    found = highest(
        8, True, lambda level: Attempt("late" if level > 20 or next(hiccups, False) else None), lambda: True
    )
    assert found.under == 20


def test_a_search_says_what_ended_it():
    assert highest(4, True, lambda _: Attempt("late"), lambda: True).ended == "there is no lower load"
    assert highest(4, True, lambda _: Attempt("late"), lambda: True).under is None
    left = iter([True, True, False])
    found = highest(4, True, lambda _: Attempt(), lambda: next(left))
    assert (found.under, found.over, found.ended) == (16, None, "the time was over")
    limited = highest(4, True, lambda level: Attempt(unproven="the server" if level > 8 else None), lambda: True)
    assert (limited.under, limited.over, limited.ended) == (8, None, "the server")


# What is said


def a_calibration(**changes: Any) -> dict[str, Any]:
    error = {"n": 500, "p50": 0.00002, "p99": 0.00005, "max": 0.0009, "judged": 0.00005}
    few = {"n": 4, "p50": None, "p99": None, "max": 0.00007, "judged": 0.00006}
    shape = Shape(4, 256, 92, 0.0767, 0.00737).said()
    load = {"shape": shape, "cells": ["T 256→768"], "errors": {"ttft_s": few, "itl_s": error, "latency_s": few}}
    return {"loads": [load | {"schedule_kept": True, "server_stamps": 1.0}], "reason": None} | changes


def test_the_clients_error_is_said_with_its_load_and_which_statistic_it_is():
    assert calibrated_said(a_calibration()) == (
        "calibrated on loopback at 4 in flight, TTFT 76.7 ms, 7.37 ms gaps, 92 tokens: "
        "TTFT max 0.070 ms, gaps p99 0.050 ms, end-to-end max 0.070 ms"
    )


def test_what_makes_an_error_mean_less_is_said_with_it():
    (load,) = a_calibration()["loads"]
    late = calibrated_said(a_calibration(loads=[load | {"schedule_kept": False}]))
    assert late.endswith("max 0.070 ms (the truth server fell behind, so the load was lighter)")
    assert "own delay is in them" in calibrated_said(a_calibration(loads=[load | {"server_stamps": 0.5}]))


def test_a_run_that_was_not_calibrated_says_why():
    assert calibrated_said(None) == "not calibrated in this run"
    assert calibrated_said({"loads": [], "reason": "no room"}) == "not calibrated in this run: no room"
    partly = calibrated_said(a_calibration(reason="interrupted"))
    assert partly.startswith("calibrated on loopback at 4 in flight")
    assert partly.endswith("; no more calibrated in this run: interrupted")
