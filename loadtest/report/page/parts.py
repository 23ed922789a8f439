"""The figures of one run that only the page has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from loadtest.plan import Cell
from loadtest.report.page import course, ecdf, timeline
from loadtest.report.page.figure import Figure
from loadtest.report.reading import SAMPLES, Reading
from loadtest.sample import read_samples

OPEN = 2  # timelines that are open from the start: the last, longest cells of each configuration
MOST = 24  # cells with a timeline


def spreads(reading: Reading, group: str | None = None) -> list[ecdf.Spread]:
    return ecdf.spreads(reading.condensed, reading.labels, group)


def over_time(reading: Reading, name: str, run: str = "") -> list[Figure]:
    """name: of the drawing; run: what it is called, where there are several."""
    found = course.figure(reading.course, reading.condensed.samples, reading.labels, name)
    return [_titled(run, found)] if found else []


def _titled(run: str, of: Figure) -> Figure:
    return replace(of, title=f"{run}: {of.title}") if run else of


def one_by_one(reading: Reading, name: str, run: str = "") -> Iterator[Figure]:
    """A timeline a cell. Of the file only the lines that are drawn are read again."""
    windows = timeline.windows(reading.condensed, reading.course)
    cells = [cell for cell in reading.labels if cell in windows][:MOST]
    wanted = {number for cell in cells for number in windows[cell].numbers}
    whole = zip(sorted(wanted), read_samples(reading.folder / SAMPLES, only=wanted), strict=True)
    samples = dict(whole)
    shown = _open(cells)
    for at, cell in enumerate(cells):
        window = windows[cell]
        drawn = [samples[number] for number in window.numbers]
        folded = cell not in shown
        label = reading.labels[cell]
        yield _titled(run, timeline.figure(window, drawn, reading.course, label, f"{name}-lanes-{at}", folded))


def _open(cells: Sequence[Cell]) -> list[Cell]:
    """Of each configuration the cell with most tokens."""
    of: dict[str | None, Cell] = {}
    for cell in cells:
        best = of.get(cell.config)
        if best is None or (cell.new_tokens or 0) >= (best.new_tokens or 0):
            of[cell.config] = cell
    return list(of.values())[:OPEN]
