"""A run is read in bounded memory, and what is let go of changes no figure.

Expected values come from numpy over all gaps at once; memory is counted by tracemalloc.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import gaps as pool
from loadtest.condensed import condense
from loadtest.gaps import Gaps
from loadtest.report.page.course import MOST_BINS, Course
from loadtest.sample import Sample, read_samples, write_samples
from loadtest.summary import summarise
from tests.loadtest.test_page import a_free_run, stream

GAPS_NS = st.lists(st.integers(0, 10**11), min_size=1, max_size=300)
PROCESS = {"process": 0, "host": "here", "start": {"wall_ns": 5_000, "mono_ns": 2_000}}


@settings(max_examples=60)
@given(GAPS_NS, st.integers(1, 50))
def test_a_histogram_is_within_half_a_percent_of_the_gaps_themselves(gaps_ns: list[int], exact: int):
    kept, rounded = Gaps(10**6), Gaps(exact)
    for begin in range(0, len(gaps_ns), 7):
        kept.add(gaps_ns[begin : begin + 7])
        rounded.add(gaps_ns[begin : begin + 7])
    at = [0, 0.1, 0.5, 0.9, 0.99, 1]
    expected = np.quantile(np.array(gaps_ns) / 1e9, at)
    assert kept.exact
    assert rounded.exact == (len(gaps_ns) <= exact)
    assert kept.quantiles_s(at) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rounded.quantiles_s(at) == pytest.approx(expected, rel=0.00501, abs=1e-9)
    for each in (kept, rounded):
        assert each.n == len(gaps_ns)
        assert each.mean_s() == pytest.approx(np.mean(gaps_ns) / 1e9)
        assert (each.least_ns, each.most_ns) == (min(gaps_ns), max(gaps_ns))
        if each.n > 1:
            assert each.std_s() == pytest.approx(np.std(gaps_ns, ddof=1) / 1e9, rel=1e-6, abs=1e-9)


def test_a_summary_of_too_many_gaps_says_that_its_quantiles_are_of_a_histogram(monkeypatch: pytest.MonkeyPatch):
    samples, run = a_free_run()
    whole = summarise(samples, run)
    monkeypatch.setattr(pool.Gaps.__init__, "__defaults__", (100,))
    (before,), rounded = whole["cells"], summarise(samples, run)
    (after,) = rounded["cells"]
    assert (before["itl"]["histogram"], after["itl"]["histogram"]) == (False, True)
    for name, value in before["metrics"]["itl_s"].items():
        if isinstance(value, float):
            assert after["metrics"]["itl_s"][name] == pytest.approx(value, rel=0.00501), name
    assert any("gaps are from a histogram of 3 digits" in note for note in rounded["notes"])
    assert before["metrics"]["ttft_s"] == after["metrics"]["ttft_s"]


def test_memory_does_not_grow_with_the_tokens_of_a_request():
    def peak(tokens: int) -> int:
        def requests() -> Iterator[Sample]:
            for number in range(100):
                yield stream(number, 0, 1000.0 * number, [1.0] * tokens)

        tracemalloc.start()
        condense(requests())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(200), peak(2000)
    assert (many - few) / (100 * 1800) < 40, "bytes a token event; as a sample it has some 150"


def test_single_samples_are_read_by_their_number(tmp_path: Path):
    samples, _ = a_free_run(12)
    write_samples(tmp_path / "samples.jsonl", samples)
    assert list(read_samples(tmp_path / "samples.jsonl", only={0, 7, 11, 12})) == [samples[i] for i in (0, 7, 11)]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 10**14), st.integers(1, 5)), min_size=1, max_size=40), st.randoms())
def test_no_token_is_lost_over_time_however_long_the_run_and_in_whatever_order(
    begun: list[tuple[int, int]], shuffle: random.Random
):
    shuffle.shuffle(begun)
    samples = [stream(i, 0, at / 1e6, [1.0] * tokens) for i, (at, tokens) in enumerate(begun)]
    course = Course([PROCESS])
    assert list(course.watch(samples)) == samples
    rates, width_s, origin = course.rates(MOST_BINS)
    assert rates.sum() * width_s == pytest.approx(sum(tokens for _, tokens in begun))
    assert origin <= min(sample.events[0][0] for sample in samples) + 3_000
