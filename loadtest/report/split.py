"""What the time to first token consists of, as a stacked bar a cell and a table: means, since means of parts add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.report.charts import CLEAR, PALETTE, STYLE, matplotlib, save
from loadtest.report.escaping import short
from loadtest.report.numbers import ABSENT, places, quantity, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "split"  # of the picture
#: Colours stay with a part, whatever else is told.
PARTS = {
    "network_s": ("network + client", PALETTE[4]),
    "network_and_queue_s": ("network + client + queue", "#999999"),
    "validation_s": ("validation", PALETTE[3]),
    "queue_s": ("queue", PALETTE[1]),
    "prefill_s": ("prefill", PALETTE[0]),
    "inference_s": ("inference", PALETTE[2]),
    "decode_s": ("decode", PALETTE[5]),
}
WHOLE = {"ttft_s": "TTFT", "latency_s": "latency"}
Cells = Sequence[Mapping[str, Any]]


def split_cells(cells: Cells) -> list[Mapping[str, Any]]:
    """The cells whose server told its times by request."""
    return [entry for entry in cells if entry["split"]]


def whole(cells: Cells) -> str:
    """`TTFT`, or `latency` where replies came whole."""
    return " or ".join(dict.fromkeys(WHOLE[entry["split"]["of"]] for entry in cells))


def named(cells: Cells) -> list[str]:
    """The parts that any cell has, in the order in which a request goes through them."""
    return [name for name in PARTS if any(name in entry["split"]["parts"] for entry in cells)]


def draw(summary: Mapping[str, Any], folder: Path) -> Path | None:
    """Write the chart, PNG and SVG; returns the PNG; None where no server told. Raises: ChartsError."""
    cells = split_cells(summary["cells"])
    if not cells:
        return None
    rc_context, figure_of = matplotlib()
    with rc_context(STYLE):
        figure = figure_of(figsize=(9.0, 1.5 + 0.38 * len(cells)), layout="constrained")
        _bars(figure.add_subplot(), cells)
        figure.legend(
            loc="outside lower center",
            ncols=len(PARTS),
            frameon=False,
            title=_caption(cells),
            title_fontsize=8,
        )
        return save(figure, folder / NAME)


def _bars(axes: Axes, cells: Cells) -> None:
    """A part that is below zero grows to the left of it: nothing is cut off, and the sum beside the bar is right."""
    factor, unit = scale("s", max(entry["split"]["mean_s"] for entry in cells))
    rows, parts = range(len(cells)), named(cells)
    ends = {1: [0.0] * len(cells), -1: [0.0] * len(cells)}
    for name in parts:
        title, colour = PARTS[name]
        widths = [entry["split"]["parts"].get(name, 0.0) * factor for entry in cells]
        lefts = [ends[_sign(width)][row] for row, width in enumerate(widths)]
        axes.barh(rows, widths, 0.62, lefts, color=colour, edgecolor="white", linewidth=0.5, label=title)
        for row, width in enumerate(widths):
            ends[_sign(width)][row] += width
    for row, entry in enumerate(cells):
        whole_, *texts = _alike(entry["split"], parts, factor)
        text = f"{whole_} = " + " + ".join(each.replace("-", "−") for each in texts if each)
        axes.annotate(
            text, (ends[1][row], row), (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=CLEAR
        )
    axes.set_title(f"What the {whole(cells)} consists of", fontsize=11, loc="left", pad=12)
    axes.set_yticks(rows, [short(entry["label"]) for entry in cells])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *ends[-1]) * 1.05, (max(ends[1]) or 1.0) * 1.4)  # room for the sums
    axes.set_xlabel(f"mean of requests ({unit})")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if any(ends[-1]):
        axes.axvline(0, color="#333333", linewidth=0.8)


def _sign(value: float) -> int:
    return -1 if value < 0 else 1


def _alike(split: Mapping[str, Any], parts: Sequence[str], factor: float) -> list[str]:
    """The whole and its parts with as many decimals, so that they add up as they are printed; "" for one not told."""
    decimals = places(split["mean_s"] * factor, 4)
    values = [split["mean_s"], *(split["parts"].get(name) for name in parts)]
    return ["" if value is None else f"{value * factor:.{decimals}f}" for value in values]


def _caption(cells: Cells) -> str:
    counts = sorted({entry["split"]["n"] for entry in cells})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"means of {n} request{'' if n == '1' else 's'} a cell, split request by request by what the server told"


def rows(cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: the whole, and each part with its share of it."""
    parts = named(cells)
    found = []
    for entry in cells:
        split = entry["split"]
        factor, unit = scale("s", split["mean_s"])
        mean, *texts = _alike(split, parts, factor)
        shares = (_share(split["parts"].get(name), split["mean_s"]) for name in parts)
        told = [f"{text} {unit}{share}" if text else ABSENT for text, share in zip(texts, shares, strict=True)]
        found.append([entry["label"], str(split["n"]), f"{mean} {unit}", *told])
    return ["cell", "requests", f"mean {whole(cells)}", *(PARTS[name][0] for name in parts)], found


def _share(part_s: float | None, whole_s: float) -> str:
    return "" if part_s is None or whole_s <= 0 else f" ({100 * part_s / whole_s:.0f} %)"


def negative(cells: Cells) -> Iterator[str]:
    """A sentence for each cell with requests of which the server told more than the client waited."""
    for entry in cells:
        said = entry["split"]["negative"]
        if said["n"]:
            yield (
                f"{entry['label']}: of {said['n']} of {entry['split']['n']} requests the server tells more than the "
                f"client waited, by up to {quantity(-said['least_s'], 's', 3)}: its times overlap, or are rounded up"
            )
