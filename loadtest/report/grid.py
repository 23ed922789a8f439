"""The published page's three figures, picked out of a summary: what is drawn and what is tabled is the same thing.

Encoding time and latency are those of a wave; throughput counts input and output tokens. Titles are the page's where
the grid is the page's (plan `published`).

Source: huggingface/optimum-neuron@27091837, benchmark/text-generation/gen_barcharts.py (titles, grid, conventions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.plan import PLANS


@dataclass(frozen=True, slots=True)
class Series:
    """One configuration: one colour, one column."""

    config: str | None
    slots: int | None
    concurrency: int

    @property
    def name(self) -> str:
        """`T · 4 slots, concurrency 4`."""
        slots = "slots unknown" if self.slots is None else f"{self.slots} slot{'s' if self.slots != 1 else ''}"
        return (f"{self.config} · " if self.config else "") + f"{slots}, concurrency {self.concurrency}"


@dataclass(frozen=True, slots=True)
class Point:
    """One bar: METRIC of summary.json, and whether the cell was measured as planned."""

    metric: Mapping[str, Any]
    off_plan: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart and its table: `rows` along the x axis, `series` side by side."""

    name: str
    title: str
    metric: str
    x_label: str
    y_label: str  # without the unit
    rows: tuple[str, ...]
    series: tuple[Series, ...]
    points: Mapping[tuple[str, Series], Point]


def series_of(summary: Mapping[str, Any]) -> tuple[Series, ...]:
    """Every configuration of the run, each once, in the order of the summary."""
    return tuple(dict.fromkeys(_series(entry) for entry in summary["cells"]))


def panels(summary: Mapping[str, Any]) -> list[Panel]:
    """Encoding time, latency and throughput, as far as the run measured them; none without a plan."""
    if summary["plan"] is None:
        return []
    plan = PLANS[summary["plan"]]
    encoding = {pair: str(pair[0]) for pair in plan.encoding}
    if plan.name == "published":
        of, x_label = "per generated tokens for 256 input tokens", "generated tokens"
        generation = {pair: str(pair[1]) for pair in plan.generation}
    else:
        of, x_label = f"to a total of {plan.max_total_tokens} tokens", "input → generated tokens"
        generation = {pair: f"{pair[0]}→{pair[1]}" for pair in plan.generation}

    def panel(name: str, title: str, x_label: str, y_label: str, metric: str, labels: Mapping[Any, str]) -> Panel:
        points = {}
        for entry in summary["cells"]:
            pair = (entry["cell"]["input_tokens"], entry["cell"]["new_tokens"])
            if pair in labels and entry["metrics"].get(metric, {}).get("n"):
                points[labels[pair], _series(entry)] = Point(entry["metrics"][metric], bool(entry["off_plan"]))
        series = tuple(one for one in series_of(summary) if any(of_point == one for _, of_point in points))
        return Panel(name, title, metric, x_label, y_label, tuple(labels.values()), series, points)

    total = "throughput_total_tokens_per_s"
    found = (
        panel(
            "encoding_time",
            "Encoding time per input token",
            "input tokens",
            "encoding time",
            "encoding_time_s",
            encoding,
        ),
        panel("latency", f"End-to-end latency {of}", x_label, "latency", "batch_latency_s", generation),
        panel("throughput", f"Throughput {of}", x_label, "input + output throughput", total, generation),
    )
    return [panel for panel in found if panel.points]


def _series(entry: Mapping[str, Any]) -> Series:
    cell = entry["cell"]
    return Series(cell["config"], cell["slots"], cell["concurrency"])
