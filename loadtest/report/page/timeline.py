"""Requests as bars, a lane a user: waiting, prefill and decode, a tick a token, so stalls and batches can be seen.

A page can't show every request: of each cell a window around its longest gap between two tokens is drawn, and of that
at most `LANES` users and `REQUESTS` requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadtest import stats
from loadtest.condensed import Condensed
from loadtest.plan import Cell
from loadtest.report.charts import PALETTE
from loadtest.report.numbers import ABSENT, quantity
from loadtest.report.page.course import Course
from loadtest.report.page.drawing import DECODE, GRID, INK, PAGE, STALL, canvas, svg
from loadtest.report.page.figure import Figure
from loadtest.sample import Sample

LANES = 24
REQUESTS = 72
LANE, ABOVE, BELOW = 0.24, 0.08, 0.85  # inches: of one, and beside all
TICKS = 250  # of a lane
FEW = 200  # tokens: of longer requests the neighbours are cut
STALL_FROM = 4.0  # a gap of so many of the usual ones, the median or the mean, is a stall
QUEUE, PREFILL, WAIT = PALETTE[1], PALETTE[0], GRID
NAMES = {QUEUE: "queue", PREFILL: "prefill", WAIT: "until the first token", DECODE: "decode"}


@dataclass(frozen=True, slots=True)
class Window:
    """What is drawn of a cell: numbers of samples, their lanes in order, and the span in ns on the course's clock."""

    numbers: tuple[int, ...]
    lanes: tuple[tuple[int, int], ...]  # (process, user)
    begin_ns: int
    end_ns: int
    of: int  # requests of the cell
    longest_ns: int | None


def windows(condensed: Condensed, course: Course) -> dict[Cell, Window]:
    """One of each cell, by the cell without its wave."""
    members: dict[Cell, list[tuple[int, Sample]]] = {}
    for number, sample in enumerate(condensed.samples):
        if sample.started_ns is not None:
            members.setdefault(sample.cell.in_wave(None), []).append((number, sample))
    return {cell: _window(condensed, course, cell, of) for cell, of in members.items()}


