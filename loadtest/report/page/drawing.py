"""A drawing of matplotlib's as part of an HTML page: colours from the page's style sheet, names for what is hovered.

Drawings use the colours of `VARIABLES` and no others; on the page each is a CSS variable, so light and dark are the
style sheet's business, and a chart that is a file of its own stays as it is.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from loadtest.report.charts import PALETTE, STYLE, matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID, INK, MUTED, PAGE = "#dddddd", "#333333", "#666666", "#ffffff"
BAND, WARMUP, RAMP, DRAIN = "#f1f1f1", "#d9e6f2", "#f2e6d9", "#e8d9f2"
DECODE, STALL = "#b2dfcc", "#c00000"
VARIABLES = {
    **{colour.lower(): f"--series-{number}" for number, colour in enumerate(PALETTE, 1)},
    GRID: "--grid",
    INK: "--ink",
    "#000000": "--ink",
    MUTED: "--muted",
    PAGE: "--page",
    BAND: "--band",
    WARMUP: "--warmup",
    RAMP: "--ramp",
    DRAIN: "--drain",
    DECODE: "--decode",
    STALL: "--stall",
}
WIDE = 500.0  # points
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{3,}")  # hundredths of a point, also where one zooms in
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # in XML; matplotlib writes what it is given
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def canvas() -> tuple[Callable[..., AbstractContextManager[None]], type[Figure]]:
    """What draws: a context of settings, to be called without arguments, and figures. Raises: ChartsError."""
    rc_context, figure = matplotlib()
    return lambda: rc_context({**STYLE, "path.simplify": False}), figure


@contextmanager
def any_letters() -> Iterator[None]:
    """A letter that matplotlib's font hasn't is a box in a PNG, and in an SVG a letter: nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def svg(figure: Figure, label: str, name: str, titles: Mapping[str, str] | None = None) -> Markup:
    """The figure, inline. name: no other drawing of the page has it. titles: what hovering shows, by gid."""
    out = io.BytesIO()
    with any_letters():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(out.getvalue().decode("utf-8"), label, name, titles or {})


def inline(text: str, label: str, name: str, titles: Mapping[str, str]) -> Markup:
    """An SVG file of matplotlib's as an element of a page. label: its alternative text."""
    text = _FORBIDDEN.sub("", text)
    root = ElementTree.fromstring(text)  # noqa: S314 - of our own making
    referred = set(re.findall(r"#([^)\"\s]+)[)\"]", text))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}metadata":
                parent.remove(child)
    for element in root.iter():
        _named(element, name, titles, referred)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", label)
    ElementTree.register_namespace("", _SVG)
    found = ElementTree.tostring(root, encoding="unicode")
    found = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", found).replace("ns1:href", "href").replace("xlink:href", "href")
    return Markup(found)  # noqa: S704 - ElementTree escaped every text of it


def is_wide(drawing: Markup) -> bool:
    """Whether it needs the width of the page."""
    found = re.search(r'viewBox="0 0 ([\d.]+)', drawing)
    return found is not None and float(found[1]) > WIDE


def _named(element: ElementTree.Element, name: str, titles: Mapping[str, str], referred: set[str]) -> None:
    """Its colours, its title, and an identifier only where something refers to it."""
    own = element.attrib.pop("id", None)
    if own in referred:
        element.set("id", f"{name}-{own}")
    if own is not None and own in titles:
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = titles[own]
        element.insert(0, title)
    if "d" in element.attrib:
        element.set("d", _LONG.sub(lambda number: f"{float(number[0]):.2f}", " ".join(element.attrib["d"].split())))
    for attribute in ("style", "clip-path"):
        if attribute in element.attrib:
            value = _COLOUR.sub(_variable, element.attrib[attribute])
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
    if _LINK in element.attrib:
        element.set(_LINK, element.attrib[_LINK].replace("#", f"#{name}-"))


def _variable(found: re.Match[str]) -> str:
    colour = found[0].lower()
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else found[0]
