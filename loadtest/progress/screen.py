"""Progress on a terminal: a few lines that are drawn again in place, in colours where those are wanted.

rich draws them: it knows widths, NO_COLOR, and how what is printed meanwhile scrolls past above. Once a second at most,
and never from a thread: while it draws (1 to 3 ms), no token is read.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from loadtest.progress.figures import Figures, counts, health, speed
from loadtest.progress.show import Standing, said, times
from loadtest.progress.unhurried import Unhurried
from loadtest.trust import OK, SATURATED, SUSPECT

LEAST_BAR = 8  # columns: a shorter one says nothing
STYLES = {OK: "green", SUSPECT: "yellow", SATURATED: "bold red"}
BETWEEN = " · "


class Screen:
    # The event loop's lag is judged by its p99 of 200 ticks a second: twice a second would be that one percent.
    period_s = 1.0

    def __init__(self) -> None:
        self._out = Unhurried(sys.stderr)
        out = cast(TextIO, self._out)
        # rich believes an exported size before the terminal's own, and would take too few lines for what it has drawn.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        console = Console(
            file=out, force_terminal=True, soft_wrap=True, highlight=False, markup=False, _environ=environment
        )
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, transient=True)
        self._live.start()

    def draw(self, standing: Standing) -> None:
        if self._out.idle():
            self._live.update(Frame(standing), refresh=True)

    def keep(self, what: str, seen: Figures) -> None:
        self._live.console.print(_row((what, "bold"), ": ", BETWEEN.join(said(seen))), soft_wrap=False)

    def close(self) -> None:
        self._live.stop()
        self._out.close()


class Frame:
    """A bar, and the figures below it, broken where the terminal ends."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        standing, width = self._standing, options.max_width
        tail = f"{standing.share:4.0%}  {times(standing)}"
        if (bar := width - len(tail) - 1) >= LEAST_BAR:
            yield ProgressBar(total=1.0, completed=standing.share, width=bar)
            yield Text(" ", end="")
        yield _row(tail)
        yield _row((standing.what, "bold"))
        if (seen := standing.figures) is None:
            return
        yield _row(BETWEEN.join(speed(seen)))
        yield _row((counts(seen), "red" if seen.others else ""), BETWEEN, (health(seen), STYLES[seen.client]))


def _row(*parts: str | tuple[str, str]) -> Text:
    """Broken between words; what is printed above may run over."""
    return Text.assemble(*parts, overflow="fold", no_wrap=False)
