"""Is A faster than B? One answer for each cell and measure, with the interval that it rests on.

better, worse: the whole interval lies on one side of no change. no difference: it holds no change, and reaches no
further than the margin either way. too noisy to say: all else, and whatever rests on fewer than five runs a side, since
nobody knows then how much two runs of the same thing differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.compare.blocks import TooFew, figures
from loadtest.compare.intervals import ALPHA, LEAST, Ratio, ratio
from loadtest.compare.measures import ENCODING, LOOP, OPEN_LOOP, WAVES, Measure, measure
from loadtest.compare.sides import Pair, Run

BETTER, WORSE, SAME, NOISY = "better", "worse", "no difference", "too noisy to say"
MARGIN = 0.05


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


def change(a: float, b: float) -> float | None:
    """None where both are infinite."""
    return None if math.isinf(a) and math.isinf(b) else -1.0 if math.isinf(b) else a / b - 1


@dataclass(frozen=True, slots=True)
class Rules:
    within_run: bool = False  # believe blocks of runs where there are fewer than five runs a side
    margin: float = MARGIN


def differences(
    pair: Pair, a: Sequence[Run], b: Sequence[Run], rules: Rules, asked: Sequence[Measure] = ()
) -> Iterator[Difference]:
    """Of one cell: the usual measures, and those that are asked for, as far as the cell has them."""
    names = [*_usual(pair), *(each.name for each in asked)]
    for each in map(measure, dict.fromkeys(names)):
        if (found := _difference(pair, a, b, _in_place_of(each, pair, asked), rules)) is not None:
            yield found


def _usual(pair: Pair) -> tuple[str, ...]:
    if pair.loop == "waves":
        return ENCODING if pair.a[0]["cell"]["new_tokens"] == 1 else WAVES
    return OPEN_LOOP if pair.loop == "open" else LOOP


def _in_place_of(usual: Measure, pair: Pair, asked: Sequence[Measure]) -> Measure:
    """The mean where a median that nobody asked for rests on too few observations, as in the report."""
    if usual in asked or usual.statistic != "p50" or all(usual.of(entry) is not None for entry in (*pair.a, *pair.b)):
        return usual
    return measure(usual.name.removesuffix("p50") + "mean")


def _difference(pair: Pair, a: Sequence[Run], b: Sequence[Run], one: Measure, rules: Rules) -> Difference | None:
    """None where a run has no such figure."""
    of_a, of_b = ([value for entry in side if (value := one.of(entry)) is not None] for side in (pair.a, pair.b))
    if len(of_a) < len(a) or len(of_b) < len(b) or not all((*of_a, *of_b)):
        return None
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
