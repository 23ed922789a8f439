"""How TTFT and ITL are spread: the share of requests (gaps) at or below each value, a line a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest import stats
from loadtest.condensed import Condensed
from loadtest.plan import Cell
from loadtest.report.charts import PALETTE
from loadtest.report.escaping import short
from loadtest.report.numbers import ABSENT, plain, quantity, scale
from loadtest.report.page.drawing import GRID, canvas, svg
from loadtest.report.page.figure import Figure

POINTS, TAIL = 400, 60  # of a line, evenly, and towards its end; more can't be told apart
LINES = len(PALETTE)  # of a drawing
DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
DECADES = 1e4  # drawn on a logarithmic axis; what is smaller stands at its begin
LOGARITHMIC = 20.0  # largest / smallest drawn value from which the axis is
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
TITLES = {"ttft_s": ("Time to first token", "TTFT", "requests"), "itl_s": ("Gaps between tokens", "ITL", "gaps")}


@dataclass(frozen=True, slots=True)
class Spread:
    """One line: the values at `shares`, and the quantiles of the table."""

    metric: str
    label: str
    group: str  # drawn together
    n: int
    shares: NDArray[np.float64]
    values: NDArray[np.float64]
    quantiles: tuple[float | None, ...]


def spreads(condensed: Condensed, cells: Mapping[Cell, str], group: str | None = None) -> list[Spread]:
    """Of complete requests of the steady phase. cells: without their wave, and what each is called, in order; group:
    what their run is called, where there are several.
    """
    found = []
    ttfts: dict[Cell, list[float]] = {}
    for sample in condensed.samples:
        if sample.phase == "steady" and sample.complete and (ttft := stats.ttft_s(sample)) is not None:
            ttfts.setdefault(sample.cell.in_wave(None), []).append(ttft)
    for cell, label in cells.items():
        together = "-".join(name for name in (group, cell.config) if name)
        if values := ttfts.get(cell):
            found.append(_spread("ttft_s", label, together, len(values), partial(np.quantile, values)))
        if (streams := condensed.streams.get(cell)) and streams.gaps.n:
            found.append(_spread("itl_s", label, together, streams.gaps.n, streams.gaps.quantiles_s))
    return found


def _spread(metric: str, label: str, group: str, n: int, at: Callable[[list[float]], NDArray[np.float64]]) -> Spread:
    """at: the quantiles of a pool."""
    grid = np.linspace(0, 1, min(n, POINTS)) if n > 1 else np.ones(1)
    if n > POINTS:
        grid = np.sort(np.concatenate([grid, 1 - np.geomspace(1 / n, 1 / POINTS, TAIL, endpoint=False)]))
    values = at([*grid.tolist(), *QUANTILES])
    told = zip(QUANTILES, values[len(grid) :].tolist(), strict=True)
    printable = tuple(value if stats.printable(n, q) else None for q, value in told)
    return Spread(metric, label, group, n, grid, values[: len(grid)], printable)


def figures(found: Sequence[Spread]) -> Iterator[Figure]:
    """TTFT and ITL of each group, beside each other."""
    ordered = sorted(found, key=lambda spread: (spread.group, spread.metric != "ttft_s"))  # stable within
    together = groupby(ordered, key=lambda spread: (spread.group, spread.metric))
    for number, ((group, metric), members) in enumerate(together):
        lines = list(members)
        for first in range(0, len(lines), LINES):
            yield _figure(metric, group, lines[first : first + LINES], f"ecdf-{number}-{first}")


def _figure(metric: str, group: str, lines: Sequence[Spread], name: str) -> Figure:
    title, word, things = TITLES[metric]
    most = max(float(line.values[-1]) for line in lines)
    least = min((float(v) for line in lines for v in line.values if v > most / DECADES), default=most)
    factor, unit = scale("s", most)
    logarithmic = most > LOGARITHMIC * least
    context, figure_of = canvas()
    with context():
        figure = figure_of(figsize=(4.8, 3.9), layout="constrained")
        axes = figure.add_subplot()
        titles: dict[str, str] = {}
        for line, colour, dash in zip(lines, PALETTE, DASHES, strict=False):
            style = {"color": colour, "linestyle": dash, "linewidth": 1.8}
            (drawn,) = axes.plot(
                (np.maximum(line.values, least) if logarithmic else line.values) * factor,
                line.shares,
                label=short(line.label),
                **style,
            )
            if len(line.values) == 1:
                drawn.set_marker("o")
            gid = f"{name}-{len(titles)}"
            drawn.set_gid(gid)
            titles[gid] = f"{line.label}: {line.n:,} {things}, median {quantity(line.quantiles[2], 's')}"
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(0, 1.02)
        axes.set_yticks((0, 0.25, 0.5, 0.75, 0.9, 1), ("0", "25 %", "50 %", "75 %", "90 %", "100 %"))
        axes.set_xlabel(f"{word} ({unit}{', logarithmic' if logarithmic else ''})")
        axes.set_ylabel(f"share of {things} at or below")
        axes.grid(color=GRID, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        label = f"{title}, cumulative: {'; '.join(titles.values())}"
        drawing = svg(figure, label, name, titles)
    decimated = any(line.n > len(line.values) for line in lines)
    caption = f"Share of {things} at or below a value; complete requests of the steady phase."
    if decimated:
        caption += f" Drawn through {POINTS + TAIL} quantiles; the figures are of all."
    head = (f"{word} of", things, *(f"p{100 * q:g}" for q in QUANTILES))
    return Figure(f"{title}{f', {group}' if group else ''}", drawing, caption, head, tuple(_rows(lines)))


def _rows(lines: Sequence[Spread]) -> Iterator[tuple[str, ...]]:
    for line in lines:
        told = [value for value in line.quantiles if value is not None]
        factor, unit = scale("s", max(told, default=0.0))
        texts = (ABSENT if value is None else f"{plain(value * factor, 4)} {unit}" for value in line.quantiles)
        yield (line.label, f"{line.n:,}", *texts)
