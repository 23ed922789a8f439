"""Every difference as a point with its interval, by cell: left of the line less than B, right of it more.

The same comparison gives the same bytes, with one version of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.compare.differences import BETTER, NOISY, SAME, WORSE, Difference
from loadtest.compare.published import Beside
from loadtest.compare.text import between, percent
from loadtest.report.charts import STYLE, ChartsError
from loadtest.report.numbers import plain

#: Told apart with any colour vision, and by their markers. Source: Okabe & Ito, Color Universal Design, 2008.
LOOKS: Mapping[str, tuple[str, str]] = {
    BETTER: ("#009E73", "^"),
    WORSE: ("#D55E00", "v"),
    SAME: ("#0072B2", "o"),
    NOISY: ("#888888", "D"),
}
FORMATS = (".png", ".svg", ".pdf")
Line = tuple[str, float, tuple[float, float] | None, str, str]  # label, value, interval, words, verdict


def differences(found: Sequence[Difference], margin: float, path: Path) -> None:
    """Raises: ChartsError, OSError."""
    lines: list[Line] = [
        (
            f"{each.cell}  {each.measure.name}",
            100 * each.share,
            None if each.interval is None else (100 * each.interval[0], 100 * each.interval[1]),
            percent(each.share) + ("" if each.interval is None else f"  ({between(each.interval)})"),
            each.verdict,
        )
        for each in found
        if each.share is not None and math.isfinite(each.share)
    ]
    _draw(lines, "A relative to B (%), 95 % interval", 0.0, (-100 * margin, 100 * margin), path)


def ratios(found: Sequence[Beside], path: Path) -> None:
    """Raises: ChartsError, OSError."""
    lines: list[Line] = [
        (
            f"{each.cell}  {each.metric}",
            each.ratio,
            each.ratio_between,
            f"× {plain(each.ratio)}",
            SAME,
        )
        for each in found
    ]
    _draw(lines, "measured / reference, with what interval and rounding leave open", 1.0, None, path)


def _draw(lines: Sequence[Line], title: str, neutral: float, margin: tuple[float, float] | None, path: Path) -> None:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ChartsError("a chart needs matplotlib: pip install 'tokenclock[loadtest]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.28 * max(len(lines), 1)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(neutral, color="#333333", linewidth=1)
        if margin:
            axes.axvspan(*margin, color="#eeeeee", zorder=0)
        for row, (_, value, interval, words, verdict) in enumerate(lines):
            colour, marker = LOOKS[verdict]
            ends = [end for end in interval or () if math.isfinite(end)]
            if interval and len(ends) == 2:
                axes.hlines(row, *ends, color=colour, linewidth=1.5)
            axes.plot(value, row, marker, color=colour, markersize=5)
            axes.annotate(
                words, (max([value, *ends]), row), (6, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(lines)), [label for label, *_ in lines], fontsize=8)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.3)
        axes.set_xlabel(title)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        if margin:
            handles = [
                Line2D([], [], color=colour, marker=marker, label=verdict)
                for verdict, (colour, marker) in LOOKS.items()
                if any(each[-1] == verdict for each in lines)
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        if path.suffix == ".pdf":
            metadata = {"CreationDate": None, "Creator": None}
        figure.savefig(path, dpi=150, metadata=metadata)
