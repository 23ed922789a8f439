"""Is A faster than B? One answer for each cell and measure, with the interval that it rests on.

better, worse: the whole interval lies on one side of no change. no difference: it holds no change, and reaches no
further than the margin either way. too noisy to say: all else, and whatever rests on fewer than five runs a side, since
nobody knows then how much two runs of the same thing differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.compare.blocks import TooFew, figures
from loadtest.compare.intervals import ALPHA, LEAST, Ratio, ratio
from loadtest.compare.measures import ENCODING, LOOP, OPEN_LOOP, RATES, WAVES, Measure, measure
from loadtest.compare.sides import Pair, Run

BETTER, WORSE, SAME, NOISY = "better", "worse", "no difference", "too noisy to say"
MARGIN = 0.05
FEW = 3  # runs that a reason names


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the table. Shares are of B's figure: 0.05 is A 5 % above B."""

    cell: str
    measure: Measure
    a: float | None  # geometric mean of the runs' figures; infinite where all of them are among failures
    b: float | None
    of: str  # runs | blocks: what the interval's observations are
    n: tuple[int, int]
    ratio: Ratio | None  # None where nobody knows how the figures vary
    verdict: str
    why: str | None  # of `too noisy to say`

    @property
    def share(self) -> float | None:
        return None if self.a is None or self.b is None else change(self.a, self.b)

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.ratio is None:
            return None
        low, high = self.ratio.bounds(ALPHA)
        return low - 1, high - 1


@dataclass(frozen=True, slots=True)
class Absent:
    """What the table has no line of, since not every run has such a figure in this cell."""

    cell: str
    measure: Measure
    why: str  # with the runs, and what to do


def change(a: float, b: float) -> float | None:
    """None where both are infinite."""
    return None if math.isinf(a) and math.isinf(b) else -1.0 if math.isinf(b) else a / b - 1


@dataclass(frozen=True, slots=True)
class Rules:
    within_run: bool = False  # believe blocks of runs where there are fewer than five runs a side
    margin: float = MARGIN


def differences(
    pair: Pair, a: Sequence[Run], b: Sequence[Run], rules: Rules, asked: Sequence[Measure] = ()
) -> tuple[list[Difference], list[Absent]]:
    """Of one cell: the usual measures and those that are asked for, and which of them it hasn't."""
    usual = [_in_place_of(measure(name), pair) for name in _usual(pair)]
    found, absent = [], []
    for each in dict.fromkeys([*usual, *asked]):
        if why := _lacking(each, pair, a, b):
            absent.append(Absent(pair.label, each, why))
        else:
            found.append(_difference(pair, a, b, each, rules))
    return found, absent


def _usual(pair: Pair) -> tuple[str, ...]:
    if pair.loop == "waves":
        return ENCODING if pair.a[0]["cell"]["new_tokens"] == 1 else WAVES
    return OPEN_LOOP if pair.loop == "open" else LOOP


def _in_place_of(usual: Measure, pair: Pair) -> Measure:
    """The mean where some run has too few observations for a median, as in its report: then of every run."""
    if usual.statistic != "p50" and usual.metric not in RATES.values():
        return usual
    return usual.mean if _too_few(usual, pair) and not _lacked(usual.mean, pair) else usual


def _lacked(one: Measure, pair: Pair) -> bool:
    """By any run."""
    return any(one.lacking(entry) for entry in (*pair.a, *pair.b))


def _too_few(one: Measure, pair: Pair) -> bool:
    """Observations, in any run."""
    return any(one.too_few(entry) for entry in (*pair.a, *pair.b))


def _lacking(one: Measure, pair: Pair, a: Sequence[Run], b: Sequence[Run]) -> str | None:
    """Why it can't be compared, and what to do; None where every run has it."""
    reasons: dict[str, list[str]] = {}
    for side, runs, entries in (("A", a, pair.a), ("B", b, pair.b)):
        for run, entry in zip(runs, entries, strict=True):
            if why := one.lacking(entry):
                reasons.setdefault(why, []).append(f"{run.name} in {side}")
    if not reasons:
        return None
    lacking = {why: _few(where, len(a) + len(b)) for why, where in reasons.items()}
    said = _few([f"{why} ({where})" for why, where in lacking.items()])
    remedies = ["measure longer"] if _too_few(one, pair) else []
    if one.statistic != "mean" and not _lacked(one.mean, pair):
        remedies.append(f"ask for {one.mean.name}")
    return ": ".join(filter(None, (said, ", or ".join(remedies))))


def _few(what: Sequence[str], runs: int | None = None) -> str:
    if len(what) == runs:
        return "every run"
    return ", ".join(what[:FEW]) + (f" and {len(what) - FEW} more" if len(what) > FEW else "")


def _difference(pair: Pair, a: Sequence[Run], b: Sequence[Run], one: Measure, rules: Rules) -> Difference:
    """Every run has such a figure."""
    of_a, of_b = ([value for entry in side if (value := one.of(entry)) is not None] for side in (pair.a, pair.b))
    means = (_mean(of_a), _mean(of_b))
    enough = min(len(of_a), len(of_b)) >= LEAST
    if not enough and not rules.within_run:
        few = f"{_runs(len(of_a))} against {len(of_b)}: how much runs differ is known from {LEAST} a side on"
        return Difference(pair.label, one, *means, "runs", (len(of_a), len(of_b)), None, NOISY, few)
    of = "runs" if enough else "blocks"
    if not enough:
        try:
            of_a, of_b = (
                [each for run in side for each in figures(run.samples[pair.key], run.hosts, one)] for side in (a, b)
            )
        except TooFew as error:
            return Difference(pair.label, one, *means, of, (0, 0), None, NOISY, str(error))
    found, means = ratio(of_a, of_b, in_order=not enough), (_mean(of_a), _mean(of_b))
    verdict, why = _verdict(found, one, rules.margin)
    return Difference(pair.label, one, *means, of, (len(of_a), len(of_b)), found, verdict, why)


def _mean(figures: Sequence[float]) -> float:
    """Geometric: that whose ratio the interval is of."""
    return math.exp(math.fsum(map(math.log, figures)) / len(figures)) if not any(map(math.isinf, figures)) else math.inf


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"


def _verdict(found: Ratio, one: Measure, margin: float) -> tuple[str, str | None]:
    low, high = found.bounds(ALPHA)
    if math.isnan(found.value):
        return NOISY, "some figures lie among failed requests, some don't"
    if low > 1 or high < 1:
        return (BETTER if (low > 1) == one.more_is_better else WORSE), None
    if low >= 1 - margin and high <= 1 + margin:
        return SAME, None
    return NOISY, f"the interval holds no change and reaches beyond ± {100 * margin:g} %"
