"""OpenAI's text ends before its stop sequence: what may become one is held back until it is clear. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class Visible:
    """The text of one choice that its reader may see. All pushes put together are the text without the stop."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> str:
        """What is visible for certain: all but an end that could be the beginning of a stop sequence."""
        text = self._held + text
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def last(self, text: str, stopped: bool) -> str:
        """What the last token shows; `stopped`, by a stop sequence that `text` completed."""
        text = self._held + text
        self._held = ""
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0] if stopped else []
        return text[: min(starts, default=len(text))]


def overlap(text: str, stop: str) -> int:
    """How long the longest end of `text` is with which `stop` begins, and doesn't end."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
