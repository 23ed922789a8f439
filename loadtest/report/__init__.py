"""A report is computed from `samples.jsonl` and `run.json` alone, so anyone can compute it again.

`write` makes summary.json and its exports, the charts, report.md and report.html in the run's folder, `write_together`
one report of several runs; `tables` is what a terminal shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.report import charts, export, goodput, markdown, page, split
from loadtest.report.headline import headline
from loadtest.report.page import ecdf, parts
from loadtest.report.page.drawing import any_letters
from loadtest.report.page.figure import Figure
from loadtest.report.reading import Reading, read, run_of
from loadtest.report.side_by_side import check_plans, merged
from loadtest.report.text import tables

REPORT = "report.md"

__all__ = ["show", "show_together", "tables", "write", "write_together"]


def write(folder: Path, options: Mapping[str, Any] | None = None) -> Path:
    """Read samples.jsonl and run.json in `folder`, write the report beside them; returns the path of report.md.

    options: other ones than the run was made with, of those that only a report depends on (`goodput`).
    Raises: SampleError (a line that is not a sample), GoodputError, ChartsError (matplotlib is missing), OSError.
    """
    reading = read(folder, options)
    return _write(reading, _figures(reading, "run"))


def _figures(reading: Reading, name: str) -> dict[str, list[Figure]]:
    return {
        page.SPREADS: list(ecdf.figures(parts.spreads(reading))),
        page.COURSE: parts.over_time(reading, name),
        page.REQUESTS: list(parts.one_by_one(reading, name)),
    }


def _write(reading: Reading, figures: Mapping[str, Sequence[Figure]]) -> Path:
    export.write(reading.summary, reading.run, reading.folder)
    title = ", ".join(_models(reading.run)) or reading.run["run"]
    return _documents(reading.summary, {"": reading.run}, [_line("", reading)], figures, title, reading.folder)


def write_together(
    folders: Mapping[str, Path], output: Path, options: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """One report of several runs in `output`, each recomputed first; returns the runs' summaries by name.

    folders: by the runs' names. Raises: SideBySideError (runs of different plans), and as `write`.
    """
    check_plans({name: run_of(folder)["plan"] for name, folder in folders.items()})
    summaries: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    lines: list[page.Line] = []
    spreads: list[ecdf.Spread] = []
    courses: list[Figure] = []
    lanes: list[Figure] = []
    for number, (name, folder) in enumerate(folders.items()):
        reading = read(folder, options)  # one after the other: of each no more is kept than is drawn
        own = _figures(reading, f"run-{number}")
        _write(reading, own)
        summaries[name], runs[name] = reading.summary, reading.run
        lines.append(_line(name, reading))
        spreads += parts.spreads(reading, name)
        courses += parts.of_run(name, own[page.COURSE])
        lanes += parts.of_run(name, own[page.REQUESTS])
    figures = {page.SPREADS: list(ecdf.figures(spreads)), page.COURSE: courses, page.REQUESTS: lanes}
    output.mkdir(parents=True, exist_ok=True)
    _documents(merged(summaries), runs, lines, figures, " beside ".join(folders), output)
    return summaries


def _documents(
    summary: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, Any]],
    lines: Sequence[page.Line],
    figures: Mapping[str, Sequence[Figure]],
    title: str,
    folder: Path,
) -> Path:
    """The charts, report.md and report.html in `folder`; returns the path of report.md."""
    with any_letters():
        pictures = charts.draw(summary, folder)
        split.draw(summary, folder)
    text = markdown.render(summary, runs, [picture.name for picture in pictures])
    report = folder / REPORT
    report.write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(page.render(title, lines, text, folder, figures), encoding="utf-8")
    return report


def _line(name: str, reading: Reading) -> page.Line:
    """Where it was measured, and the verdict line."""
    urls = dict.fromkeys(endpoint["url"] for endpoint in reading.run["endpoints"])
    served = ", ".join(_models(reading.run))
    machine = reading.run["machine"]
    own = machine.get("cpu") or machine.get("platform") or "an unknown machine"
    where = f"{served + ' at ' if served else ''}{', '.join(urls)}, measured from {own}"
    return page.Line(name, f"{where}, {reading.run['created']}", headline(reading.summary, reading.run))


def _models(run: Mapping[str, Any]) -> list[str]:
    """What the endpoints say they serve."""
    named = ((endpoint["info"] or {}).get("model_id") for endpoint in run["endpoints"])
    return list(dict.fromkeys(name for name in named if isinstance(name, str) and name))


def show(folder: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the report and print its tables and its path; returns the content of summary.json. Raises: as `write`."""
    reading = read(folder, options)
    _say(
        "\n\n".join([*goodput.block(reading.summary), tables(reading.summary)]),
        _write(reading, _figures(reading, "run")),
    )
    return reading.summary


def show_together(
    folders: Mapping[str, Path], output: Path, options: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Write the report of several runs and print its path; returns the runs' summaries. Raises: as `write_together`."""
    summaries = write_together(folders, output, options)
    _say("\n\n".join(f"{name}\n{tables(summary)}" for name, summary in summaries.items()), output / REPORT)
    return list(summaries.values())


def _say(begin: str, report: Path) -> None:
    print(f"{begin}\n\nreport: {report}\npage:   {report.with_suffix('.html')}")
