"""The page's three charts, as PNG and SVG: the value on every bar, a whisker for the interval of the median.

The same summary gives the same bytes, with one version of matplotlib. Text in the SVG stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.report.grid import Panel, Point, Series, panels, series_of
from loadtest.report.numbers import centre, plain, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Told apart with any colour vision. Source: Okabe & Ito, Color Universal Design, 2008 (without yellow and black).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two $ is no formula
    "svg.hashsalt": "tokenclock",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
GROUP_WIDTH = 0.8  # of the distance between two groups
PAGE = "page"  # the three charts in one picture
_ABOVE: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
CLEAR = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}  # no grid line runs through a number


class ChartsError(RuntimeError):
    """matplotlib is not installed; the message names the remedy."""


def draw(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write each chart and the combined one, PNG and SVG; returns the PNGs, the combined one last; [] without a plan.

    Raises: ChartsError.
    """
    found = panels(summary)
    if not found:
        return []
    rc_context, figure_of = matplotlib()
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    everyone = series_of(summary)
    colours = {series: PALETTE[index % len(PALETTE)] for index, series in enumerate(everyone)}
    written = []
    with rc_context(STYLE):
        for panel in found:
            figure = figure_of(figsize=(6.4, 4.4), layout="constrained")
            _bars(figure.add_subplot(), panel, colours)
            written.append(_save(figure, folder / panel.name, [panel], colours))
        figure = figure_of(figsize=(5.7 * len(found), 4.6), layout=ConstrainedLayoutEngine(wspace=0.06))
        for index, panel in enumerate(found, 1):
            _bars(figure.add_subplot(1, len(found), index), panel, colours)
        written.append(_save(figure, folder / PAGE, found, colours))
    return written


def matplotlib() -> tuple[Callable[..., AbstractContextManager[None]], type[Figure]]:
    """What draws: a context of settings, and figures. Raises: ChartsError."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChartsError("charts need matplotlib: pip install 'tokenclock[loadtest]'") from error
    return rc_context, Figure


def _bars(axes: Axes, panel: Panel, colours: Mapping[Series, str]) -> None:
    factor, unit = scale(*_largest(panel))
    width = GROUP_WIDTH / len(panel.series)
    for column, series in enumerate(panel.series):
        shift = (column - (len(panel.series) - 1) / 2) * width
        for row, label in enumerate(panel.rows):
            point = panel.points.get((label, series))
            if point is None:
                axes.annotate("not\nmeasured", (row + shift, 0), (0, 3), **_ABOVE, fontsize=7, color="#666666")
                continue
            _bar(axes, row + shift, width, point, factor, colours[series])
    axes.set_title(panel.title, fontsize=11, loc="left", pad=12)
    axes.set_xticks(range(len(panel.rows)), panel.rows)
    axes.set_xlim(-0.5, len(panel.rows) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(f"{panel.y_label} ({unit})")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _bar(axes: Axes, x: float, width: float, point: Point, factor: float, colour: str) -> None:
    """One bar with its value above; the value of an off-plan cell carries an asterisk."""
    value = (centre(point.metric)[0] or 0.0) * factor
    top = value
    axes.bar(x, value, width * 0.94, color=colour)
    if interval := _whisker(point):
        low, high = (bound * factor for bound in interval)
        axes.vlines(x, low, high, color="#333333", linewidth=1)
        axes.hlines((low, high), x - width * 0.08, x + width * 0.08, color="#333333", linewidth=1)
        top = max(value, high)
    axes.annotate(plain(value) + "*" * point.off_plan, (x, top), (0, 2), **_ABOVE, fontsize=9, bbox=CLEAR)


def _whisker(point: Point) -> list[float] | None:
    """The interval of the median, for a bar that is a median."""
    interval: list[float] | None = point.metric["ci95_of_median"]
    return interval if centre(point.metric)[1] == "median" else None


def _largest(panel: Panel) -> tuple[str, float]:
    metrics = [point.metric for point in panel.points.values()]
    return metrics[0]["unit"], max(centre(metric)[0] or 0.0 for metric in metrics)


def _caption(shown: Sequence[Panel]) -> str:
    """What a bar is: said in the picture, because pictures travel without their report."""
    points = [point for panel in shown for point in panel.points.values()]
    counts = [point.metric["n"] for point in points]
    n = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"
    kinds = sorted({centre(point.metric)[1] for point in points})
    text = f"bars: {' or '.join(kinds)} of {n} wave{'s' if n != '1' else ''}"
    if any(map(_whisker, points)):
        text += "; whiskers: 95 % CI of the median"
    return text + ("; * off plan" if any(point.off_plan for point in points) else "")


def _save(figure: Figure, path: Path, shown: Sequence[Panel], colours: Mapping[Series, str]) -> Path:
    """Legend and caption below, then both files."""
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colour, label=series.name)
        for series, colour in colours.items()
        if any(series in panel.series for panel in shown)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(handles) <= 2 * len(shown) else 2,
        frameon=False,
        title=_caption(shown),
        title_fontsize=8,
    )
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """PNG and SVG, dates and versions left out of them; returns the PNG."""
    png = path.with_suffix(".png")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    return png
