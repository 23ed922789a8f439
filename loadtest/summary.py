"""`summarise` turns the samples of a run into the content of summary.json; every report is a rendering of that.

```
{"schema": 1, "run": "...", "plan": "published" | "to-1024" | null, "waves": 10 | null, "interrupted": false,
 "shared_prefix_tokens": 0,                                               what all synthetic prompts begin with
 "http2": false,                                                          nothing but HTTP/2 was spoken, as --http2 asks
 "cells": [{"cell": {"config", "slots", "concurrency", "input_tokens", "new_tokens", "dataset"}, "label": "T 256→768",
            "waves": {"counted", "failed", "unfinished"} | null,          null outside waves
            "samples": {"steady", "complete", "failed"},                  steady phase
            "verdicts": {"complete": 40, ...},                            steady phase
            "metrics": {name: METRIC},
            "blocks": {"n": 10, "each_s": 12.5 | null, "why": null} | null,    batch_means.py; why there are none: n = 0
            "itl": {"gaps", "gaps_of_several_tokens", "requests_with_fewer_events",
                    "histogram": false},                                 true: of 3 digits, above 10 million gaps
            "totals": {"wall_s", "input_tokens" | null, "new_tokens"},    wall: first scheduled start → last end
            "client": {"verdict", "saturated", "reasons", "limit_s", "lag_s", "lag_statistic", "lag_n", "hub_lag_p99_s",
                       "cpu"},
            "stream": {"token_events", "shared_read_share", "buffered"}, "off_plan": ["sentence", ...],
            "goodput": {"met", "of", "share", "missed": {"ttft": 3}, "not_complete", "goodput_rps" | null} | null,
            "split": SPLIT | null, "server": SERVER | null,              of each request: split/by_request.py
            "averages": AVERAGES | null,                                 of the server's metrics: split/averages.py
            "clocks": {"kernel": 40}, "transports": {"gevent": 40}, "counted_by": {"server": 40}}],
 "cold": [{"config", "label", "ttft_s" | null, "verdict"}],               first warm-up request of each configuration
 "goodput": {"objectives_s": {"ttft": 0.5}, "demanded_share": 0.95 | null} | null,        what --goodput asked for
 "missing": ["T 256→768", ...],                                           cells of the plan without a figure
 "lost": ["sentence", ...],                                               what didn't come of processes of the client
 "verdicts": {"n", "counts": {...}, "by_phase": {"warmup": {...}}, "details": {"timeout": ["first", ...]}},
 "client": {"verdict": "ok" | "suspect" | "saturated", "saturated": false, "reasons": ["L 256→1: ...", ...]},
 "calibration": {"loads": [CALIBRATED, ...], "reason"} | null,            run.json's: loadtest/calibrate/__init__.py
 "notes": ["sentence", ...]}
METRIC = {"unit", "n", "mean", "std", "min", "max", "p50", "p90", "p95", "p99",   a quantile is null where not printable
          "ci95_of_median": [low, high] | null,     of several users outside waves: from blocks
          "ci95_coverage": 0.9785 | null,           exact; null where it is from blocks
          "ci95_of_mean": [low, high] | null,       of a rate outside waves: from blocks
          "with_failures": {"n", "failed", "p50", "p90", "p95", "p99", "infinite": ["p99"]} | null}
```
A metric that is undefined for every request of the cell is left out. In `with_failures` a failed request (wave) counts
as infinitely slow; a quantile that is infinite is null and named in `infinite`. Only the steady phase enters figures:
warm-up, ramp and drain are in `verdicts` and, the first call of all, in `cold`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loadtest import batch_means, stats, trust
from loadtest.condensed import Condensed, Streams, condense
from loadtest.datasets import repeats
from loadtest.gaps import DIGITS, Gaps
from loadtest.goodput import demanded, goodput
from loadtest.plan import CONFIGS, NAMES, PLANS, Cell
from loadtest.sample import Sample
from loadtest.split.averages import averages
from loadtest.split.by_request import split, told

SCHEMA = 1
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
DETAILS = 3  # sentences kept of each verdict that is not `complete`


def distribution(
    name: str, values: stats.Values, *, failed: int | None = None, independent: bool = True
) -> dict[str, Any]:
    """METRIC of the docstring above. std is the sample's (n − 1). failed: None where failures have no place."""
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(values)
    interval = stats.median_interval(values) if independent else None
    beside = None
    if failed is not None:
        at = {p: stats.quantile_with_failures(values, failed, q) for p, q in QUANTILES.items()}
        infinite = [p for p, value in at.items() if value == math.inf]
        beside = {"n": n + failed, "failed": failed, **at, **dict.fromkeys(infinite), "infinite": infinite}
    return {
        "unit": stats.DEFINITIONS[name].unit,
        "n": n,
        "mean": float(ordered.mean()) if n else None,
        "std": float(ordered.std(ddof=1)) if n > 1 else None,
        "min": float(ordered[0]) if n else None,
        "max": float(ordered[-1]) if n else None,
        **{p: stats.quantile(values, q) for p, q in QUANTILES.items()},
        "ci95_of_median": [interval.low, interval.high] if interval else None,
        "ci95_coverage": interval.coverage if interval else None,
        "ci95_of_mean": None,
        "with_failures": beside,
    }


