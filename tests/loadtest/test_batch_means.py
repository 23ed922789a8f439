"""Outside waves an interval of several users' figures holds the true one as often as stated, or isn't given.

Method: closed loops whose server is slow for a while (`runs.py`), so that requests in flight together are alike; their
true median and rates in closed form. Coverage is held to 95 % with the spread of so many draws (three standard
deviations); that of requests taken for independent falls far short of it, which shows that the loops can fail.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import t as student

from loadtest import batch_means, stats
from loadtest.batch_means import Intervals, NoBlocks, around, count, intervals
from loadtest.report import doubts
from loadtest.report.text import output_rate
from loadtest.sample import Sample
from loadtest.summary import summarise
from loadtest.verdict import Verdict
from tests.loadtest.runs import Spread, a_run, in_a_loop, in_waves

SPREAD = Spread(run=0.0)
DRAWS, USERS, ROUNDS = 150, 4, 60
LATENCY_S = 0.250  # 100 ms, and 15 steps of 10 ms: the median, since logarithms are drawn symmetrically
#: users / mean latency; logarithms have the variance of the server's state (an autoregression of 0.5) and a request's.
PER_S = USERS / (LATENCY_S * math.exp((SPREAD.wave**2 / (1 - 0.5**2) + SPREAD.request**2) / 2))

loop = partial(in_a_loop, users=USERS, spread=SPREAD)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[list[Sample], Intervals]]:
    rng = np.random.default_rng(7)
    samples = [loop(rng, rounds=ROUNDS) for _ in range(DRAWS)]
    return [(each, intervals(each, {}, open_loop=False)) for each in samples]


def covering(drawn: list[tuple[list[Sample], Intervals]], metric: str, truth: float) -> float:
    return sum(low <= truth <= high for _, each in drawn for low, high in [each.of[metric]]) / len(drawn)


@pytest.mark.parametrize(
    ("metric", "truth"),
    [
        ("latency_s", LATENCY_S),
        ("ttft_s", 0.1),
        ("tpot_s", 0.01),
        ("requests_per_s", PER_S),
        ("throughput_output_tokens_per_s", 16 * PER_S),
        ("throughput_total_tokens_per_s", 272 * PER_S),
    ],
)
def test_an_interval_from_blocks_holds_the_true_figure_as_often_as_stated(
    drawn: list[tuple[list[Sample], Intervals]], metric: str, truth: float
):
    assert covering(drawn, metric, truth) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS)


def test_it_is_no_wider_than_it_takes(drawn: list[tuple[list[Sample], Intervals]]):
    """By the medians of so many loops, whose own spread is known, and Student's t of six blocks."""
    medians = [float(np.median([stats.latency_s(s) for s in samples])) for samples, _ in drawn]
    widths = [high - low for _, each in drawn for low, high in [each.of["latency_s"]]]
    assert np.median(widths) < 2 * batch_means.T[6] * np.std(medians, ddof=1) * 1.5


def test_requests_taken_for_independent_would_hold_it_far_less_often(drawn: list[tuple[list[Sample], Intervals]]):
    found = [stats.median_interval([(s.ended_ns - s.scheduled_ns) / 1e9 for s in samples]) for samples, _ in drawn]
    assert sum(each is not None and each.low <= LATENCY_S <= each.high for each in found) / DRAWS < 0.75


