"""A report is computed from `samples.jsonl` and `run.json` alone, so anyone can compute it again.

`write` makes summary.json, the charts and report.md in the run's folder; `tables` is what a terminal shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.report import charts, goodput, markdown, split
from loadtest.report.text import tables
from loadtest.sample import read_samples
from loadtest.summary import summarise

__all__ = ["show", "tables", "write"]


def write(folder: Path, options: Mapping[str, Any] | None = None) -> Path:
    """Read samples.jsonl and run.json in `folder`, write the report beside them; returns the path of report.md.

    options: other ones than the run was made with, of those that only a report depends on (`goodput`).
    Raises: SampleError (a line that is not a sample), GoodputError, ChartsError (matplotlib is missing), OSError.
    """
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    run["options"] |= options or {}
    summary = summarise(list(read_samples(folder / "samples.jsonl")), run)
    content = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(content + "\n", encoding="utf-8")
    pictures = charts.draw(summary, folder)
    split.draw(summary, folder)
    report = folder / "report.md"
    report.write_text(markdown.render(summary, run, [picture.name for picture in pictures]), encoding="utf-8")
    return report


def show(folder: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the report and print its tables and its path; returns the content of summary.json. Raises: as `write`."""
    report = write(folder, options)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print("\n\n".join([*goodput.block(summary), tables(summary)]))
    print(f"\nreport: {report}")
    return summary
