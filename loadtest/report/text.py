"""What a terminal shows after a run: the page's three tables, one line per cell, verdicts and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.report.clock import calibrated_said
from loadtest.report.grid import Panel, panels
from loadtest.report.numbers import ABSENT, quantiles, quantity, rate, with_interval

CELL_HEAD = (
    "cell",
    "complete",
    "failed",
    "TTFT p50/p90/p99",
    "ITL p50/p90/p99",
    "latency p50/p90/p99",
    "output tokens/s",
)


OUTPUT_RATE = "throughput_output_tokens_per_s"


def panel_rows(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one of the page's tables: tokens down, configurations across; * marks an off-plan cell."""
    rows = []
    for label in panel.rows:
        points = [panel.points.get((label, series)) for series in panel.series]
        rows.append([label] + [ABSENT if p is None else with_interval(p.metric) + "*" * p.off_plan for p in points])
    return [panel.x_label, *(series.name for series in panel.series)], rows


def output_rate(entry: Mapping[str, Any]) -> str:
    metric = entry["metrics"].get(OUTPUT_RATE)
    if metric is None or not metric["n"]:
        return ABSENT
    if entry["waves"] is not None:
        return with_interval(metric)
    requests = entry["metrics"]["requests_per_s"]
    return f"{rate(metric)}, {quantity(requests['mean'], requests['unit'], 3)}"


def tables(summary: Mapping[str, Any]) -> str:
    """The text printed on the terminal, without a newline at its end."""
    blocks = [f"{panel.title}\n{aligned(*panel_rows(panel))}" for panel in panels(summary)]
    rows = [
        [
            entry["label"],
            str(entry["samples"]["complete"]),
            str(entry["samples"]["failed"]),
            *(quantiles(entry["metrics"].get(name)) for name in ("ttft_s", "itl_s", "latency_s")),
            output_rate(entry),
        ]
        for entry in summary["cells"]
    ]
    if rows:
        blocks.append("Requests of the steady phase\n" + aligned(CELL_HEAD, rows))
    verdicts = summary["verdicts"]
    lines = [f"verdicts (all phases): {', '.join(f'{name} {n}' for name, n in verdicts['counts'].items()) or 'none'}"]
    lines += [f"  {verdict}: {said}" for verdict, details in verdicts["details"].items() for said in details]
    lines += [f"client {summary['client']['verdict']}: {reason}" for reason in summary["client"]["reasons"]]
    lines.append(f"client's error, {calibrated_said(summary['calibration'])}")
    lines += [f"{entry['label']}: off plan: {said}" for entry in summary["cells"] for said in entry["off_plan"]]
    lines += [f"{entry['label']}: the stream was buffered" for entry in summary["cells"] if entry["stream"]["buffered"]]
    lines += summary["notes"]
    return "\n\n".join([*blocks, "\n".join(lines)])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *rows]
    )
