"""The verb `compare`: runs against runs, or a run against published figures.

Exit codes: 0 compared, and nothing that --fail-on names; 1 a rule of --fail-on fired; 2 nothing could be compared, or a
rule could be held against no cell.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from loadtest.compare import chart, text
from loadtest.compare.differences import Difference, Rules, differences
from loadtest.compare.gate import Held, Rule, hold, not_held, nowhere
from loadtest.compare.published import SELECTIONS, Beside, beside
from loadtest.compare.reference import TableError, read
from loadtest.compare.sides import Key, Run, SidesError, check, differing, doubts, key_of, pairs
from loadtest.report.charts import ChartsError
from loadtest.sample import Sample, read_samples
from loadtest.summary import summarise

SCHEMA = 1
OWN_TABLE = (
    "what these figures are, and how they were measured, is the table's own word",
    "the two throughputs are two metrics: throughput_input_plus_output and throughput_output_only are never mixed",
)


class Unreadable(ValueError):
    """A folder that isn't a run's; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    a: tuple[Path, ...]
    b: tuple[Path, ...]  # empty: against a reference
    published: str | None
    reference: Path | None
    fail_on: tuple[Rule, ...]
    rules: Rules
    chart: Path | None
    as_json: bool


def run(options: Options) -> int:
    try:
        return against_runs(options) if options.b else against_reference(options)
    except (Unreadable, SidesError, TableError, ChartsError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or options.chart}: {error.strerror}")


def load(folder: Path, keep: bool) -> Run:
    """keep: its steady samples, too, by cell. Raises: Unreadable."""
    try:
        said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        read = read_samples(folder / "samples.jsonl")
        samples = list(read) if keep else read
        by_cell: dict[Key, list[Sample]] = {}
        for sample in samples if isinstance(samples, list) else ():
            if sample.phase == "steady":
                key = key_of({name: getattr(sample.cell, name) for name in sample.cell.__slots__})
                by_cell.setdefault(key, []).append(sample)
        return Run(folder.resolve().name, said, summarise(samples, said), by_cell)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(
            f"{folder} can't be compared: {error}; it needs samples.jsonl and run.json of a run"
        ) from error


def against_runs(options: Options) -> int:
    a, b = ([load(folder, options.rules.within_run) for folder in side] for side in (options.a, options.b))
    check(a, b)
    paired, left_out = pairs(a, b)
    asked = [rule.measure for rule in options.fail_on]
    found, absent = [], []
    for pair in paired:
        of_cell = differences(pair, a, b, options.rules, asked)
        found += of_cell[0]
        absent += of_cell[1]
    held, skipped = hold(options.fail_on, found), not_held(options.fail_on, absent)
    said = (list(differing(a, b)), list(doubts([*a, *b])))
    if options.chart is not None and found:
        chart.differences(found, options.rules.margin, options.chart)
    if options.as_json:
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "a": [str(folder) for folder in options.a],
            "b": [str(folder) for folder in options.b],
            "margin": options.rules.margin,
            "within_run": options.rules.within_run,
            "differing": said[0],
            "doubts": said[1],
            "cells_left_out": [{"cell": each.label, "why": each.why} for each in left_out],
            "measures_left_out": [
                {"cell": each.cell, "measure": each.measure.name, "why": each.why} for each in absent
            ],
            "differences": [_difference(each) for each in found],
            "gate": [_held(each) for each in held],
            "not_held": [{"rule": rule.text, "cell": each.cell, "why": each.why} for rule, each in skipped],
        }
        print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(text.comparison(a, b, found, absent, left_out, held, options.rules, said, skipped))
    if not found:
        return fail("no cell can be compared; above it says why of each")
    if never := nowhere(options.fail_on, found):
        names = ", ".join(rule.measure.name for rule in never)
        (why, *_) = [each.why for rule, each in skipped if rule == never[0]]
        return fail(f"no cell has {names} in every run, so the rule would never fire: {why}")
    return 1 if any(each.fired for each in held) else 0


def against_reference(options: Options) -> int:
    (folder,) = options.a
    if options.published is not None:
        selection = SELECTIONS[options.published]
        table = files("loadtest").joinpath("reference/published.csv").read_text(encoding="utf-8")
        rows = selection.rows(read(table.splitlines(), "published.csv"))
        title, caveats = selection.title, selection.caveats
    else:
        assert options.reference is not None
        rows = read(_lines(options.reference), str(options.reference))
        title, caveats = str(options.reference), OWN_TABLE
    measured = load(folder, keep=False)
    found, left_out = beside(rows, measured.run, measured.summary, batches=options.published is not None)
    said = [*_conditions(measured), *caveats]
    if options.chart is not None and found:
        chart.ratios(found, options.chart)
    if options.as_json:
        content = {
            "schema": SCHEMA,
            "run": str(folder),
            "reference": title,
            "caveats": said,
            "compared": [_beside(each) for each in found],
            "left_out": [{"what": each.what, "why": each.why} for each in left_out],
        }
        print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(text.beside(measured.name, title, found, left_out, said))
    return 0 if found else fail("none of these figures can be compared; above it says why of each")


def _lines(path: Path) -> list[str]:
    """Raises: TableError, OSError."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TableError(f"{path} isn't UTF-8 at byte {error.start}: save it as CSV UTF-8") from error


def _conditions(measured: Run) -> list[str]:
    said = [
        f"measured: {name} {value}"
        for endpoint in measured.run["endpoints"]
        for name, value in (endpoint["info"] or {}).items()
        if name in ("model_id", "id") and value
    ]
    return [*dict.fromkeys(said), *doubts([measured])]


def _difference(each: Difference) -> dict[str, Any]:
    return {
        "cell": each.cell,
        "measure": each.measure.name,
        "unit": each.measure.unit,
        "a": _finite(each.a),
        "b": _finite(each.b),
        "change": _finite(each.share),
        "ci95": None if each.interval is None else [_finite(end) for end in each.interval],
        "of": each.of,
        "n": list(each.n),
        "verdict": each.verdict,
        "why": each.why,
    }


def _held(each: Held) -> dict[str, Any]:
    return {
        "rule": each.rule.text,
        "cell": each.found.cell,
        "p_value": each.p_value,
        "allowed": each.allowed,
        "fired": each.fired,
    }


def _beside(each: Beside) -> dict[str, Any]:
    return {
        "cell": each.cell,
        "metric": each.metric,
        "statistic": each.statistic,
        "n": each.n,
        "unit": each.row.unit,
        "measured": each.value,
        "ci95": each.interval and list(each.interval),
        "reference_metric": each.row.metric,
        "reference": each.row.value,
        "rounding": each.row.rounding,
        "ratio": each.ratio,
        "ratio_between": [_finite(end) for end in each.ratio_between],
        **{name: getattr(each.row, name) for name in ("source", "commit", "date", "model", "hardware")},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def fail(sentence: str) -> int:
    print(f"tokenclock: {sentence}", file=sys.stderr)
    return 2
