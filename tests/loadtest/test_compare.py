"""A comparison calls a change what is one, and nothing else: false alarms come at the stated rate.

Method: runs whose requests are as correlated as real ones (`runs.py`), drawn from fixed seeds; intervals against
scipy's own test; every reason not to compare, provoked. Rates of false alarms are held to the stated one with the
spread of so many draws (three standard deviations).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from loadtest.compare import blocks, text
from loadtest.compare.differences import BETTER, NOISY, SAME, WORSE, Absent, Difference, Rules, differences
from loadtest.compare.gate import Rule, RuleError, hold, not_held, nowhere
from loadtest.compare.intervals import ALPHA, holm, ratio
from loadtest.compare.measures import MeasureError, measure
from loadtest.compare.sides import Run, SidesError, check, differing, doubts, pairs
from loadtest.sample import Sample
from loadtest.verdict import Verdict
from tests.loadtest.runs import Spread, a_run, in_a_loop, in_waves

ONE_RUN = Spread(run=0.0)  # what blocks of a run can know of


def compared(a: list[Run], b: list[Run], rules: Rules | None = None, *asked: str) -> dict[str, Difference]:
    (pair,), _ = pairs(a, b)
    found, _ = differences(pair, a, b, rules or Rules(), [measure(name) for name in asked])
    return {each.measure.name: each for each in found}


def without_a_line(a: list[Run], b: list[Run], *asked: str) -> dict[str, Absent]:
    (pair,), _ = pairs(a, b)
    _, absent = differences(pair, a, b, Rules(), [measure(name) for name in asked])
    return {each.measure.name: each for each in absent}


def side(seed: int, runs: int = 5, name: str = "a", **changes: Any) -> list[Run]:
    rng = np.random.default_rng(seed)
    return [a_run(in_waves(rng, **changes), f"{name}{number}") for number in range(runs)]


# Intervals


def test_the_interval_is_that_of_welchs_test_on_logarithms():
    rng = np.random.default_rng(1)
    a, b = np.exp(rng.normal(0, 0.1, 7)), np.exp(rng.normal(0, 0.02, 5))
    expected = scipy_stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert ratio(a, b).bounds(ALPHA) == pytest.approx((math.exp(low), math.exp(high)))
    one_sided = scipy_stats.ttest_ind(np.log(a), np.log(b), equal_var=False, alternative="greater")
    assert ratio(1.3 * a, b).p_above(1.3) == pytest.approx(one_sided.pvalue, rel=1e-6) or one_sided.pvalue > 0.5


def test_a_p_value_is_at_most_alpha_exactly_where_the_interval_says_so():
    rng = np.random.default_rng(2)
    for shift in np.linspace(0.9, 1.3, 9):
        found = ratio(shift * np.exp(rng.normal(0, 0.05, 5)), np.exp(rng.normal(0, 0.05, 5)))
        assert (found.p_above(1.05) <= ALPHA) == (found.bounds(ALPHA)[0] > 1.05)
        assert (found.p_below(0.95) <= ALPHA) == (found.bounds(ALPHA)[1] < 0.95)


def test_what_neighbours_have_in_common_widens_the_interval_as_an_autoregression_would():
    climbing, flat = np.arange(10.0), np.tile([0.0, 1.0], 5)
    rest = climbing - climbing.mean()
    r = float((rest[1:] * rest[:-1]).sum() / (rest**2).sum()) + 0.1
    assert r == pytest.approx(0.8)
    a, b = np.exp(climbing), np.exp(flat)
    widths = [np.diff(np.log(ratio(a, b, in_order).bounds(ALPHA)))[0] for in_order in (False, True)]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt((1 + r) / (1 - r)))
    assert ratio(b, b, True).bounds(ALPHA) == ratio(b, b).bounds(ALPHA), "what alternates promises nothing"


def test_figures_that_never_vary_have_an_interval_of_no_width():
    assert ratio([2.0] * 5, [1.0] * 5).bounds(ALPHA) == pytest.approx((2, 2))


def test_failures_on_one_side_only_are_a_change_and_on_a_part_of_it_are_nothing_that_can_be_said():
    failed, whole = [math.inf] * 5, [1.0] * 5
    assert ratio(failed, whole).p_above(1.05) == pytest.approx(1 / math.comb(10, 5), rel=1e-6)
    assert ratio(whole, failed).p_below(0.95) == pytest.approx(1 / math.comb(10, 5), rel=1e-6)
    for a, b in ((failed, failed), ([*whole[:4], math.inf], whole)):
        assert ratio(a, b).bounds(ALPHA) == (0, math.inf)


def test_holms_levels_are_those_of_his_paper():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == pytest.approx([0.05 / 3, 0, 0, 0.05 / 4])
    assert holm([0.01, 0.02], 0.05) == pytest.approx([0.025, 0.05])
    assert holm([], 0.05) == []


# False alarms


def alarms(figures: Callable[[np.random.Generator], list[float]], draws: int, in_order: bool) -> float:
    rng = np.random.default_rng(3)
    fired = 0
    for _ in range(draws):
        low, high = ratio(figures(rng), figures(rng), in_order).bounds(ALPHA)
        fired += low > 1 or high < 1
    return fired / draws


def most(draws: int) -> float:
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_five_runs_a_side_raise_false_alarms_at_the_stated_rate_though_runs_differ():
    spread = Spread(run=0.1, wave=0.03, request=0.03)

    def medians(rng: np.random.Generator) -> list[float]:
        of_run = rng.normal(0, spread.run, (5, 1, 1)) + rng.normal(0, spread.wave, (5, 10, 1))
        return list(np.median(np.exp(of_run + rng.normal(0, spread.request, (5, 10, 4))), axis=(1, 2)))

    rate = alarms(medians, 1000, in_order=False)
    assert 0.05 - 3 * math.sqrt(0.05 * 0.95 / 1000) < rate < most(1000)


@pytest.mark.parametrize("users", [1, 4])
def test_waves_of_one_run_raise_no_more_false_alarms_than_stated(users: int):
    def figures(rng: np.random.Generator) -> list[float]:
        return blocks.figures(in_waves(rng, users=users, spread=ONE_RUN), {}, measure("ttft_p50"))

    assert alarms(figures, 250, in_order=True) < most(250)


@pytest.mark.parametrize(("name", "draws"), [("latency_p50", 150), ("throughput_output", 50)])
def test_a_closed_loop_whose_server_is_slow_for_a_while_raises_no_more_false_alarms_than_stated(name: str, draws: int):
    def figures(rng: np.random.Generator) -> list[float]:
        return blocks.figures(in_a_loop(rng, spread=ONE_RUN), {}, measure(name))

    assert alarms(figures, draws, in_order=True) < most(draws)


def test_requests_taken_for_independent_would_raise_far_too_many():
    """That the simulation can fail: all requests of a run as observations, as if none waited for another."""

    def figures(rng: np.random.Generator) -> list[float]:
        samples = in_waves(rng, users=8, spread=Spread(0.0, 0.1, 0.01))
        return [(s.ended_ns - s.events[0][0]) / 1e9 for s in samples]

    assert alarms(figures, 50, in_order=False) > 0.3


# Blocks


@pytest.mark.parametrize(("waves", "in_one"), [(7, 1), (10, 1), (30, 3)])
def test_a_block_is_of_whole_waves_ten_at_most(waves: int, in_one: int):
    samples = in_waves(np.random.default_rng(4), waves=waves)
    ttfts = np.array([(s.events[0][0] - s.scheduled_ns) / 1e9 for s in samples]).reshape(-1, 4 * in_one)
    found = blocks.figures(list(reversed(samples)), {}, measure("ttft_p50"))
    assert found == pytest.approx(list(np.median(ttfts, axis=1)))


def test_a_block_of_a_loop_has_twice_as_many_requests_as_are_in_flight_and_a_tails_has_some_beyond():
    samples = in_a_loop(np.random.default_rng(4), rounds=12, users=8)
    assert len(blocks.figures(samples, {}, measure("latency_p50"))) == 96 // 16
    with pytest.raises(blocks.TooFew, match="6 stretches of requests in flight together are 4 blocks for latency_p95"):
        blocks.figures(samples, {}, measure("latency_p95"))
    assert len(blocks.figures(samples, {}, measure("latency_p90"))) == 6


def test_blocks_of_a_rate_add_up_to_the_rate():
    samples = in_a_loop(np.random.default_rng(4), rounds=100)
    run = a_run(samples)
    metrics = run.summary["cells"][0]["metrics"]
    for name in ("throughput_output", "throughput_total", "requests"):
        found = blocks.figures(samples, {}, measure(name))
        assert len(found) == 10
        assert np.mean(found) == pytest.approx(metrics[measure(name).metric]["mean"])


def test_instants_of_several_machines_are_not_cut_into_blocks():
    samples = in_a_loop(np.random.default_rng(4))
    with pytest.raises(blocks.TooFew, match="several machines"):
        blocks.figures([*samples, replace(samples[0], process=1)], {0: "here", 1: "there"}, measure("ttft_p50"))


# Verdicts


def test_five_runs_a_side_tell_a_change_from_none():
    b = side(10, name="b")
    slower, same = compared(side(11, shift=1.3), b), compared(side(12), b, Rules(margin=0.2))
    assert slower["ttft_p50"].verdict == slower["batch_latency_p50"].verdict == WORSE
    assert slower["throughput_output"].verdict == WORSE
    assert compared(side(11, shift=0.7), b)["throughput_output"].verdict == BETTER
    assert {each.verdict for each in same.values()} == {SAME}
    low, high = slower["ttft_p50"].interval or (0, 0)
    assert low < 0.3 < high
    assert slower["ttft_p50"].n == (5, 5)


def test_the_figure_of_a_run_is_the_one_of_its_report():
    a, b = side(13), side(14, name="b")
    medians = [run.summary["cells"][0]["metrics"]["ttft_s"]["p50"] for run in a]
    assert compared(a, b)["ttft_p50"].a == pytest.approx(float(np.exp(np.mean(np.log(medians)))))


def test_fewer_than_five_runs_a_side_are_too_noisy_to_say_unless_the_spread_within_them_is_trusted():
    a, b = side(15, runs=1, shift=1.3), side(16, runs=4, name="b")
    found = compared(a, b)["ttft_p50"]
    assert (found.verdict, found.interval) == (NOISY, None)
    assert found.why == "1 run against 4: how much runs differ is known from 5 a side on"
    trusted = compared(a, b, Rules(within_run=True))["ttft_p50"]
    assert (trusted.verdict, trusted.of, trusted.n) == (WORSE, "blocks", (10, 40))


def test_an_interval_that_reaches_beyond_the_margin_is_no_proof_of_no_difference():
    rng = np.random.default_rng(17)
    a, b = ([a_run(in_waves(rng, shift=0.8 + 0.1 * n), f"{name}{n}") for n in range(5)] for name in "ab")
    found = compared(a, b)["ttft_p50"]
    assert found.verdict == NOISY
    assert "reaches beyond ± 5 %" in (found.why or "")


def test_a_run_too_short_to_be_cut_says_what_it_lacks():
    rules = Rules(within_run=True)
    found = compared(side(19, runs=1, waves=4), side(20, runs=1, waves=4, name="b"), rules, "ttft_mean")["ttft_mean"]
    assert found.verdict == NOISY
    assert found.why == "4 waves are 4 blocks for ttft_mean, 5 are needed: measure longer"


def test_below_ten_waves_the_mean_stands_in_for_a_median_of_every_run():
    slower, many = side(21, waves=4, users=1, shift=1.3), side(22, waves=12, users=1, name="b")
    found = compared(slower, [*many[:4], *side(29, runs=1, waves=4, users=1, name="few")])
    assert found.keys() == {"batch_latency_mean", "throughput_output_mean", "ttft_mean", "tpot_mean"}
    means = [run.summary["cells"][0]["metrics"]["throughput_output_tokens_per_s"]["mean"] for run in slower]
    assert found["throughput_output_mean"].a == pytest.approx(float(np.exp(np.mean(np.log(means)))))
    assert found["throughput_output_mean"].verdict == WORSE
    assert compared(many, many)["throughput_output"].b == compared(many, many)["throughput_output"].a


def test_what_has_no_line_is_named_with_its_reason_and_what_to_do():
    a, b = side(21, waves=4, users=1), side(22, waves=12, users=1, name="b")
    absent = without_a_line(a, b, "throughput_output", "requests")
    assert absent["throughput_output"].why == (
        "4 observations, p50 takes 10 (a0 in A, a1 in A, a2 in A and 2 more): measure longer, or ask for "
        "throughput_output_mean"
    )
    assert absent["requests"].why == "it has no such figure (every run)"
    assert absent["itl_p99"].why.endswith("12 observations, p99 takes 500 (b0 in B, b1 in B, b2 in B and 2 more): "
        "measure longer, or ask for itl_mean")  # fmt: skip
    asked = ("throughput_output", "requests", "ttft_p99")
    has = [*compared(a, b, None, *asked), *without_a_line(a, b, *asked)]
    assert sorted(has) == sorted([
        "batch_latency_mean", "itl_p99", "requests", "throughput_output", "throughput_output_mean", "tpot_mean",
        "ttft_mean", "ttft_p99",
    ])  # fmt: skip


def test_a_median_of_0_is_no_lack_of_observations():
    a, b = side(21, users=1), side(22, users=1, name="b")
    for run in b:  # as where a proxy gives each stream out at once
        itl = run.summary["cells"][0]["metrics"]["itl_s"]
        itl["p50"] = 0.0
    why = without_a_line(a, b, "itl_p50")["itl_p50"].why
    assert why == "it is 0, and nothing has a ratio to that (b0 in B, b1 in B, b2 in B and 2 more): ask for itl_mean"
    assert "itl_mean" not in compared(a, b, None, "itl_p50")


def failing(samples: list[Sample], share: float) -> list[Sample]:
    return [
        replace(s, verdict=Verdict.TIMEOUT, detail="t") if i < share * len(samples) else s
        for i, s in enumerate(samples)
    ]


def test_failing_cannot_flatter():
    rng = np.random.default_rng(23)
    b = [a_run(in_waves(rng), f"b{n}") for n in range(5)]
    fast = [a_run(failing(in_waves(rng, shift=0.5), 0.8), f"a{n}") for n in range(5)]
    found = compared(fast, b)["ttft_p50"]
    assert (found.verdict, found.a) == (WORSE, math.inf)
    assert "∞" in text.table([found])
    mixed = compared([*fast[:1], *side(24, runs=4)], b)["ttft_p50"]
    assert (mixed.verdict, mixed.why) == (NOISY, "some figures lie among failed requests, some don't")
    assert any("requests failed (32 of 40 of T 256→16 in a0" in each for each in doubts(fast))


# What may be compared


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"plan": "to-1024"}, "plan differs: to-1024 in a0 in A, published in b0 in B"),
        ({"shared_prefix_tokens": 100}, "shared prefix differs: 100 tokens in a0 in A, 0 tokens in b0 in B"),
        (
            {"dataset": {"sha256": "f" * 64, "lines": 9, "different_prompts": 9}},
            "dataset differs: ffffffffffff in a0 in A, none in b0 in B",
        ),
        ({"open_loop": {"kind": "poisson", "rate_per_s": 8, "burstiness": 1}}, "arrivals differs: poisson 8/s"),
    ],
)
def test_a_cell_of_another_load_is_named_with_its_reason(changes: dict[str, Any], why: str):
    rng = np.random.default_rng(25)
    a, b = [a_run(in_waves(rng), "a0", **changes)], [a_run(in_waves(rng), "b0")]
    paired, (left_out,) = pairs(a, b)
    assert (paired, left_out.label) == ([], "T 256→16")
    assert left_out.why.startswith(why)


def test_other_users_or_lengths_are_another_cell_and_every_run_must_have_it():
    rng = np.random.default_rng(26)
    _, left_out = pairs([a_run(in_waves(rng, users=8), "a0")], [a_run(in_waves(rng), "b0")])
    assert {each.why for each in left_out} == {"not measured by b0 in B", "not measured by a0 in A"}


def test_what_differs_between_the_sides_is_said():
    rng = np.random.default_rng(27)
    other = [replace(s, transport="httpx", cell=replace(s.cell, slots=8)) for s in in_waves(rng)]
    said = list(differing([a_run(other, "a0")], [a_run(in_waves(rng), "b0")]))
    assert said == ["slots: T 8 in A; T 4 in B", "transport: httpx in A; gevent in B"]


def test_a_run_counts_once():
    runs = side(28, runs=2)
    twin = replace(runs[0], name="a copy of its folder")
    with pytest.raises(SidesError, match="a copy of its folder in B is the run that is already there as a0 in A"):
        check(runs, [twin])


# Gates


def test_a_gate_fires_where_the_interval_says_so_and_is_corrected_for_how_often_it_is_held():
    b, slower = side(30, name="b"), side(31, shift=1.3)
    found = list(compared(slower, b).values())
    (held,) = hold([Rule.parse("ttft_p50 > 5%")], found)
    assert (held.fired, held.allowed) == (True, ALPHA)
    assert not any(each.fired for each in hold([Rule.parse("ttft_p50 > 40%")], found))
    both = hold([Rule.parse("ttft_p50 > 5%"), Rule.parse("throughput_output < -5%")], found)
    assert sorted(each.allowed for each in both) == [ALPHA / 2, ALPHA]
    assert "FAILS: ttft_p50 > 5%, T 256→16" in "\n".join(text.gate(both))


def test_a_gate_held_often_fires_at_less():
    """One cell that would fire alone, by a little, among nine where nothing changed: together they don't."""
    still = np.exp([-0.02, -0.01, 0.0, 0.01, 0.02])
    rule = Rule.parse("ttft_p50 > 5%")

    def found(shift: float) -> Difference:
        of = ratio(shift * still, still)
        return Difference("cell", rule.measure, shift, 1.0, "runs", (5, 5), of, NOISY, None)

    changed = found(1.079)
    assert ALPHA / 10 < rule.p_value(changed) < ALPHA
    assert [each.fired for each in hold([rule], [changed])] == [True]
    assert not any(each.fired for each in hold([rule], [changed, *[found(1.0)] * 9]))


