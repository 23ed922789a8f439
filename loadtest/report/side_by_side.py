"""Several runs in one report: their configurations beside each other, as 7B-L, 7B-T, 13B-L and 13B-T on the page.

Nothing is pooled: every cell stays the one run's that measured it, under the run's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from loadtest.trust import worst_of

Summary = Mapping[str, Any]


class SideBySideError(ValueError):
    """Runs that can't stand in one report; the message names them and the remedy."""


def check_plans(plans: Mapping[str, str | None]) -> None:
    """plans: by the runs' names. Raises: SideBySideError where their grids differ."""
    if len(set(plans.values())) > 1:
        said = ", ".join(f"{name}: {plan or 'a free run'}" for name, plan in plans.items())
        raise SideBySideError(f"these runs have different plans ({said}): grids are never mixed; report them apart")


def merged(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """The content of a summary.json of all, by the runs' names. Their plans are the same."""
    first = next(iter(summaries.values()))
    calibrations = [_calibration(name, summary) for name, summary in summaries.items()]
    return {
        **first,
        "run": ", ".join(summaries),
        "waves": min((s["waves"] for s in summaries.values() if s["waves"] is not None), default=None),
        "interrupted": any(summary["interrupted"] for summary in summaries.values()),
        "shared_prefix_tokens": min(summary["shared_prefix_tokens"] for summary in summaries.values()),
        "http2": all(summary["http2"] for summary in summaries.values()),
        "cells": [_cell(name, entry) for name, summary in summaries.items() for entry in summary["cells"]],
        "goodput": first["goodput"] if all(s["goodput"] == first["goodput"] for s in summaries.values()) else None,
        "cold": [
            {**each, "label": labelled(name, each["label"], each["config"])}
            for name, summary in summaries.items()
            for each in summary["cold"]
        ],
        "missing": [f"{name}-{label}" for name, summary in summaries.items() for label in summary["missing"]],
        "lost": [f"{name}: {sentence}" for name, summary in summaries.items() for sentence in summary["lost"]],
        "verdicts": _verdicts([summary["verdicts"] for summary in summaries.values()]),
        "client": worst_of([(name, summary["client"]) for name, summary in summaries.items()]),
        "calibration": {
            "loads": [load for each in calibrations if each for load in each["loads"]],
            "reason": "; ".join(each["reason"] for each in calibrations if each and each["reason"]) or None,
        }
        if any(calibrations)
        else None,
        "notes": [f"{name}: {note}" for name, summary in summaries.items() for note in summary["notes"]],
    }


def labelled(name: str, label: str, config: str | None) -> str:
    """`7B-T 256→768`, and `7B · 4 users 256→768` where no configuration is named."""
    return f"{name}-{label}" if config else f"{name} · {label}"


def _cell(name: str, entry: Summary) -> dict[str, Any]:
    config = entry["cell"]["config"]
    cell = {**entry["cell"], "config": f"{name}-{config}" if config else name}
    return {**entry, "cell": cell, "label": labelled(name, entry["label"], config)}


def _calibration(name: str, summary: Summary) -> dict[str, Any] | None:
    if (found := summary["calibration"]) is None:
        return None
    called = {entry["label"]: labelled(name, entry["label"], entry["cell"]["config"]) for entry in summary["cells"]}
    loads = [{**load, "cells": [called.get(label, label) for label in load["cells"]]} for load in found["loads"]]
    return {"loads": loads, "reason": found["reason"] and f"{name}: {found['reason']}"}


def _verdicts(all_of: list[Summary]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    phases: dict[str, Counter[str]] = {}
    details: dict[str, list[str]] = {}
    for each in all_of:
        counts.update(each["counts"])
        for phase, of in each["by_phase"].items():
            phases.setdefault(phase, Counter()).update(of)
        for verdict, said in each["details"].items():
            kept = details.setdefault(verdict, [])
            kept += [sentence for sentence in said if sentence not in kept]
    return {
        "n": sum(each["n"] for each in all_of),
        "counts": dict(sorted(counts.items())),
        "by_phase": {phase: dict(sorted(of.items())) for phase, of in sorted(phases.items())},
        "details": dict(sorted(details.items())),
    }
