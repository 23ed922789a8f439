"""The tab "LLM" of locust's page: what it can't know of token streams, to three digits, of all processes together.

It is a table of our own beside locust's: no row of it is in "Aggregated". A quantile is shown where n(1 − q) ≥ 5.
Source: docs.locust.io, "Extending the web UI"; the page asks for /stats/requests every two seconds.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from io import StringIO
from typing import Any

from flask import request

from loadtest.live.health import verdict
from loadtest.live.histogram import Histogram
from loadtest.live.processes import Processes
from loadtest.live.rates import WINDOW_S
from loadtest.live.state import KINDS, State, total
from loadtest.report.numbers import ABSENT, quantity
from loadtest.stats import printable
from loadtest.trust import OK
from loadtest.verdict import Verdict

KEY, TITLE = "llm", "LLM"
CSV = "stats/llm/csv"
TIMED = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
COLUMNS = {
    "what": "What",
    "count": "Count",
    "per_second": f"Per second, last\N{NO-BREAK SPACE}{WINDOW_S:g}\N{NO-BREAK SPACE}s",
    **{name: name for name in QUANTILES},
    "max": "Max",
}
Row = dict[str, float | None]


def figures(processes: Processes) -> dict[str, Row]:
    """By what they are: counts, seconds, and tokens or requests per second; None where too few were seen."""
    whole, per_second = total(processes.states()), processes.per_second()
    found: dict[str, Row] = {title: _quantiles(whole.timed[name]) for name, title in TIMED.items()}
    for kind in KINDS:
        found[f"{kind} tokens"] = {"count": whole.tokens[kind], "per_second": per_second[kind]}
    for verdict_on_it, count in whole.requests.items():
        if verdict_on_it == Verdict.COMPLETE:
            found[f"requests: {verdict_on_it}"] = {"count": count, "per_second": per_second["complete"]}
        elif count:
            found[f"requests: {verdict_on_it}"] = {"count": count}
    return found


def _quantiles(timed: Histogram) -> Row:
    n = timed.n
    row: Row = {"count": n} | dict.fromkeys(QUANTILES, None)
    shown = {name: q for name, q in QUANTILES.items() if printable(n, q)}
    shown |= {"max": 1.0} if n else {}
    return row | dict(zip(shown, timed.quantiles(list(shown.values())), strict=True)) if shown else row


def table(processes: Processes) -> list[dict[str, str]]:
    """The rows as they are read; then what speaks against the client, where something does."""
    rows = [
        {"what": what} | {name: _text(name, row[name]) for name in COLUMNS if name in row}
        for what, row in figures(processes).items()
    ]
    return rows + [{"what": said} for said in doubts(processes.states())]


def doubts(states: Iterable[State]) -> Iterator[str]:
    for state in states:
        judged, reasons = verdict(state)
        if judged != OK:
            yield f"client {judged} (process {state.process}): {'; '.join(reasons)}"


def _text(column: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    if column in ("count", "per_second"):
        return f"{value:,}" if column == "count" else f"{float(f'{value:.3g}'):,.10g}"
    return quantity(value, "s", 3).replace(" ", "\N{NO-BREAK SPACE}")


def as_csv(processes: Processes) -> str:
    """The same in seconds, with all digits."""
    text = StringIO()
    rows = csv.DictWriter(text, list(COLUMNS))
    rows.writeheader()
    rows.writerows({"what": what, **row} for what, row in figures(processes).items())
    return text.getvalue()


def add_tab(web_ui: Any, processes: Processes, base_path: str) -> None:
    """web_ui: a locust.web.WebUI, before its first request."""
    columns = [{"key": key, "title": title} for key, title in COLUMNS.items()]
    web_ui.template_args |= {
        "extended_tabs": [{"title": TITLE, "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": columns}],
        "extended_csv_files": [{"href": f"./{CSV}", "title": "Download LLM CSV"}],
    }

    @web_ui.app.after_request  # type: ignore[untyped-decorator]
    def with_our_rows(response: Any) -> Any:
        if request.path == f"{base_path}/stats/requests" and response.is_json:
            rows = {"extended_stats": [{"key": KEY, "data": table(processes)}]}
            response.set_data(json.dumps({**response.get_json(), **rows}))
        return response

    @web_ui.app.route(f"{base_path}/{CSV}")  # type: ignore[untyped-decorator]
    @web_ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def llm_csv() -> Any:
        named = {"Content-Type": "text/csv", "Content-Disposition": "attachment;filename=llm.csv"}
        return as_csv(processes), named
