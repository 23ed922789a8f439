"""A number is printed with its unit, no more digits than it carries, and its interval beside it.

Data is in seconds throughout; milliseconds exist only in the text made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"


def places(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of `value`: never below 0, never above 3."""
    return 3 if value == 0 else min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 3)


def plain(value: float, digits: int = 3) -> str:
    return f"{value:.{places(value, digits)}f}"


def scale(unit: str, largest: float) -> tuple[float, str]:
    """Factor and name of the unit in which values up to `largest` are read: milliseconds below one second."""
    return (1e3, "ms") if unit == "s" and largest < 1 else (1.0, unit)


def quantity(value: float | None, unit: str, digits: int = 4) -> str:
    """`147.2 ms`, `1.848 s`, `888.4 tokens/s`."""
    if value is None:
        return ABSENT
    factor, name = scale(unit, abs(value))
    return f"{plain(value * factor, digits)} {name}"


def centre(metric: Mapping[str, Any]) -> tuple[float | None, str]:
    """The median, or the mean where there are too few observations (n < 10) to print a median; and which it is."""
    return (metric["p50"], "median") if metric["p50"] is not None else (metric["mean"], "mean")


def with_interval(metric: Mapping[str, Any] | None) -> str:
    """`147.2 ms (95 % CI 146.8–147.7)`, all three with the same unit and decimals; `147.2 ms (mean of 3)`."""
    if metric is None or (value := centre(metric)[0]) is None:
        return ABSENT
    text, statistic = quantity(value, metric["unit"]), centre(metric)[1]
    if (interval := metric[f"ci95_of_{statistic}"]) is None:
        return f"{text} (mean of {metric['n']})" if statistic == "mean" else text
    factor = scale(metric["unit"], abs(value))[0]
    decimals = places(value * factor, 4)
    low, high = (f"{bound * factor:.{decimals}f}" for bound in interval)
    return f"{text} (95 % CI {low}–{high})"


def rate(metric: Mapping[str, Any]) -> str:
    """Of a run outside waves: one figure, with its interval where there is one."""
    return with_interval(metric) if metric["ci95_of_mean"] else quantity(metric["mean"], metric["unit"])


def quantiles(metric: Mapping[str, Any] | None, names: Sequence[str] = ("p50", "p90", "p99")) -> str:
    """`12.3 / 14.0 / – ms`; where no quantile is printable, `12.3 ms (mean of 4)`."""
    if metric is None:
        return ABSENT
    values = [metric[name] for name in names]
    printable = [abs(value) for value in values if value is not None]
    if not printable:
        return with_interval(metric)
    factor, unit = scale(metric["unit"], printable[0])
    return " / ".join(ABSENT if value is None else plain(value * factor) for value in values) + f" {unit}"


def with_failures(metric: Mapping[str, Any] | None, names: Sequence[str] = ("p50", "p90", "p99")) -> str:
    """The quantiles with failures counted as infinitely slow: `12.3 / ∞ / – ms`."""
    beside = metric and metric["with_failures"]
    if not metric or not beside:
        return ABSENT
    values = [math.inf if name in beside["infinite"] else beside[name] for name in names]
    finite = [abs(value) for value in values if value is not None and value != math.inf]
    factor, unit = scale(metric["unit"], finite[0] if finite else 1)
    texts = [ABSENT if v is None else "∞" if v == math.inf else plain(v * factor) for v in values]
    return " / ".join(texts) + (f" {unit}" if finite else "")