def pooled(name: str, gaps: Gaps) -> dict[str, Any]:
    """METRIC of pooled gaps; of a histogram where there are too many to keep (`itl.histogram` says so)."""
    if gaps.exact:
        return distribution(name, gaps.sorted_s()[0], independent=False)
    at = {p: q for p, q in QUANTILES.items() if stats.printable(gaps.n, q)}
    assert gaps.least_ns is not None
    assert gaps.most_ns is not None
    return {
        "unit": stats.DEFINITIONS[name].unit,
        "n": gaps.n,
        "mean": gaps.mean_s(),
        "std": gaps.std_s(),
        "min": gaps.least_ns / 1e9,
        "max": gaps.most_ns / 1e9,
        **dict.fromkeys(QUANTILES),
        **dict(zip(at, gaps.quantiles_s(list(at.values())).tolist(), strict=True)),
        "ci95_of_median": None,
        "ci95_coverage": None,
        "ci95_of_mean": None,
        "with_failures": None,
    }


def _metrics(
    steady: Sequence[Sample], gaps: Gaps, waves: stats.Waves | None, hosts: Mapping[int, str], open_loop: bool
) -> dict[str, Any]:
    """Every metric of one cell that is defined for at least one request, or that only failures keep from it.

    Gaps of one stream, and requests in flight together, wait for one another: they are not independent observations,
    and no interval is made of them. The waves themselves are, and blocks of requests (`_of_blocks`). Nor are one user's
    of an open loop: what is late makes the next late.
    """
    complete = [sample for sample in steady if sample.complete]
    alone = steady[0].cell.concurrency == 1 and not open_loop
    found = {}
    for name, metric in stats.OF_REQUESTS.items():
        values = [value for sample in complete if (value := metric(sample)) is not None]
        failed = len(steady) - len(complete) if name in stats.FAILABLE else None
        if values or failed:
            found[name] = distribution(name, values, failed=failed, independent=alone)
    if gaps.n:
        found["itl_s"] = pooled("itl_s", gaps)
    if lags := [lag for sample in steady if (lag := stats.lag_s(sample)) is not None]:
        found["lag_s"] = distribution("lag_s", lags, independent=False)
    if waves is None:
        found |= {name: distribution(name, [rate]) for name, rate in stats.rates(steady, hosts).items()}
    elif waves.counted or waves.failed:
        for name in ("encoding_time_s", "batch_latency_s"):
            found[name] = distribution(name, [getattr(wave, name) for wave in waves.counted], failed=waves.failed)
        for name in ("throughput_total_tokens_per_s", "throughput_output_tokens_per_s"):
            found[name] = distribution(name, [getattr(wave, name) for wave in waves.counted])
    return found


