"""The verdict line: how fast, how far to trust it, and what limited it, of the cell with the most output tokens/s.

Sentences are Markdown, as those of `doubts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.report.escaping import escape
from loadtest.report.numbers import centre, quantity, rate, with_interval
from loadtest.report.text import OUTPUT_RATE
from loadtest.trust import SATURATED, SUSPECT

Entry = Mapping[str, Any]
Summary = Mapping[str, Any]
TOTAL_RATE = "throughput_total_tokens_per_s"
SOUND, DOUBTED, UNSOUND = "sound", "with reservations", "not to be trusted"
QUEUED = 0.25  # share of the mean TTFT from which the queue is what a first token waits for


@dataclass(frozen=True, slots=True)
class Headline:
    """fast, total, first: texts with their units and intervals; None where there is no such figure."""

    label: str
    users: str  # `4 at once`, of an open loop `at most 64 at once`
    fast: str | None
    total: str | None
    requests: str | None
    first: str | None
    gap: str | None
    trust: str  # SOUND | DOUBTED | UNSOUND
    reasons: tuple[str, ...]
    limits: tuple[str, ...]


def headline(summary: Summary, run: Mapping[str, Any]) -> Headline | None:
    """None where no cell has a complete request."""
    cells = [entry for entry in summary["cells"] if entry["samples"]["complete"]]
    if not cells:
        return None
    entry = max(cells, key=_rate)
    metrics = entry["metrics"]
    against = tuple(_against(summary))
    reservations = tuple(_reservations(summary))
    return Headline(
        label=entry["label"],
        users=f"{'at most ' if run.get('open_loop') else ''}{entry['cell']['concurrency']} at once",
        fast=_rate_said(entry, OUTPUT_RATE, "output tokens/s"),
        total=_rate_said(entry, TOTAL_RATE, "tokens/s"),
        requests=_rate_said(entry, "requests_per_s", "requests/s"),
        first=_time_said(metrics.get("ttft_s")),
        gap=_time_said(metrics.get("itl_s")),
        trust=UNSOUND if against else DOUBTED if reservations else SOUND,
        reasons=against + reservations,
        limits=tuple(_limits(entry, summary, run)),
    )


def _rate(entry: Entry) -> float:
    metric = entry["metrics"].get(OUTPUT_RATE)
    return (centre(metric)[0] or 0.0) if metric else 0.0


def _rate_said(entry: Entry, name: str, unit: str) -> str | None:
    """Of waves the median, of a free run the rate; each with its interval."""
    metric = entry["metrics"].get(name)
    if metric is None or not metric["n"]:
        return None
    said = with_interval(metric) if entry["waves"] is not None else rate(metric)
    return said.replace(metric["unit"], unit, 1)


def _time_said(metric: Mapping[str, Any] | None) -> str | None:
    if metric is None or not metric["n"]:
        return None
    return ("median " if centre(metric)[1] == "median" else "") + with_interval(metric)


def _against(summary: Summary) -> Iterator[str]:
    if summary["client"]["verdict"] == SATURATED:
        yield "the client, this load tester, was saturated: the figures are in part its own"
    if summary["interrupted"]:
        yield "the run was interrupted"
    yield from summary["lost"]


def _reservations(summary: Summary) -> Iterator[str]:
    failed = summary["verdicts"]["n"] - summary["verdicts"]["counts"].get("complete", 0)
    if failed:
        yield f"{failed:,} of {summary['verdicts']['n']:,} requests were not complete"
    if summary["client"]["verdict"] == SUSPECT:
        yield "the client, this load tester, is suspect: what it may have added is said below"
    for what, said in (("stream was buffered", _buffered), ("requests were off plan", _off_plan)):
        if labels := [entry["label"] for entry in summary["cells"] if said(entry)]:
            yield f"the {what} ({_few(labels)})"
    if summary["missing"]:
        yield f"{len(summary['missing'])} cells of the plan are missing"
    if not (summary["calibration"] or {}).get("loads"):
        yield "the client's own error was not measured"


def _buffered(entry: Entry) -> bool:
    return bool(entry["stream"]["buffered"])


def _off_plan(entry: Entry) -> bool:
    return bool(entry["off_plan"])


def _few(labels: list[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def _limits(entry: Entry, summary: Summary, run: Mapping[str, Any]) -> Iterator[str]:
    """What the time of this cell's requests went into, as far as it was seen."""
    if summary["client"]["verdict"] == SATURATED:
        yield "the client: it was late by more than the figures can bear"
    if refused := summary["verdicts"]["counts"].get("overloaded"):
        yield f"the endpoint was full: it refused {refused:,} requests"
    if (loop := run.get("open_loop")) and loop["late"]:
        yield (
            f"the endpoint could not keep up with {loop['rate_per_s']:g} requests/s: {loop['late']:,} of "
            f"{loop['taken']:,} found all {loop['users']:,} users busy"
        )
    ttft, latency = (entry["metrics"].get(name, {}).get("mean") for name in ("ttft_s", "latency_s"))
    if ttft is not None and latency and entry["itl"]["gaps"]:
        gap = entry["metrics"].get("itl_s", {}).get("mean")
        yield (
            f"of a request's {quantity(latency, 's', 3)}, {100 * ttft / latency:.0f} % passed before its first token "
            f"and {100 * (1 - ttft / latency):.0f} % between tokens ({quantity(gap, 's', 3)} each, on average)"
        )
    split = entry.get("split")
    if split and split["of"] == "ttft_s" and split["parts"].get("queue_s", 0.0) > QUEUED * split["mean_s"] > 0:
        share = 100 * split["parts"]["queue_s"] / split["mean_s"]
        yield f"of the time to first token, {share:.0f} % in the server's queue: for a slot, or behind other prompts"


def sentences(found: Headline | None) -> Iterator[str]:
    """`## In short` of report.md."""
    if found is None:
        yield "**No request was complete**: there is no figure."
        return
    fast = [text for text in (found.fast, found.total and f"{found.total} with the prompts", found.requests) if text]
    yield f"**How fast**: {'; '.join(fast) or 'no rate'}, in {escape(found.label)} ({found.users}), the fastest cell."
    first = [f"first token after {found.first}"] if found.first else []
    first += [f"gaps between tokens of {found.gap}"] if found.gap else []
    if first:
        yield f"**How soon**, there: {'; '.join(first)}."
    reasons = "; ".join(map(escape, found.reasons)) or "nothing speaks against the figures"
    yield f"**How far to trust it**: {found.trust}: {reasons}."
    if found.limits:
        yield f"**What limited it**: {'; '.join(map(escape, found.limits))}."
