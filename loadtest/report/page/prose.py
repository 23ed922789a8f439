"""report.md as sections of a page: the same words and tables, with drawings in the place of its pictures.

Only what report.md uses is read as Markdown: no HTML, no links. What strangers wrote is escaped there already, and
whatever else would be markup is text here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

RULES = ("emphasis", "escape", "entity", "backticks", "table", "list", "heading", "image")


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    anchor: str
    body: Markup


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML

    class Renderer(RendererHTML):
        def table_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
            return '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>\n'

        def table_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
            return "</table></div>\n"

        def th_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
            style = tokens[at].attrGet("style")
            return f'<th scope="col" style="{escape(style)}">' if style else '<th scope="col">'

        def image(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
            """A drawing that the page has; nothing in the place of one that it hasn't."""
            return str(env["drawings"].get(str(tokens[at].attrGet("src")), ""))

    return MarkdownIt("zero", renderer_cls=Renderer).enable(list(RULES))


def html(text: str, drawings: Mapping[str, Markup] | None = None) -> Markup:
    found = _markdown().render(text, {"drawings": drawings or {}})
    found = found.replace("<p><figure", "<figure").replace("</figure></p>", "</figure>")  # no figure is in a paragraph
    return Markup(found)  # noqa: S704 - the parser escapes, HTML is off


def sections(report: str, drawings: Mapping[str, Markup]) -> tuple[Markup, list[Section]]:
    """What comes before the first `## `, without the title, and every section. drawings: by file name."""
    head, *rest = re.split(r"^## ", report, flags=re.MULTILINE)
    found = []
    for block in rest:
        title, _, body = block.partition("\n")
        found.append(Section(title, anchor(title), html(body, drawings)))
    return html(head.partition("\n")[2]), found


def anchor(title: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))