def _of_blocks(
    metrics: Mapping[str, dict[str, Any]], steady: Sequence[Sample], hosts: Mapping[int, str], open_loop: bool
) -> dict[str, Any]:
    """Puts the intervals that blocks give into a cell's metrics; returns its `blocks`."""
    try:
        found = batch_means.intervals(steady, hosts, open_loop)
    except batch_means.NoBlocks as error:
        return {"n": 0, "each_s": None, "why": str(error)}
    alone = steady[0].cell.concurrency == 1
    for name, interval in found.of.items():
        if name in batch_means.RATES and name in metrics:
            metrics[name]["ci95_of_mean"] = list(interval)
        elif name in stats.OF_REQUESTS and not alone:
            metrics[name]["ci95_of_median"] = list(interval)
    return {"n": found.blocks, "each_s": found.each_s, "why": None}


def _cell(
    cell: Cell,
    steady: Sequence[Sample],
    streams: Streams,
    hosts: Mapping[int, str],
    seen: Mapping[int, Mapping[str, Any]],
    names: Mapping[int, str],
    open_loop: bool,
) -> Any:
    complete = [sample for sample in steady if sample.complete]
    waves = stats.waves(steady, hosts) if steady[0].cell.wave is not None else None
    metrics = _metrics(steady, streams.gaps, waves, hosts, open_loop)
    named = asdict(cell)
    del named["wave"]
    return {
        "cell": named,
        "label": cell.label,
        "streamed": all(sample.streamed for sample in steady),
        "waves": waves and {"counted": len(waves.counted), "failed": waves.failed, "unfinished": waves.unfinished},
        "samples": {"steady": len(steady), "complete": len(complete), "failed": len(steady) - len(complete)},
        "verdicts": _counts(steady),
        "metrics": metrics,
        "blocks": _of_blocks(metrics, steady, hosts, open_loop) if waves is None else None,
        "itl": {
            "gaps": streams.gaps.n,
            "gaps_of_several_tokens": streams.several_tokens,
            "requests_with_fewer_events": streams.fewer_events,
            "histogram": not streams.gaps.exact,
        },
        "totals": stats.totals(steady, hosts),
        "client": trust.clients(steady, seen, names),
        "stream": trust.buffered(streams.token_events, streams.shared_reads),
        "off_plan": trust.off_plan(complete, cell),
        "split": split(complete),
        "server": told(complete),
        "clocks": dict(sorted(Counter(sample.clock for sample in complete).items())),
        "transports": dict(sorted(Counter(sample.transport for sample in complete).items())),
        "counted_by": dict(sorted(Counter(sample.got.counted_by for sample in complete).items())),
    }


def _counts(samples: Iterable[Sample]) -> dict[str, int]:
    return dict(sorted(Counter(str(sample.verdict) for sample in samples).items()))


