"""Counters, gauges and histograms that Prometheus scrapes under exactly the names they are given.

prometheus_client's own classes end every counter in `_total`, which TGI's have not, add a gauge of its birth to each,
and take one value at a time, where a step has the same one for every slot. So values are kept here, by collectors of a
prometheus_client registry, and written here in the text format 0.0.4. Any thread may write and read.
Source: prometheus.io, "Exposition formats"; prometheus/client_python, custom collectors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import ClassVar

from prometheus_client.core import Metric, Sample
from prometheus_client.registry import Collector, CollectorRegistry

Labels = tuple[str, ...]  # the values, in the order of the names


class Series(Collector):
    """One name: its type, what it means (the HELP line), and its labels."""

    kind: ClassVar[str]

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = ()) -> None:
        self.name, self.meaning, self.labels = name, meaning, tuple(labels)
        self._lock = Lock()


class _Numbers(Series):
    """A number for every combination of label values; one without labels is there from the start, with 0."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = (), known: Iterable[Labels] = ()) -> None:
        """`known` combinations are there from the start, so that the first event is an increase."""
        super().__init__(name, meaning, labels)
        self._values: dict[Labels, float] = dict.fromkeys(known if labels else [()], 0.0)

    def collect(self) -> Iterator[Metric]:
        family = Metric(self.name, self.meaning, self.kind)
        with self._lock:
            values = list(self._values.items())
        family.samples = [Sample(self.name, dict(zip(self.labels, each, strict=True)), value) for each, value in values]
        yield family


class Counter(_Numbers):
    kind = "counter"

    def inc(self, amount: float = 1, *labels: str) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount


class Gauge(_Numbers):
    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        with self._lock:
            self._values[labels] = value


class Histogram(Series):
    """How many values were at most each of `bounds` (rising; +Inf is added), how many there were, and their sum."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        meaning: str,
        bounds: Sequence[float],
        labels: Sequence[str] = (),
        known: Iterable[Labels] = (),
    ) -> None:
        super().__init__(name, meaning, labels)
        self._known = list(known) if labels else [()]
        self.set_bounds(bounds)

    def set_bounds(self, bounds: Sequence[float]) -> None:
        """Begin again with these bounds, before the first value."""
        with self._lock:
            self.bounds = tuple(bounds)
            self._written = [*(repr(float(bound)).removesuffix(".0") for bound in bounds), "+Inf"]
            self._cells = {labels: [0] * len(self._written) for labels in self._known}
            self._sums = dict.fromkeys(self._known, 0.0)

    def observe(self, value: float, *labels: str, times: int = 1) -> None:
        cell = bisect_left(self.bounds, value)
        with self._lock:
            cells = self._cells.get(labels)
            if cells is None:
                cells = self._cells[labels] = [0] * len(self._written)
                self._sums[labels] = 0.0
            cells[cell] += times
            self._sums[labels] += value * times

    def collect(self) -> Iterator[Metric]:
        family = Metric(self.name, self.meaning, self.kind)
        bucket, count, total = (f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        with self._lock:
            values = [(each, list(cells), self._sums[each]) for each, cells in self._cells.items()]
        for each, cells, sum_of_values in values:
            labels = dict(zip(self.labels, each, strict=True))
            reached = list(accumulate(cells))
            family.samples += [
                Sample(bucket, {**labels, "le": bound}, at_most)
                for bound, at_most in zip(self._written, reached, strict=True)
            ]
            family.samples += [Sample(total, labels, sum_of_values), Sample(count, labels, reached[-1])]
        yield family


def text(registry: CollectorRegistry) -> str:
    """Everything in a registry, in the text format 0.0.4. A label without a value is left out: it means the same."""
    lines: list[str] = []
    for family in registry.collect():
        if not family.samples:
            continue
        name = family.samples[0].name if family.type == "counter" else family.name
        lines += [f"# HELP {name} {_escaped(family.documentation)}\n", f"# TYPE {name} {family.type}\n"]
        for sample in family.samples:
            labels = ",".join([f'{key}="{_quoted(value)}"' for key, value in sample.labels.items() if value])
            lines.append(f"{sample.name}{f'{{{labels}}}' if labels else ''} {float(sample.value)!r}\n")
    return "".join(lines)


def _escaped(documentation: str) -> str:
    return documentation.replace("\\", r"\\").replace("\n", r"\n")


@lru_cache(maxsize=1024)  # a scrape has a thousand lines, and few values
def _quoted(value: str) -> str:
    return _escaped(value).replace('"', r"\"")
