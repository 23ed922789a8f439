"""What makes a comparison fail: `ttft_p50 > 5%`, A's median TTFT more than 5 % above B's, in any cell.

A gate fires only where the interval says so: its chance of a false alarm, over all cells and rules together, is 2.5 %
(each end of a 95 % interval, corrected by Holm).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.compare.differences import Absent, Difference
from loadtest.compare.intervals import ALPHA, holm
from loadtest.compare.measures import Measure, MeasureError, measure

LIKE = "write it as 'ttft_p50 > 5%' (A is more than 5 % above B) or 'throughput_output < -5%' (more than 5 % below)"


class RuleError(ValueError):
    """Not a rule; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Rule:
    text: str
    measure: Measure
    above: bool
    limit: float  # share of B's figure; 0.05 is 5 %

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Raises: RuleError."""
        match = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d*)?)\s*%\s*", text)
        if match is None:
            raise RuleError(f"{text!r} is no rule: {LIKE}")
        name, sign, percent = match[1], match[2], float(match[3])
        try:
            what = measure(name)
        except MeasureError as error:
            raise RuleError(f"{text!r}: {error}") from error
        if (sign == ">" and percent < 0) or (sign == "<" and not -100 < percent <= 0):
            raise RuleError(f"{text!r} would hold where nothing changed, or never: {LIKE}")
        return cls(f"{name} {sign} {percent:g}%", what, sign == ">", percent / 100)

    def p_value(self, found: Difference) -> float:
        assert found.ratio is not None
        return found.ratio.p_above(1 + self.limit) if self.above else found.ratio.p_below(1 + self.limit)


@dataclass(frozen=True, slots=True)
class Held:
    """A rule held against one cell. `p_value`: None where nothing can be said."""

    rule: Rule
    found: Difference
    p_value: float | None
    allowed: float  # what the p-value may be at most, so that the rule fires; 0: nothing would do
    fired: bool


def hold(rules: Sequence[Rule], found: Sequence[Difference]) -> list[Held]:
    """Every rule against every cell that has its measure. What can't be said fires nothing, and corrects nothing."""
    sayable = [(rule, each) for rule in rules for each in found if each.measure == rule.measure]
    p_values = [rule.p_value(each) for rule, each in sayable if each.ratio is not None]
    levels = iter(zip(p_values, holm(p_values, ALPHA), strict=True))
    held = []
    for rule, each in sayable:
        if each.ratio is None:
            held.append(Held(rule, each, None, 0.0, fired=False))
        else:
            p_value, allowed = next(levels)
            held.append(Held(rule, each, p_value, allowed, fired=p_value <= allowed))
    return held


def not_held(rules: Sequence[Rule], absent: Sequence[Absent]) -> list[tuple[Rule, Absent]]:
    """Rules beside each cell that they aren't held against."""
    return [(rule, each) for rule in rules for each in absent if each.measure == rule.measure]


def nowhere(rules: Sequence[Rule], found: Sequence[Difference]) -> list[Rule]:
    """Rules that no cell has the measure of: a gate that is never held against anything would never fire."""
    return [rule for rule in rules if not any(each.measure == rule.measure for each in found)]
