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


def over_time(reading: Reading, name: str) -> list[Figure]:
    """name: of the drawing, which no other on its page has."""
    found = course.figure(reading.course, reading.condensed.samples, reading.labels, name)
    return [found] if found else []


def of_run(run: str, figures: Sequence[Figure]) -> list[Figure]:
    """The same figures under their run's name."""
    return [replace(figure, title=f"{run}: {figure.title}") for figure in figures]


def one_by_one(reading: Reading, name: str) -> Iterator[Figure]:
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
        yield timeline.figure(window, drawn, reading.course, label, f"{name}-lanes-{at}", folded)


def _open(cells: Sequence[Cell]) -> list[Cell]:
    """Of each configuration the cell with most tokens."""
    of: dict[str | None, Cell] = {}
    for cell in cells:
        best = of.get(cell.config)
        if best is None or (cell.new_tokens or 0) >= (best.new_tokens or 0):
            of[cell.config] = cell
    return list(of.values())[:OPEN]
