"""What `tokenclock report` takes: folders of runs, each under a name of its own where there are several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.arguments import Usage

TOGETHER = "side-by-side"


def add_report(verbs: Any) -> Any:
    verb = verbs.add_parser(
        "report",
        help="recompute a report",
        description="Recompute summary, charts, report and page of a run's folder; of several, and one report of all.",
    )
    verb.add_argument(
        "folders",
        nargs="+",
        metavar="[NAME=]DIR",
        help="a folder with samples.jsonl and run.json; of several runs each is called NAME (default: its folder's)",
    )
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where the report of several runs goes (default: {TOGETHER}, beside the first)",
    )
    return verb


def named(folders: Sequence[str]) -> dict[str, Path]:
    """Folders by what they are called: `7B=results/a`, or a folder's own name. Raises: Usage."""
    found: dict[str, Path] = {}
    for text in folders:
        name, equals, rest = text.partition("=")
        folder = Path(rest) if equals and not Path(text).exists() else Path(text)
        called = name if folder == Path(rest) and equals else folder.resolve().name
        if not called or not folder.is_dir():
            raise Usage(f"{text!r} is no folder of a run: say DIR, or NAME=DIR")
        if called in found:
            raise Usage(f"two runs are called {called!r}: give one of them another name, NAME={folder}")
        found[called] = folder
    return found


def output_of(folders: dict[str, Path], asked: Path | None) -> Path | None:
    """Where the report of several runs goes; None of one. Raises: Usage."""
    if len(folders) == 1:
        if asked is not None:
            raise Usage("-o/--output is for the report of several runs: one run's is in its own folder; leave it out")
        return None
    output = asked or Path(os.path.normpath(next(iter(folders.values())))).parent / TOGETHER
    if any(output.resolve() == folder.resolve() for folder in folders.values()):
        raise Usage(f"{output} is the folder of a run, whose own report is there: choose another --output")
    return output
