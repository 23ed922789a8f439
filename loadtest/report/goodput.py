"""Goodput in words: what was demanded of a request, and how many met it, by cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.goodput import NAMES, objectives_said
from loadtest.report.escaping import escape
from loadtest.report.numbers import ABSENT, quantity
from loadtest.report.table import table
from loadtest.report.text import aligned

Summary = Mapping[str, Any]


def rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the one table that both reports have."""
    objectives = summary["goodput"]["objectives_s"]
    head = ["cell", "met all", "of", "share", "goodput", *(f"missed {NAMES[name]}" for name in objectives), "failed"]
    body = []
    for entry in summary["cells"]:
        found = entry["goodput"]
        rate = found["goodput_rps"]
        body.append(
            [
                entry["label"],
                str(found["met"]),
                str(found["of"]),
                f"{100 * found['share']:.1f} %",
                ABSENT if rate is None else quantity(rate, "requests/s"),
                *(str(found["missed"][name]) for name in objectives),
                str(found["not_complete"]),
            ]
        )
    return head, body


def block(summary: Summary) -> Iterator[str]:
    """For the terminal; nothing where nothing was demanded."""
    if summary["goodput"] and summary["cells"]:
        yield f"Goodput: {objectives_said(summary['goodput']['objectives_s'])}\n{aligned(*rows(summary))}"


def section(summary: Summary) -> Iterator[str]:
    """For report.md."""
    if summary["goodput"] and summary["cells"]:
        head, body = rows(summary)
        yield (
            f"## Goodput\n\n{objectives_said(summary['goodput']['objectives_s'])}. Of the steady phase's requests; one "
            "that failed met nothing, and one may miss several. Goodput is how many met all of them a second of wall, "
            "outside waves.\n\n" + table(head, [[escape(row[0]), *row[1:]] for row in body])
        )
