"""report.html: one file that needs no network and no JavaScript, whose words and tables are those of report.md.

Figures that report.md hasn't stand beside them: how times are spread, how the run went, its requests as bars. Whatever
comes from a server or a command line is text: the template escapes, Markdown is read without HTML, and the page's
policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

from loadtest.report.headline import DOUBTED, SOUND, UNSOUND, Headline
from loadtest.report.page.drawing import inline, is_wide
from loadtest.report.page.figure import Figure
from loadtest.report.page.prose import anchor, sections

CLASSES = {SOUND: "sound", DOUBTED: "doubted", UNSOUND: "unsound"}
BEFORE = ("The client's own error", "Verdicts")  # the section before which figures stand, whichever comes first
IN_SHORT = "In short"  # the page says that in a way of its own


@dataclass(frozen=True, slots=True)
class Line:
    """The verdict line of one run. of: its name, where there are several."""

    of: str
    where: str
    headline: Headline | None

    @property
    def level(self) -> str:
        return CLASSES[self.headline.trust] if self.headline else "unsound"


@dataclass(frozen=True, slots=True)
class _Section:
    title: str
    anchor: str
    body: Markup | None = None
    said: str = ""
    figures: Sequence[Figure] = ()


def render(
    title: str, lines: Sequence[Line], report: str, pictures: Path, parts: Mapping[str, Sequence[Figure]]
) -> str:
    """The page. report: the content of report.md; pictures: where its pictures are; parts: figures by heading."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    begin, found = sections(report, _drawings(report, pictures))
    shown = [_Section(each.title, each.anchor, each.body) for each in found if each.title != IN_SHORT]
    at = next((i for i, each in enumerate(shown) if each.title in BEFORE), len(shown))
    shown[at:at] = [_Section(name, anchor(name), said=SAID[name], figures=of) for name, of in parts.items() if of]
    environment = Environment(
        loader=PackageLoader("loadtest.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (_source(environment, name) for name in ("zoom.js", "style.css"))
    return environment.get_template("page.html.jinja").render(
        title=title,
        lines=lines,
        begin=begin,
        sections=shown,
        script=script,
        style=style,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


SPREADS, COURSE, REQUESTS = "Distributions", "Over time", "Requests, one by one"
SAID = {
    SPREADS: "A steep line is an even service; a long tail to the right is what some of the users wait for.",
    COURSE: "Only the steady phase enters figures; warm-up, ramp and drain are marked.",
    REQUESTS: "A lane a user. Ticks below one another are tokens of one batch; a red stretch is a stall.",
}


def _source(environment: Environment, name: str) -> Markup:
    """One of our own files, which goes into the page as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0].strip())  # noqa: S704 - our own


def _drawings(report: str, folder: Path) -> dict[str, Markup]:
    """The SVG beside each PNG that the report shows, by the PNG's name."""
    found = {}
    for picture in sorted(folder.glob("*.svg")):
        name = picture.with_suffix(".png").name
        if f"]({name})" in report:
            label = report.split(f"]({name})", 1)[0].rsplit("![", 1)[-1]
            svg = inline(
                picture.read_text(encoding="utf-8"), f"{label}; the table below has its figures", picture.stem, {}
            )
            wide = Markup(' class="wide"') if is_wide(svg) else ""
            found[name] = Markup('<figure{}><div class="drawing">{}</div></figure>').format(wide, svg)
    return found