def test_the_interval_is_that_of_the_formula():
    parts = [1.0, 1.2, 0.9, 1.1, 1.0, 1.3]
    s = math.sqrt(sum((part - 1.05) ** 2 for part in parts) / 5)
    reach = student.isf(0.025, 5) * s / math.sqrt(6)  # neighbours have nothing in common: r is below 0
    assert around(1.05, parts) == pytest.approx((1.05 - reach, 1.05 + reach))
    low, high = around(3.5, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # a trend is no noise
    assert (low, high - 3.5 > 2 * student.isf(0.025, 5) * np.std(range(6), ddof=1) / math.sqrt(6)) == (0.0, True)


@pytest.mark.parametrize("n", batch_means.T)
def test_students_t_is_scipys(n: int):
    assert batch_means.T[n] == pytest.approx(student.isf(0.025, n - 1), abs=1e-6)


@pytest.mark.parametrize(("rounds", "blocks"), [(50, 5), (75, 7), (100, 10), (300, 10)])
def test_a_block_has_ten_requests_a_user_and_there_are_ten_at_most(rounds: int, blocks: int):
    assert count(loop(np.random.default_rng(8), rounds=rounds), {}, open_loop=False) == blocks


def test_a_run_that_cannot_be_cut_says_why_and_what_to_do():
    samples = loop(np.random.default_rng(8), rounds=49)
    with pytest.raises(NoBlocks, match=r"196 complete requests, 200 \(50 a user\) are needed: -t 1[34]s or longer"):
        count(samples, {}, open_loop=False)
    with pytest.raises(NoBlocks, match=r"0 complete requests, 200 \(50 a user\) are needed$"):
        count([replace(s, verdict=Verdict.TIMEOUT) for s in samples], {}, open_loop=False)
    samples = loop(np.random.default_rng(8), rounds=50)
    with pytest.raises(NoBlocks, match="an open loop's queue may outlast any block; compare five runs"):
        count(samples, {}, open_loop=True)
    with pytest.raises(NoBlocks, match="several machines"):
        count([*samples, replace(samples[0], process=1)], {0: "here", 1: "there"}, open_loop=False)


def test_what_too_few_requests_have_gets_no_interval():
    """One token has no TPOT: where three of four replies are such, a block would have two and a half a user."""
    samples = loop(np.random.default_rng(8), rounds=100)
    short = [s if n % 4 == 0 else replace(s, got=replace(s.got, new_tokens=1), events=s.events[:1])
             for n, s in enumerate(samples)]  # fmt: skip
    assert "tpot_s" in intervals(samples, {}, open_loop=False).of
    found = intervals(short, {}, open_loop=False).of
    assert "latency_s" in found
    assert "tpot_s" not in found


def test_a_summary_has_the_intervals_of_rates_and_of_several_users_medians():
    samples = loop(np.random.default_rng(9), rounds=50)
    (entry,) = a_run(samples).summary["cells"]
    assert entry["blocks"] == {"n": 5, "each_s": pytest.approx(stats.wall_s(samples) / 5), "why": None}
    for name, metric in entry["metrics"].items():
        if name in stats.OF_REQUESTS:
            low, high = metric["ci95_of_median"]
            assert low < metric["p50"] < high, name
            assert metric["ci95_coverage"] is None, "it is approximate"
        elif name in batch_means.RATES:
            low, high = metric["ci95_of_mean"]
            assert low < metric["mean"] < high, name
        else:
            assert metric["ci95_of_median"] is metric["ci95_of_mean"] is None, name
    alone = summarise(loop(np.random.default_rng(9), rounds=50, users=1), a_run(samples).run)["cells"][0]
    assert alone["metrics"]["latency_s"]["ci95_coverage"] > 0.95, "of order statistics, as before"
    assert alone["metrics"]["requests_per_s"]["ci95_of_mean"] is not None


def test_an_open_loop_of_one_user_has_no_interval_either():
    samples = loop(np.random.default_rng(9), rounds=50, users=1)
    run = a_run(samples).run | {"open_loop": {"kind": "poisson", "rate_per_s": 2, "burstiness": 1}}
    (entry,) = summarise(samples, run)["cells"]
    assert entry["metrics"]["latency_s"]["n"] == 50
    given = {name for name, each in entry["metrics"].items() if each["ci95_of_median"] or each["ci95_of_mean"]}
    assert given == set()


def test_a_report_shows_the_interval_and_what_it_rests_on_or_why_there_is_none():
    long, short = (a_run(loop(np.random.default_rng(9), rounds=rounds)).summary for rounds in (50, 49))
    (entry,) = long["cells"]
    low, high = entry["metrics"]["throughput_output_tokens_per_s"]["ci95_of_mean"]
    assert f" tokens/s (95 % CI {low:.1f}–{high:.1f}), " in output_rate(entry)
    assert "CI" not in output_rate(short["cells"][0])
    rests = " nearly are: 4 users 256→16 (5 of "
    why = "**No interval** of medians and rates: 196 complete requests, 200 (50 a user) are needed: -t "
    for summary, said, unsaid in ((long, rests, why), (short, why, rests)):
        text = "\n".join(doubts.sentences(summary))
        assert said in text
        assert unsaid not in text
    of_waves = "\n".join(doubts.sentences(a_run(in_waves(np.random.default_rng(9))).summary))
    assert "**No interval**" not in of_waves
    assert "**Intervals" not in of_waves