def _verdicts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts over all phases: a request that failed in the warm-up failed too."""
    phases: dict[str, list[Sample]] = defaultdict(list)
    details: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        phases[sample.phase].append(sample)
        kept = details[str(sample.verdict)] if not sample.complete else []
        if sample.detail and sample.detail not in kept and len(kept) < DETAILS:
            kept.append(sample.detail)
    return {
        "n": len(samples),
        "counts": _counts(samples),
        "by_phase": {phase: _counts(members) for phase, members in sorted(phases.items())},
        "details": dict(sorted(details.items())),
    }


def _cold(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    first: dict[str | None, Sample] = {}
    for sample in samples:
        if sample.phase == "warmup":
            first.setdefault(sample.cell.config, sample)
    return [
        {"config": name, "label": s.cell.label, "ttft_s": stats.ttft_s(s), "verdict": str(s.verdict)}
        for name, s in sorted(first.items(), key=lambda item: item[0] or "")
    ]


def _missing(cells: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> list[str]:
    """Cells of the plan, in the configurations the run was to measure, without one counted wave."""
    if run["plan"] is None:
        return []
    have = {entry["label"] for entry in cells if entry["waves"] and entry["waves"]["counted"]}
    grid = [cell.label for name in run["configs"] for cell in PLANS[run["plan"]].cells(CONFIGS[name], None)]
    return [label for label in grid if label not in have]


def _notes(cells: Sequence[Mapping[str, Any]], run: Mapping[str, Any], missing: Sequence[str], hosts: set[str]) -> Any:
    if run["interrupted"]:
        yield "the run was interrupted"
    if missing:
        yield "cells of the plan without a figure: " + ", ".join(missing)
    if not cells:
        yield "no request was made in the steady phase: there is no figure"
    if len(hosts) > 1:
        yield f"requests came from {len(hosts)} machines: rates are sums of each machine's own, no instants are mixed"
    for entry in cells:
        waves, label = entry["waves"], entry["label"]
        if entry["samples"]["complete"] and waves is None and "throughput_total_tokens_per_s" not in entry["metrics"]:
            yield f"{label}: nobody counted the prompts' tokens, so there is no total throughput"
        if waves and run["waves"] is not None and waves["counted"] < run["waves"]:
            left_out = f"{waves['failed']} failed, {waves['unfinished']} unfinished"
            yield f"{label}: {waves['counted']} of {run['waves']} waves count ({left_out})"
        if fewer := entry["itl"]["requests_with_fewer_events"]:
            yield (
                f"{label}: {fewer} complete requests had another number of token events than of tokens by the server's "
                "count: their ITL is between events"
            )
        if entry["itl"]["histogram"]:
            yield (
                f"{label}: quantiles of its {entry['itl']['gaps']:,} gaps are from a histogram of {DIGITS} digits: "
                "within 0.5 %"
            )
        if several := entry["itl"]["gaps_of_several_tokens"]:
            yield f"{label}: {several} of {entry['itl']['gaps']} gaps end in an event of several tokens"


def summarise(samples: Iterable[Sample] | Condensed, run: Mapping[str, Any]) -> dict[str, Any]:
    """The content of summary.json. samples: in any order. run: the content of run.json (`run.schema.json`)."""
    condensed = samples if isinstance(samples, Condensed) else condense(samples)
    streams = condensed.streams
    # Sorted: neither a sum in floating point nor the first call may depend on the order of the file.
    started = {each["process"]: each["start"]["wall_ns"] - each["start"]["mono_ns"] for each in run["processes"]}
    samples = sorted(condensed.samples, key=lambda each: (each.scheduled_ns + started.get(each.process, 0), each.id))
    hosts = {process["process"]: process["host"] for process in run["processes"]}
    names = {each["process"]: f"process {each['process']} ({each['host']}, {each['pid']})" for each in run["processes"]}
    seen: dict[Any, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for entry in sorted(
        run["client"], key=lambda entry: trust.loop_lag(entry)[0] or 0
    ):  # the worst of a process stands
        seen[tuple(entry[key] for key in NAMES)][entry.get("process", 0)] = entry
    groups: dict[Cell, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.phase == "steady":
            groups[sample.cell.in_wave(None)].append(sample)
    demand = demanded(run.get("options", {}))
    cells = [
        _cell(
            cell,
            steady,
            streams.get(cell) or Streams(),
            hosts,
            seen[tuple(cell.named().values())],
            names,
            bool(run.get("open_loop")),
        )
        | {"goodput": demand and goodput(steady, hosts, demand["objectives_s"])}
        for cell, steady in sorted(groups.items(), key=lambda item: _reading_order(item[0]))
    ]
    for entry in cells:
        entry["averages"] = averages(entry["cell"], samples, run.get("server_metrics", []))
    calibration = run.get("calibration")
    for load in calibration["loads"] if calibration else []:
        _doubt_the_clock([entry for entry in cells if entry["label"] in load["cells"]], load["errors"])
    missing = _missing(cells, run)
    lost = (run.get("distributed") or {}).get("missing", [])
    used = {hosts.get(sample.process, "") for sample in samples}
    return {
        "schema": SCHEMA,
        "run": run["run"],
        "plan": run["plan"],
        "waves": run["waves"],
        "interrupted": run["interrupted"],
        "shared_prefix_tokens": run.get("shared_prefix_tokens", 0),
        "http2": bool(run.get("options", {}).get("http2")),
        "cells": cells,
        "cold": _cold(samples),
        "goodput": demand,
        "missing": missing,
        "lost": lost,
        "verdicts": _verdicts(samples),
        "client": trust.worst_of([(entry["label"], entry["client"]) for entry in cells]),
        "calibration": calibration,
        "notes": [
            *_notes(cells, run, missing, used),
            *lost,
            *_resumed(groups, run),
            *_repeats(samples, run),
            *_edges(samples),
        ],
    }


def _doubt_the_clock(cells: Iterable[dict[str, Any]], errors: Mapping[str, Any]) -> None:
    """A calibrated error that is a good part of a cell's medians makes its client suspect, where it isn't worse."""
    for entry in cells:
        client = entry["client"]
        if not client["saturated"] and (said := trust.imprecise(errors, entry["metrics"])):
            client |= {"verdict": trust.SUSPECT, "reasons": [*client["reasons"], *said]}


def _resumed(groups: Mapping[Cell, Sequence[Sample]], run: Mapping[str, Any]) -> Iterator[str]:
    """When a run went on, and which cells have waves of several processes; none has a wave of two."""
    for again in run.get("resumed", ()):
        cut = f"; half a last line, {again['cut_bytes']} bytes, was cut off before" if again["cut_bytes"] else ""
        elsewhere = f", on another machine ({again['machine']['platform']})" if again["machine"] else ""
        yield f"the run was interrupted and went on at {again['at']} as process {again['process']}{elsewhere}{cut}"
    parts = {
        cell.label: count
        for cell, steady in sorted(groups.items(), key=lambda item: _reading_order(item[0]))
        if run["plan"] and (count := len({sample.process for sample in steady})) > 1
    }
    if parts:
        yield "measured in parts, with a pause between: " + ", ".join(f"{name} ({n})" for name, n in parts.items())


def _repeats(samples: Sequence[Sample], run: Mapping[str, Any]) -> Iterator[str]:
    """Requests of all phases: one of the warm-up fills a cache too."""
    if (of := run.get("dataset")) and (said := repeats(len(samples), of["lines"], of["different_prompts"])):
        yield said


def _edges(samples: Iterable[Sample]) -> Iterator[str]:
    """A closed loop's rates leave out requests of warm-up, ramp and drain that ran in the same wall."""
    phases = Counter(sample.phase for sample in samples if sample.cell.wave is None)
    counted = phases.pop("steady", 0)
    if counted and (edges := sum(phases.values())) > EDGES_WORTH_A_NOTE * counted:
        yield (
            f"{edges} requests of warm-up, ramp and drain shared the wall with the {counted} that count: rates read "
            "low, and the longest requests are missing from the quantiles; a longer run makes both smaller"
        )


EDGES_WORTH_A_NOTE = 0.05


def _reading_order(cell: Cell) -> tuple[Any, ...]:
    """By configuration, then encoding cells, then by length: the order of the plan."""
    return (
        cell.config or "",
        cell.slots or 0,
        cell.concurrency,
        cell.new_tokens != 1,
        cell.input_tokens or 0,
        cell.new_tokens or 0,
        cell.dataset or "",
    )
