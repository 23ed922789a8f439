"""report.md: what was measured, the page's charts and tables, every cell, every failure, and how far to trust it.

Strings that came from a server or a command line are escaped: they can neither break a table nor be markup.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtest.report import doubts, goodput, server
from loadtest.report.clock import ERRORS, load_said
from loadtest.report.escaping import escape
from loadtest.report.grid import panels
from loadtest.report.headline import TOTAL_RATE, headline, sentences
from loadtest.report.numbers import ABSENT, quantiles, with_failures
from loadtest.report.table import LEFT, table
from loadtest.report.text import OUTPUT_RATE, output_rate, panel_rows
from loadtest.stats import DEFINITIONS, MIN_BEYOND

TIMES = (
    ("TTFT", "ttft_s"),
    ("TTFT from schedule", "ttft_from_schedule_s"),
    ("ITL", "itl_s"),
    ("TPOT", "tpot_s"),
    ("latency", "latency_s"),
)
FAILABLE = (*TIMES[:2], TIMES[4], ("encoding time", "encoding_time_s"), ("batch latency", "batch_latency_s"))


def render(summary: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], pictures: Sequence[str]) -> str:
    """The whole report. runs: content of run.json by name; one has none: "". pictures: file names beside it, the
    combined one last.
    """
    blocks = [
        f"# tokenclock report: {escape(summary['run'])}",
        "\n".join(f"- {_of(name)}{line}" for name, run in runs.items() for line in _measured(run)),
        *_short(summary, runs),
        *_page(summary, pictures[:-1]),
        *_cells(summary),
        *goodput.section(summary),
        *_clock(summary["calibration"]),
        *server.sections(summary["cells"]),
        "## Verdicts\n\n" + _verdicts(summary["verdicts"]),
        "## How far to trust these numbers\n\n" + "\n".join(f"- {line}" for line in doubts.sentences(summary)),
        "## Definitions\n\n" + _definitions(summary),
        *(f"## {_of(name)}Machine and settings\n\n" + _settings(run) for name, run in runs.items()),
    ]
    return "\n\n".join(blocks) + "\n"


def _of(name: str) -> str:
    return f"{escape(name)}: " if name else ""


def _short(summary: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Of one run; of several each has its own."""
    if len(runs) == 1:
        (run,) = runs.values()
        yield "## In short\n\n" + "\n".join(f"- {line}" for line in sentences(headline(summary, run)))


def _measured(run: Mapping[str, Any]) -> Iterator[str]:
    plan = f"plan `{run['plan']}`, {run['waves']} waves per cell" if run["plan"] else "no plan: a free run"
    yield f"{plan}, seed {run['seed']}, begun {escape(run['created'])}"
    if loop := run.get("open_loop"):
        shape = f", burstiness {loop['burstiness']:g}" if loop["kind"] == "gamma" else ""
        became = "how much of it was sent isn't known"
        if loop["taken"] is not None:
            became = f"{loop['taken']} sent, {loop['late']} of them late because all users were busy, "
            became += f"{loop['unsent']} never"
        yield (
            f"an open loop: {loop['rate_per_s']:g} requests/s ({loop['kind']}{shape}) for {loop['run_time_s']:g} s, "
            f"at most {loop['users']} in flight; {became}"
        )
    if of := run.get("dataset"):
        how = "shuffled by the seed" if of["order"] == "shuffle" else "in the file's order"
        left_out = f"; fields that were not sent: {escape(', '.join(of['not_sent']))}" if of["not_sent"] else ""
        yield (
            f"prompts from {escape(of['file'])} (SHA-256 `{of['sha256'][:12]}…`): {of['lines']} lines, "
            f"{of['different_prompts']} different prompts, {how}, {of['drawn']} drawn{left_out}"
        )
    if shared := run.get("shared_prefix_tokens"):
        yield f"every prompt begins with the same {shared} tokens"
    for endpoint in run["endpoints"]:
        who = f"{escape(endpoint['config'])}: " if endpoint["config"] else ""
        yield f"{who}{escape(endpoint['url'])} ({escape(endpoint['protocol'])}){served_by(endpoint['info'] or {})}"
    yield f"measured with {escape(run['tool']['name'])} {escape(run['tool']['version'])}"
    if run["interrupted"]:
        yield "**the run was interrupted: it is not complete**"


def served_by(info: Mapping[str, Any]) -> str:
    """`: backend neuron, cores 24, batch size 4, …`, as far as an endpoint's /info says what runs its model."""
    backend = info.get("backend")
    if not isinstance(backend, Mapping) or not backend.get("name"):
        return ""
    said = {key: value for key, value in backend.items() if key not in ("name", "versions")}
    versions = backend.get("versions")
    said |= versions if isinstance(versions, Mapping) else {}
    parts = [f"{key.replace('_', ' ')} {json.dumps(value).strip(chr(34))}" for key, value in said.items()]
    return ": " + escape(", ".join([f"backend {backend['name']}", *parts]))


