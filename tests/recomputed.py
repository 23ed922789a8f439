"""A run's figures, once more: with pandas, from samples.jsonl alone, sharing no code with the report.

It knows the definitions of README.md and nothing of how the report computes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

CELL = ["config", "slots", "concurrency", "input_tokens", "new_tokens", "dataset"]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def requests(folder: Path) -> pd.DataFrame:
    """A row a request; times in seconds."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = pd.json_normalize(lines, max_level=1)
    rows = rows.rename(columns={f"cell.{name}": name for name in [*CELL, "wave"]})
    events = rows["events"]
    rows["first_ns"] = events.map(lambda e: e[0][0] if e else math.nan)
    rows["last_ns"] = events.map(lambda e: e[-1][0] if e else math.nan)
    rows["ttft_s"] = (rows["first_ns"] - rows["started_ns"]) / 1e9
    rows["ttft_text_s"] = (rows["first_text_ns"] - rows["started_ns"]) / 1e9
    rows["ttft_from_schedule_s"] = (rows["first_ns"] - rows["scheduled_ns"]) / 1e9
    rows["latency_s"] = (rows["last_ns"] - rows["started_ns"]) / 1e9
    later = rows["got.new_tokens"] - events.map(lambda e: e[0][1] if e else math.nan)
    rows["tpot_s"] = ((rows["latency_s"] - rows["ttft_s"]) / later).where(later > 0)
    rows["lag_s"] = (rows["started_ns"] - rows["scheduled_ns"]) / 1e9
    rows["complete"] = rows["verdict"] == "complete"
    return rows


def figures(folder: Path) -> dict[tuple[Any, ...], dict[str, pd.Series]]:
    """Observations of every metric in the steady phase, by cell. Of one machine."""
    found, rows = {}, requests(folder)
    for key, cell in rows[rows["phase"] == "steady"].groupby(CELL, dropna=False):
        done = cell[cell["complete"]]
        of = {
            name: done[name].dropna()
            for name in ("ttft_s", "ttft_text_s", "ttft_from_schedule_s", "latency_s", "tpot_s")
        }
        of["itl_s"] = _gaps_s(done)
        of["lag_s"] = cell["lag_s"].dropna()
        tokens = done["got.input_tokens"] + done["got.new_tokens"]
        if cell["wave"].notna().all():
            of |= _waves(cell)
        else:
            wall_s = (cell["ended_ns"].max() - cell["scheduled_ns"].min()) / 1e9
            of["throughput_output_tokens_per_s"] = pd.Series([done["got.new_tokens"].sum() / wall_s])
            of["throughput_total_tokens_per_s"] = pd.Series([tokens.sum() / wall_s])
            of["requests_per_s"] = pd.Series([len(done) / wall_s])
        found[tuple(None if pd.isna(each) else each for each in key)] = {
            n: v.astype(float) for n, v in of.items() if len(v)
        }
    return found


def _gaps_s(done: pd.DataFrame) -> pd.Series:
    stamps = done[["id", "events"]].explode("events").dropna()
    at_ns = stamps["events"].map(lambda event: event[0])
    return (at_ns.groupby(stamps["id"]).diff().dropna()) / 1e9


def _start_lags_s(rows: pd.DataFrame) -> pd.Series:
    """Of the steady phase: later than scheduled and than the same user was free, less the cost of a connection."""
    free_ns = rows.groupby(["process", "user"])["ended_ns"].shift()
    possible_ns = rows[["scheduled_ns"]].assign(free=free_ns).max(axis=1)
    lags_s = (rows["started_ns"] - possible_ns - rows["connect_ns"].fillna(0)) / 1e9
    return lags_s[rows["phase"] == "steady"]


def _waves(cell: pd.DataFrame) -> dict[str, pd.Series]:
    waves = cell.groupby("wave").agg(
        release=("scheduled_ns", "min"),
        first=("first_ns", "max"),
        last=("last_ns", "max"),
        n=("id", "size"),
        complete=("complete", "all"),
        read=("got.input_tokens", "sum"),
        made=("got.new_tokens", "sum"),
    )
    waves = waves[waves["complete"] & (waves["n"] == cell["concurrency"].iloc[0])]
    took_s = (waves["last"] - waves["release"]) / 1e9
    return {
        "encoding_time_s": (waves["first"] - waves["release"]) / 1e9,
        "batch_latency_s": took_s,
        "throughput_total_tokens_per_s": (waves["read"] + waves["made"]) / took_s,
        "throughput_output_tokens_per_s": waves["made"] / took_s,
    }