def _window(condensed: Condensed, course: Course, cell: Cell, members: Sequence[tuple[int, Sample]]) -> Window:
    """Around the longest gap, or around the middle request where no gap was."""
    streams = condensed.streams.get(cell)
    number = streams.longest_in if streams and streams.longest_in is not None else None
    focus = condensed.samples[members[len(members) // 2][0] if number is None else number]
    begin, end = _span(course, focus)
    users = sorted({(sample.process, sample.user) for _, sample in members})
    at = users.index((focus.process, focus.user))
    first = max(0, min(at - LANES // 2, len(users) - LANES))
    lanes = users[first : first + LANES]
    margin = int((end - begin) * (3 if focus.got.new_tokens < 2 else 1 if focus.got.new_tokens <= FEW else 0.25)) + 1
    begin, end = begin - margin, end + margin
    shown = [
        (abs(_span(course, sample)[0] - _span(course, focus)[0]), number)
        for number, sample in members
        if (sample.process, sample.user) in lanes and _overlaps(_span(course, sample), begin, end)
    ]
    kept = sorted(number for _, number in sorted(shown)[:REQUESTS])
    spans = [_span(course, condensed.samples[number]) for number in kept]
    return Window(
        tuple(kept),
        tuple(lanes),
        max(begin, min(span[0] for span in spans)),
        min(end, max(span[1] for span in spans)),
        len(members),
        streams.longest_ns if streams and number is not None else None,
    )


def _span(course: Course, sample: Sample) -> tuple[int, int]:
    assert sample.started_ns is not None
    return course.at(sample, sample.started_ns), course.at(sample, sample.ended_ns)


def _overlaps(span: tuple[int, int], begin: int, end: int) -> bool:
    return span[0] < end and span[1] > begin


def figure(drawn: Window, samples: Sequence[Sample], course: Course, label: str, name: str, folded: bool) -> Figure:
    """samples: whole, those of the window."""
    gaps = [gap for sample in samples for gap in stats.gaps_ns(sample)]
    stall_ns = STALL_FROM * max(median(gaps), sum(gaps) / len(gaps)) if gaps else float("inf")
    ticks_in = sum(drawn.begin_ns <= course.at(s, event[0]) <= drawn.end_ns for s in samples for event in s.events)
    every = -(-ticks_in // (TICKS * len(drawn.lanes))) or 1
    context, figure_of = canvas()
    titles: dict[str, str] = {}
    colours: set[str] = set()
    ticks: tuple[list[float], list[float]] = ([], [])
    stalls: tuple[list[float], list[float]] = ([], [])
    ends: tuple[list[float], list[float]] = ([], [])
    with context():
        height = ABOVE + LANE * max(len(drawn.lanes), 2) + BELOW
        figure = figure_of(figsize=(8.6, height))  # laid out by hand: a constrained layout takes twice as long
        axes = figure.add_axes((0.09, BELOW / height, 0.9, 1 - (ABOVE + BELOW) / height))

        def at_s(sample: Sample, instant_ns: int) -> float:
            return (course.at(sample, instant_ns) - drawn.begin_ns) / 1e9

        for sample in samples:
            lane = drawn.lanes.index((sample.process, sample.user))
            for colour, begin_ns, end_ns in _parts(sample):
                gid = f"{name}-{len(titles)}"
                begin, width = at_s(sample, begin_ns), (end_ns - begin_ns) / 1e9
                axes.barh(lane, width, 0.66, begin, color=colour, linewidth=0)
                axes.patches[-1].set_gid(gid)
                titles[gid] = _said(sample, NAMES[colour], (end_ns - begin_ns) / 1e9)
                colours.add(colour)
            for event in sample.events[::every]:
                if not drawn.begin_ns <= course.at(sample, event[0]) <= drawn.end_ns:
                    continue
                _line(ticks, at_s(sample, event[0]), lane, 0.33)
            for (before, _, _), (after, _, _) in zip(sample.events, sample.events[1:], strict=False):
                if after - before > stall_ns:
                    stalls[0].extend((at_s(sample, before), at_s(sample, after), float("nan")))
                    stalls[1].extend((lane, lane, float("nan")))
            if not sample.complete:
                ends[0].append(at_s(sample, sample.ended_ns))
                ends[1].append(lane)
        axes.plot(*ticks, color=INK, linewidth=0.5)
        axes.plot(*stalls, color=PAGE, linewidth=12, solid_capstyle="butt")  # nothing came
        axes.plot(*stalls, color=STALL, linewidth=2, solid_capstyle="butt")
        axes.plot(*ends, "x", color=STALL, markersize=7, clip_on=False)
        axes.set_yticks(range(len(drawn.lanes)), [_who(lane, drawn) for lane in drawn.lanes], fontsize=8)
        axes.set_ylim(len(drawn.lanes) - 0.4, -0.6)
        axes.set_xlim(0, (drawn.end_ns - drawn.begin_ns) / 1e9)
        axes.set_xlabel("seconds")
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        _legend(figure, colours, bool(stalls[0]), bool(ends[0]))
        drawing = svg(figure, f"{len(samples)} requests of {label} as bars over time, a lane a user", name, titles)
    return Figure(label, drawing, _caption(drawn, samples, every, stall_ns), HEAD, tuple(_rows(drawn, samples, course)),
                  wide=True, folded=folded)  # fmt: skip


def _who(lane: tuple[int, int], drawn: Window) -> str:
    """The user, and of which process, where there are several."""
    several = len({process for process, _ in drawn.lanes}) > 1
    return f"{lane[0]} · user {lane[1]}" if several else f"user {lane[1]}"


def _line(into: tuple[list[float], list[float]], at: float, lane: float, half: float) -> None:
    into[0].extend((at, at, float("nan")))
    into[1].extend((lane - half, lane + half, float("nan")))


def _parts(sample: Sample) -> Iterator[tuple[str, int, int]]:
    """(colour, begin, end) in ns. What the server tells are lengths: they are drawn from the start on."""
    begin = sample.started_ns
    assert begin is not None
    first = sample.events[0][0] if sample.events else sample.ended_ns
    for colour, told in ((QUEUE, "queue_s"), (PREFILL, "prefill_s")):
        said = (sample.server or {}).get(told)
        if isinstance(said, int | float) and 0 < said < (first - begin) / 1e9:
            yield colour, begin, begin + int(said * 1e9)
            begin += int(said * 1e9)
    yield WAIT, begin, first
    if sample.events:
        yield DECODE, first, sample.events[-1][0]


def _said(sample: Sample, part: str, took_s: float) -> str:
    text = f"user {sample.user}, {part}: {quantity(took_s, 's', 3)}; {sample.got.new_tokens} tokens"
    ttft = stats.ttft_s(sample)
    text += f", TTFT {quantity(ttft, 's')}" if ttft is not None else ""
    return text + ("" if sample.complete else f"; {sample.verdict}")


def _legend(figure: Any, colours: set[str], stalled: bool, failed: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=text) for colour, text in NAMES.items() if colour in colours]
    if stalled:
        handles.append(Line2D([], [], color=STALL, linewidth=2, label="stall"))
    if failed:
        handles.append(Line2D([], [], color=STALL, marker="x", linestyle="none", label="not complete"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)


def _caption(drawn: Window, samples: Sequence[Sample], every: int, stall_ns: float) -> str:
    where = "around the middle of the cell"
    if drawn.longest_ns is not None:
        where = f"around the longest gap between two tokens, {quantity(drawn.longest_ns / 1e9, 's', 3)}"
    text = f"{len(samples)} of {drawn.of} requests, {where}."
    if any(sample.events for sample in samples):
        text += " A tick is a token event." if every == 1 else f" A tick is every {every}. token event."
    if any(len(sample.events) > 1 for sample in samples):
        text += f" A stall is a gap above {STALL_FROM:g} times the usual one, {quantity(stall_ns / 1e9, 's', 3)}."
    if any(colour in (QUEUE, PREFILL) for sample in samples for colour, _, _ in _parts(sample)):
        text += " Queue and prefill are as long as the server tells; where in the wait they lay is not known."
    return text


HEAD = ("user", "sent at", "queue", "prefill", "TTFT", "longest gap", "latency", "tokens", "verdict")


def _rows(drawn: Window, samples: Sequence[Sample], course: Course) -> Iterator[tuple[str, ...]]:
    def told(sample: Sample, name: str) -> str:
        said = (sample.server or {}).get(name)
        return quantity(said, "s", 3) if isinstance(said, int | float) else ABSENT

    for sample in samples:
        at_s = (_span(course, sample)[0] - drawn.begin_ns) / 1e9
        longest = max(stats.gaps_ns(sample), default=None)
        yield (
            _who((sample.process, sample.user), drawn).removeprefix("user "),
            f"{at_s:.3f} s",
            told(sample, "queue_s"),
            told(sample, "prefill_s"),
            quantity(stats.ttft_s(sample), "s"),
            quantity(None if longest is None else longest / 1e9, "s", 3),
            quantity(stats.latency_s(sample), "s"),
            str(sample.got.new_tokens),
            str(sample.verdict),
        )
