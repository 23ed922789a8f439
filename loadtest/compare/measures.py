"""What is compared, by name: `ttft_p50`, `itl_p99`, `throughput_output`; and which way is better.

A name is a metric of summary.json without its unit, and the statistic that is taken of it in a run. A rate needs none:
in waves it is the median over waves, elsewhere a run has one. `throughput_output_mean` is the mean over waves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.stats import DEFINITIONS, MIN_BEYOND

TIMES = {
    "ttft": "ttft_s",
    "ttft_text": "ttft_text_s",
    "ttft_from_schedule": "ttft_from_schedule_s",
    "latency": "latency_s",
    "e2el": "latency_s",
    "tpot": "tpot_s",
    "itl": "itl_s",
    "encoding_time": "encoding_time_s",
    "batch_latency": "batch_latency_s",
}
RATES = {
    "throughput_output": "throughput_output_tokens_per_s",
    "throughput_total": "throughput_total_tokens_per_s",
    "requests": "requests_per_s",
}
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
STATISTICS = (*QUANTILES, "mean")
OF_WAVES = {"encoding_time_s", "batch_latency_s"}

#: What is compared where nothing is asked for.
ENCODING = ("encoding_time_p50", "ttft_p50")  # cells of one new token
WAVES = ("batch_latency_p50", "throughput_output", "ttft_p50", "tpot_p50", "itl_p99")
LOOP = ("ttft_p50", "ttft_p99", "tpot_p50", "itl_p99", "latency_p50", "latency_p99", "throughput_output", "requests")
OPEN_LOOP = ("ttft_from_schedule_p50", "ttft_from_schedule_p99", *LOOP)


class MeasureError(ValueError):
    """No such measure; the message names those that there are."""


@dataclass(frozen=True, slots=True)
class Measure:
    metric: str  # of summary.json
    statistic: str | None  # None: the one figure that a rate has, in waves their median
    name: str

    @property
    def unit(self) -> str:
        return DEFINITIONS[self.metric].unit

    @property
    def more_is_better(self) -> bool:
        return self.metric in RATES.values()

    @property
    def quantile(self) -> float | None:
        """None: the mean, or a rate outside waves."""
        return QUANTILES.get(self.statistic or "")

    @property
    def mean(self) -> Measure:
        """Of the same metric; any number of observations has one."""
        return measure(self.name.removesuffix(f"_{self.statistic}") + "_mean")

    def of(self, entry: Mapping[str, Any]) -> float | None:
        """A run's figure in one cell. A quantile counts failures as infinitely slow, so that failing can't flatter.

        None where the metric is undefined, or has too few observations for the quantile. entry: of summary.json's
        `cells`.
        """
        metric = entry["metrics"].get(self.metric)
        if metric is None:
            return None
        statistic = self._statistic(entry)
        beside = metric["with_failures"]
        if beside is None or statistic == "mean":
            value: float | None = metric[statistic]
            return value
        return math.inf if statistic in beside["infinite"] else beside[statistic]

    def _statistic(self, entry: Mapping[str, Any]) -> str:
        return self.statistic or ("p50" if entry["waves"] else "mean")

    def lacking(self, entry: Mapping[str, Any]) -> str | None:
        """Why a run's figure in one cell can't be compared; None where it can."""
        metric = entry["metrics"].get(self.metric)
        if metric is None:
            return "it has no such figure"
        value = self.of(entry)
        if value == 0:
            return "it is 0, and nothing has a ratio to that"
        if value is not None:
            return None
        return self.too_few(entry) or "nothing was complete"

    def too_few(self, entry: Mapping[str, Any]) -> str | None:
        """How many observations a run has in one cell, where that is less than the quantile takes."""
        metric, q = entry["metrics"].get(self.metric), QUANTILES.get(self._statistic(entry))
        if metric is None or q is None or self.of(entry) is not None:
            return None
        n, takes = (metric["with_failures"] or metric)["n"], math.ceil(MIN_BEYOND / (1 - q) - 1e-9)
        return f"{n} observation{'' if n == 1 else 's'}, {self._statistic(entry)} takes {takes}"


def measure(name: str) -> Measure:
    """Raises: MeasureError."""
    if name in RATES:
        return Measure(RATES[name], None, name)
    stem, _, statistic = name.rpartition("_")
    if stem in RATES and statistic == "mean":
        return Measure(RATES[stem], statistic, name)
    if statistic in STATISTICS and stem in TIMES:
        return Measure(TIMES[stem], statistic, name)
    raise MeasureError(
        f"there is no measure {name!r}: it is one of {', '.join(TIMES)} with {', '.join(STATISTICS)} behind it, such "
        f"as ttft_p50, or one of {', '.join(RATES)}, alone or with mean"
    )