def printable(n: int, q: float) -> bool:
    return round(n * min(q, 1 - q), 6) >= 5


class Tables(HTMLParser):
    """Every table of a page: rows of texts, under the last heading before it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._heading, self._text, self._into = "", "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "th", "td"):
            self._into, self._text = tag, ""
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append([])

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag != self._into:
            return
        if tag == "h2":
            self._heading = self._text
        elif self._heading:
            self.tables[self._heading][-1].append(self._text.strip())
        self._into = ""


def markdown_table(report: str, heading: str) -> list[list[str]]:
    section = report.split(f"## {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| :-")]
    return [[entry.strip() for entry in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def printed(text: str) -> list[tuple[float, float]]:
    """Numbers of `12.3 / 14.0 / – ms` or `1.2 s (mean of 3)` in seconds, each with half of its last digit."""
    factor = 1e-3 if "ms" in text else 1.0
    numbers = re.findall(r"\d+(?:\.\d+)?", text.split("(")[0])
    return [(float(each) * factor, 0.5 * factor * 10.0 ** -len(each.partition(".")[2])) for each in numbers]


COLUMNS = {
    "TTFT": "ttft_s",
    "TTFT from schedule": "ttft_from_schedule_s",
    "ITL": "itl_s",
    "TPOT": "tpot_s",
    "latency": "latency_s",
}
PANELS = {
    "Encoding time per input token": "encoding_time_s",
    "End-to-end latency per generated tokens for 256 input tokens": "batch_latency_s",
    "Throughput per generated tokens for 256 input tokens": "throughput_total_tokens_per_s",
}


def agree(folder: Path) -> int:
    """Asserts that summary.json, report.md and report.html say what the samples amount to; how often it compared."""
    known = figures(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    page = Tables((folder / "report.html").read_text(encoding="utf-8")).tables
    report = (folder / "report.md").read_text(encoding="utf-8")
    labels = {entry["label"]: tuple(entry["cell"][name] for name in CELL) for entry in summary["cells"]}
    assert set(labels.values()) == set(known)
    compared = sum(_summary(entry, known[labels[entry["label"]]]) for entry in summary["cells"])
    cells = page["Every cell"][: len(labels) + 1]
    assert markdown_table(report, "Every cell")[: len(labels) + 1] == cells
    for label, *texts in cells[1:]:
        for title, text in zip(cells[0][1:], texts, strict=True):
            if title in COLUMNS:
                compared += _quantiles(text, known[labels[label]].get(COLUMNS[title]))
    for title, metric in PANELS.items():
        if title in page:
            assert markdown_table(report, title) == page[title]
            compared += _panel(page[title], title, metric, known)
    return compared + _spreads(page["Distributions"], labels, known)


def _summary(entry: dict[str, Any], known: dict[str, pd.Series]) -> int:
    assert {name for name, metric in entry["metrics"].items() if metric["n"]} == set(known), entry["label"]
    for name, values in known.items():
        metric = entry["metrics"][name]
        assert metric["n"] == len(values), (entry["label"], name)
        told = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        told |= {p: values.quantile(q) if printable(len(values), q) else math.nan for p, q in QUANTILES.items()}
        for number, value in told.items():
            given = math.nan if metric[number] is None else metric[number]
            at_most = max(1e-9 * abs(value), 1e-12)
            assert given == value or abs(given - value) <= at_most or (math.isnan(given) and math.isnan(value)), (
                f"{entry['label']}, {name}, {number}: {given}, not {value}"
            )
    return len(known) * (5 + len(QUANTILES))


def _quantiles(text: str, values: pd.Series | None) -> int:
    """p50 / p90 / p99, or the mean of few."""
    if values is None:
        assert text == "–"
        return 1
    told = [values.quantile(q) for q in (0.5, 0.9, 0.99) if printable(len(values), q)] or [values.mean()]
    numbers = printed(text)
    assert len(numbers) == len(told), text
    for (number, half), value in zip(numbers, told, strict=True):
        assert abs(number - value) <= half * 1.001, f"{text}: {value}"
    return len(told)


def _panel(rows: list[list[str]], title: str, metric: str, known: dict[tuple[Any, ...], dict[str, pd.Series]]) -> int:
    compared = 0
    for column, name in enumerate(rows[0][1:], 1):
        for row in rows[1:]:
            pair = (int(row[0]), 1) if title.startswith("Encoding") else (256, int(row[0]))
            (values,) = [of[metric] for key, of in known.items() if key[0] == name[0] and key[3:5] == pair]
            ((number, half),) = printed(row[column].rstrip("*"))
            value = values.median() if printable(len(values), 0.5) else values.mean()
            assert abs(number - value) <= half * 1.001, f"{title}, {row[0]}, {name}: {value}"
            compared += 1
    return compared


def _spreads(rows: list[list[str]], labels: dict[str, tuple[Any, ...]], known: dict[Any, dict[str, pd.Series]]) -> int:
    """The tables behind the cumulative distributions: head, rows, head, rows."""
    compared, metric, head = 0, "", []
    for row in rows:
        if row[0] in ("TTFT of", "ITL of"):
            metric, head = {"T": "ttft_s", "I": "itl_s"}[row[0][0]], row
            continue
        values = known[labels[row[0]]][metric]
        assert int(row[1].replace(",", "")) == len(values)
        for title, text in zip(head[2:], row[2:], strict=True):
            q = float(title.removeprefix("p")) / 100
            if text != "–":
                ((number, half),) = printed(text)
                assert abs(number - values.quantile(q)) <= half * 1.001, f"{row[0]}, {metric}, {title}: {text}"
            assert (text != "–") == printable(len(values), q)
            compared += 1
    assert compared
    return compared


def agree_with_prometheus(folder: Path, ask: Callable[[str], dict[str, float]]) -> int:
    """Asserts that what Prometheus scraped of a run amounts to its samples, warm-up and all; how often it compared.

    ask: an instant query's values by their labels. A quantile must lie in the bucket that holds the exact one.
    """

    def last(series: str, by: str) -> dict[str, float]:
        """What was scraped last, though nothing is served any more. By the label's value."""
        found = ask(f"sum by ({by}) (last_over_time(tokenclock_{series}[5m]))")
        return {labels.removeprefix(f"{by}="): value for labels, value in found.items()}

    rows = requests(folder)
    done = rows[rows["complete"]]
    counts = {name: n for name, n in last("requests_total", "verdict").items() if n}
    assert counts == rows["verdict"].value_counts().to_dict()
    tokens = {"input": rows["got.input_tokens"].sum(), "output": rows["got.new_tokens"].sum()}
    assert last("tokens_total", "kind") == tokens
    observed = {"ttft": rows["ttft_s"], "itl": _gaps_s(done), "tpot": done["tpot_s"], "e2e": done["latency_s"]}
    observed["client_start_lag"] = _start_lags_s(rows)
    compared = len(counts) + len(tokens)
    for name, values in observed.items():
        ordered = values.dropna().clip(lower=0).sort_values()
        assert len(ordered), name
        series = f"{name}_seconds"
        assert last(f"{series}_count", "") == {"": len(ordered)}, name
        (total_s,) = last(f"{series}_sum", "").values()
        assert abs(total_s - ordered.sum()) <= 1e-9 * total_s + 1e-12, name
        bounds = sorted(float(bound) for bound in last(f"{series}_bucket", "le"))
        for q in QUANTILES.values():
            query = f"histogram_quantile({q}, sum by (le) (last_over_time(tokenclock_{series}_bucket[5m])))"
            (said,) = ask(query).values()
            exact = ordered.iloc[max(math.ceil(q * len(ordered)), 1) - 1]
            above = next(at for at, bound in enumerate(bounds) if exact <= bound)
            low, high = bounds[above - 1] if above else 0.0, bounds[above]
            assert low <= said <= high, f"{name}, {q}: {said}, and {exact} lies between {low} and {high}"
        compared += 2 + len(QUANTILES)
    return compared