def test_a_gate_that_nobody_can_hold_passes_and_says_so():
    found = list(compared(side(32, runs=1, shift=2), side(33, runs=1, name="b")).values())
    (held,) = hold([Rule.parse("ttft_p50 > 5%")], found)
    assert (held.fired, held.p_value) == (False, None)
    assert "too noisy to say (1 run against 1" in "\n".join(text.gate([held]))


def test_a_rule_whose_measure_no_cell_has_is_named():
    a, b = side(34), side(35, name="b")
    found, absent = compared(a, b, None, "ttft_p99").values(), without_a_line(a, b, "ttft_p99").values()
    rules = [Rule.parse("ttft_p50 > 5%"), Rule.parse("ttft_p99 > 5%")]
    assert [rule.text for rule in nowhere(rules, list(found))] == ["ttft_p99 > 5%"]
    assert [(rule.text, each.cell) for rule, each in not_held(rules, list(absent))] == [("ttft_p99 > 5%", "T 256→16")]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("ttft_p50", "'ttft_p50' is no rule: write it as 'ttft_p50 > 5%'"),
        ("ttft_p50 > 5", "is no rule"),
        ("ttft > 5%", "there is no measure 'ttft': it is one of ttft, ttft_text,"),
        ("ttft_p42 > 5%", "there is no measure 'ttft_p42'"),
        ("ttft_p50 < 5%", "would hold where nothing changed, or never"),
        ("ttft_p50 > -5%", "would hold where nothing changed, or never"),
        ("throughput_output < -100%", "would hold where nothing changed, or never"),
    ],
)
def test_a_rule_that_is_none_is_refused_with_one_that_is(rule: str, said: str):
    with pytest.raises(RuleError) as refused:
        Rule.parse(rule)
    assert said in str(refused.value)


def test_every_usual_measure_exists_and_the_others_name_those():
    with pytest.raises(MeasureError, match="requests"):
        measure("goodness")
    assert measure("e2el_p99").metric == "latency_s"
    assert [measure(n).more_is_better for n in ("throughput_output", "requests", "ttft_p50")] == [True, True, False]
