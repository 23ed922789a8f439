"""A run's folder, read once: its summary, and what of its samples the page draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.condensed import Condensed, condense
from loadtest.plan import Cell
from loadtest.report.page.course import Course
from loadtest.sample import read_samples
from loadtest.summary import summarise

SAMPLES, RUN = "samples.jsonl", "run.json"


@dataclass(frozen=True, slots=True)
class Reading:
    folder: Path
    run: dict[str, Any]
    summary: dict[str, Any]
    condensed: Condensed
    course: Course

    @property
    def labels(self) -> dict[Cell, str]:
        """What each cell of the summary is called, in its order."""
        return {Cell(**entry["cell"]): entry["label"] for entry in self.summary["cells"]}


def read(folder: Path, options: Mapping[str, Any] | None = None) -> Reading:
    """options: other ones than the run was made with, of those that only a report depends on (`goodput`).

    Raises: SampleError (a line that is not a sample), GoodputError, OSError, ValueError, KeyError (a run.json that is
    none).
    """
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    run["options"] |= options or {}
    course = Course(run["processes"])
    condensed = condense(course.watch(read_samples(folder / SAMPLES)))
    return Reading(folder, run, summarise(condensed, run), condensed, course)