def _page(summary: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    for panel, picture in zip(panels(summary), pictures, strict=True):
        head, rows = panel_rows(panel)
        meaning = f"`{panel.metric}`: {DEFINITIONS[panel.metric].formula}."
        yield f"## {panel.title}\n\n![{panel.title}]({picture})\n\n{table(list(map(escape, head)), rows)}\n\n{meaning}"


def _cells(summary: Mapping[str, Any]) -> Iterator[str]:
    cells = summary["cells"]
    if not cells:
        return
    rows = [
        [
            escape(entry["label"]),
            *(quantiles(entry["metrics"].get(name)) for _, name in TIMES),
            output_rate(entry),
            f"{entry['samples']['failed']} of {entry['samples']['steady']}",
        ]
        for entry in cells
    ]
    yield (
        "## Every cell\n\np50 / p90 / p99 of complete requests in the steady phase. "
        f"{ABSENT}: fewer than {MIN_BEYOND} observations lie beyond that quantile.\n\n"
        + table(["cell", *(title for title, _ in TIMES), "output tokens/s", "failed"], rows)
    )
    failed = [
        [escape(entry["label"]), *(with_failures(entry["metrics"].get(name)) for _, name in FAILABLE)]
        for entry in cells
        if entry["samples"]["failed"]
    ]
    if failed:
        yield (
            "### With failures counted as infinitely slow\n\np50 / p90 / p99 of all requests (waves) of the steady "
            "phase, so that failing cannot flatter.\n\n" + table(["cell", *(title for title, _ in FAILABLE)], failed)
        )


def _clock(calibration: Mapping[str, Any] | None) -> Iterator[str]:
    rows = []
    for load in calibration["loads"] if calibration else []:
        errors = (quantiles({**load["errors"][name], "unit": "s"}, ("p50", "p99", "max")) for _, name in ERRORS)
        cpu = load["cpu_us_per_token"]
        rows.append(
            [escape(", ".join(load["cells"])), load_said(load["shape"]), *errors, f"{cpu:.0f} µs" if cpu else ABSENT]
        )
    if rows:
        head = ["cells", "their heaviest load, replayed", *(title for title, _ in ERRORS), "CPU per token"]
        yield (
            "## The client's own error\n\np50 / p99 / max of what this client measured less what really happened, on "
            "loopback without TLS, against a server that knows when it sent what. It is no part of any interval.\n\n"
            + table(head, rows)
        )


def _verdicts(verdicts: Mapping[str, Any]) -> str:
    phases = list(verdicts["by_phase"])
    rows = [
        [verdict, *(str(verdicts["by_phase"][phase].get(verdict, 0)) for phase in phases), str(n)]
        for verdict, n in verdicts["counts"].items()
    ]
    lines = [
        f"- **{verdict}** ({verdicts['counts'][verdict]}): {'; '.join(map(escape, said)) or 'no detail was given'}"
        for verdict, said in verdicts["details"].items()
    ]
    return "\n\n".join([table(["verdict", *phases, "all"], rows), *(["\n".join(lines)] if lines else [])])


def _definitions(summary: Mapping[str, Any]) -> str:
    shown = (
        {panel.metric for panel in panels(summary)}
        | {name for _, name in (*TIMES, *FAILABLE)}
        | {TOTAL_RATE, OUTPUT_RATE, "requests_per_s"}
    )
    used = {name for entry in summary["cells"] for name in entry["metrics"]} & shown
    rows = [[f"`{name}`", one.unit, one.formula] for name, one in DEFINITIONS.items() if name in used]
    return table(["metric", "unit", "formula"], rows, LEFT) + (
        "\n\nQuantiles interpolate linearly between order statistics (numpy's default). The 95 % CI of a median lies "
        "between two order statistics: with independent repetitions it holds the true median with a probability of at "
        "least 95 %, whatever their distribution. Outside waves the CI of a rate and of several users' medians is from "
        "blocks of the run (batch means). It says nothing about the client's error. TTFT ends at the first event with "
        "a token, reasoning included."
    )


def _settings(run: Mapping[str, Any]) -> str:
    rows = [[f"machine: {key}", ABSENT if value is None else escape(value)] for key, value in run["machine"].items()]
    rows += [[f"version: {escape(name)}", escape(version)] for name, version in sorted(run["versions"].items())]
    rows += [
        [f"option: {escape(name)}", escape(json.dumps(value))]
        for name, value in sorted(run["options"].items())
        if value not in (None, [])
    ]
    for endpoint in run["endpoints"]:
        who = f"endpoint {escape(endpoint['config'])}" if endpoint["config"] else "endpoint"
        info = endpoint["info"] or {}
        rows += [[f"{who}: {key}", escape(endpoint[key])] for key in ("url", "protocol", "command") if endpoint[key]]
        rows += [[f"{who} says: {escape(key)}", escape(json.dumps(value))] for key, value in info.items()]
    rows.append(["command", escape(shlex.join(run["command"]))])
    return table(["setting", "value"], rows, LEFT)
