"""How a run went: output tokens per second and requests in flight over time, with its warm-up, ramp and drain marked.

Processes are joined by what each read of its two clocks at its start: exact on one machine while its wall clock isn't
set, and as good as the wall clocks of several agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.report.charts import PALETTE
from loadtest.report.escaping import short
from loadtest.report.numbers import plain
from loadtest.report.page.drawing import BAND, DRAIN, GRID, RAMP, STALL, WARMUP, canvas, svg
from loadtest.report.page.figure import Figure
from loadtest.sample import Sample

MOST_BINS = 1 << 12
DRAWN = 160  # bins of the drawing
TOLD = 20  # rows of its table
FIRST_WIDTH_NS = 10_000_000
EDGES = {"warmup": WARMUP, "ramp": RAMP, "drain": DRAIN}
LABEL_FROM = 0.07  # of the width: a narrower band has no room for its name


class Course:
    """Counts tokens by the instant they arrived, in at most 4096 bins, which are made wider when they don't suffice."""

    def __init__(self, processes: Sequence[Mapping[str, Any]]) -> None:
        """processes: run.json's."""
        self._offsets = {each["process"]: each["start"]["wall_ns"] - each["start"]["mono_ns"] for each in processes}
        self.machines = len({each["host"] for each in processes})
        self._origin: int | None = None
        self._width = FIRST_WIDTH_NS
        self._bins = np.zeros(MOST_BINS, dtype=np.int64)

    def at(self, sample: Sample, instant_ns: int) -> int:
        """The instant on the clock that all processes are put on."""
        offset: int = self._offsets.get(sample.process, 0)
        return instant_ns + offset

    def watch(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            if sample.events:
                self._add(sample)
            yield sample

    def _add(self, sample: Sample) -> None:
        at_ns, tokens, _ = zip(*sample.events, strict=True)
        instants = np.array(at_ns, dtype=np.int64) + self._offsets.get(sample.process, 0)
        first, last = int(instants.min()), int(instants.max())
        if self._origin is None:
            self._origin = first
        if first < self._origin or last >= self._origin + self._width * MOST_BINS:
            self._make_room(first, last)
        places = (instants - self._origin) // self._width
        begin = int(places.min())
        counts = np.bincount(places - begin, weights=tokens).astype(np.int64)
        self._bins[begin : begin + len(counts)] += counts

    def _make_room(self, first_ns: int, last_ns: int) -> None:
        """Bins that reach from before `first_ns`, of a file that isn't in order, to after `last_ns`."""
        assert self._origin is not None
        while (early := max(-(-(self._origin - first_ns) // self._width), 0)) + max(
            self._used(), (last_ns - self._origin) // self._width + 1
        ) > MOST_BINS:
            self._bins = np.concatenate([self._bins.reshape(-1, 2).sum(1), np.zeros(MOST_BINS // 2, dtype=np.int64)])
            self._width *= 2
        self._bins = np.roll(self._bins, early)
        self._origin -= early * self._width

    def _used(self) -> int:
        return int(np.flatnonzero(self._bins).max(initial=-1)) + 1

    def rates(self, bins: int) -> tuple[NDArray[np.float64], float, int]:
        """Tokens per second in at most `bins` bins, a bin's width in seconds, and the begin of the first in ns."""
        assert self._origin is not None
        used = self._used()
        together = -(-used // bins)
        counts = np.pad(self._bins[:used], (0, -used % together)).reshape(-1, together).sum(1)
        width_s = self._width * together / 1e9
        return counts / width_s, width_s, self._origin


def figure(course: Course, samples: Sequence[Sample], labels: Mapping[Any, str], name: str = "course") -> Figure | None:
    """None where no token came. labels: of cells, without their wave."""
    if not any(sample.events for sample in samples):
        return None
    rates, width_s, origin = course.rates(DRAWN)
    began = [course.at(s, s.started_ns if s.started_ns is not None else s.scheduled_ns) for s in samples]
    ended = [course.at(s, s.ended_ns) for s in samples]
    zero = min(origin, *began)
    begin_s = (np.array(sorted(began)) - zero) / 1e9
    end_s = (np.array(sorted(ended)) - zero) / 1e9
    at_s = (origin - zero) / 1e9 + width_s * np.arange(len(rates) + 1)
    whole_s = max(float(end_s[-1]), float(at_s[-1]))
    middle_s = np.linspace(0, whole_s, 2 * DRAWN)
    flight = np.searchsorted(begin_s, middle_s, side="right") - np.searchsorted(end_s, middle_s, side="right")
    bands = _bands(samples, [(b - zero) / 1e9 for b in began], [(e - zero) / 1e9 for e in ended])
    failed = [(e - zero) / 1e9 for sample, e in zip(samples, ended, strict=True) if not sample.complete]
    context, figure_of = canvas()
    titles: dict[str, str] = {}
    with context():
        drawn = figure_of(figsize=(8.6, 4.2), layout="constrained")
        speed, busy = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for axes in (speed, busy):
            for number, (cell, phase, begin, end) in enumerate(bands):
                if (colour := EDGES.get(phase)) or number % 2:
                    axes.axvspan(begin, end, color=colour or BAND, linewidth=0, gid=f"{name}-{len(titles)}")
                    titles[f"{name}-{len(titles)}"] = f"{labels.get(cell, '')} {phase}: {begin:.1f} s to {end:.1f} s"
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        for cell, begin, end in _spans(bands):
            if end - begin > LABEL_FROM * whole_s and len(labels) > 1:
                speed.annotate(
                    short(labels.get(cell, ""), 24), ((begin + end) / 2, 1), (0, 2), xycoords=("data", "axes fraction"),
                    textcoords="offset points", ha="center", va="bottom", fontsize=8,
                )  # fmt: skip
        speed.stairs(rates, at_s, fill=True, color=PALETTE[0], gid=f"{name}-rate")
        speed.set_ylabel("output tokens/s")
        speed.set_ylim(bottom=0)
        busy.plot(middle_s, flight, color=PALETTE[5], linewidth=1.2)
        busy.set_ylabel("in flight")
        busy.set_ylim(bottom=0)
        busy.set_xlabel("seconds since the first request")
        busy.set_xlim(0, whole_s)
        if failed:
            speed.plot(failed, [0] * len(failed), "x", color=STALL, markersize=7, clip_on=False)
        _legend(drawn, {phase for _, phase, _, _ in bands}, bool(failed))
        label = f"Output tokens per second over {whole_s:.0f} s, at most {rates.max():.0f}; requests in flight below"
        drawing = svg(drawn, label, name, titles)
    caption = f"Tokens of all requests by the instant they arrived, in {len(rates)} bins of {plain(width_s)} s."
    if course.machines > 1:
        caption += f" The clocks of {course.machines} machines are joined by their wall clocks."
    rows = tuple(_rows(course, zero, begin_s, end_s))
    return Figure("Throughput over time", drawing, caption, ("from", "output tokens/s", "in flight"), rows, wide=True)


def _bands(
    samples: Sequence[Sample], began: Sequence[float], ended: Sequence[float]
) -> list[tuple[Any, str, float, float]]:
    """(cell, phase, begin, end) in the order of their begin. A ramp lasts until the first that counts begins."""
    spans: dict[tuple[Any, str], tuple[float, float]] = {}
    for sample, begin, end in zip(samples, began, ended, strict=True):
        key = (sample.cell.in_wave(None), sample.phase)
        before = spans.get(key, (begin, end))
        spans[key] = (min(before[0], begin), max(before[1], end))
    for (cell, phase), (begin, end) in spans.items():
        steady = spans.get((cell, "steady"))
        if steady and phase in ("warmup", "ramp"):
            spans[cell, phase] = (begin, max(begin, min(end, steady[0])))
        if steady and phase == "drain":
            spans[cell, phase] = (min(max(begin, steady[0]), steady[1]), end)
    return sorted(((*key, *span) for key, span in spans.items()), key=lambda band: band[2])


def _spans(bands: Iterable[tuple[Any, str, float, float]]) -> Iterator[tuple[Any, float, float]]:
    cells: dict[Any, list[float]] = defaultdict(list)
    for cell, _, begin, end in bands:
        cells[cell] += (begin, end)
    for cell, edges in cells.items():
        yield cell, min(edges), max(edges)


def _legend(drawn: Any, phases: set[str], failed: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=phase) for phase, colour in EDGES.items() if phase in phases]
    if failed:
        handles.append(
            Line2D([], [], color=STALL, marker="x", linestyle="none", label="a request that wasn't complete")
        )
    if handles:
        drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def _rows(course: Course, zero: int, begin_s: Any, end_s: Any) -> Iterator[tuple[str, ...]]:
    rates, width_s, origin = course.rates(TOLD)
    for number, rate in enumerate(rates):
        at_s = (origin - zero) / 1e9 + (number + 0.5) * width_s
        busy = np.searchsorted(begin_s, at_s, side="right") - np.searchsorted(end_s, at_s, side="right")
        yield f"{at_s - width_s / 2:.1f} s", plain(float(rate)), str(busy)
