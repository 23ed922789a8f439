"""A drawing of the page, with what is said about it and the table behind it."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Figure:
    """caption and rows are plain text: the template escapes them."""

    title: str
    drawing: Markup
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = False  # as wide as the page, and to be zoomed into
    folded: bool = False  # shown when asked for
