"""The client's own error in words, as a terminal, a report and `tokenclock calibrate` say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadtest.report.numbers import quantity

ERRORS = (("TTFT", "ttft_s"), ("gaps", "itl_s"), ("end-to-end", "latency_s"))


def calibrated_said(calibration: Mapping[str, Any] | None) -> str:
    """A clause. calibration: run.json's."""
    if calibration is None:
        return "not calibrated in this run"
    said = [
        f"at {_share(load)}{load_said(load['shape'])}: {errors_said(load['errors'])}{_but(load)}"
        for load in calibration["loads"]
    ]
    if calibration["reason"] is not None:
        said.append(f"{'no more' if said else 'not'} calibrated in this run: {calibration['reason']}")
    return ("calibrated on loopback " if calibration["loads"] else "") + "; ".join(said)


def _share(load: Mapping[str, Any]) -> str:
    """Of a load that several processes shared, what each had."""
    if "processes" not in load:
        return ""
    return f"the share of each of {load['processes']} processes at once, process {load['process']} the worst, "


def _but(load: Mapping[str, Any]) -> str:
    """What makes these errors those of another load, or not the client's alone."""
    reasons = []
    if not load["schedule_kept"]:
        reasons.append("the truth server fell behind, so the load was lighter")
    if load["server_stamps"] < 1:
        reasons.append("without kernel stamps at the truth server, whose own delay is in them")
    return f" ({'; '.join(reasons)})" if reasons else ""


def load_said(shape: Mapping[str, Any]) -> str:
    """`4 in flight, TTFT 200 ms, 20 ms gaps, 128 tokens`."""
    gap = f", {quantity(shape['gap_s'], 's', 3)} gaps" if shape["tokens"] > 1 else ""
    least = f" of {shape['event_bytes']} bytes or more" if shape["event_bytes"] else ""
    streams = f"TTFT {quantity(shape['first_s'], 's', 3)}{gap}, {_several(shape['tokens'], 'token')}{least}"
    if loop := shape["arrivals"]:
        return f"{loop['rate_per_s']:.4g} requests/s ({loop['kind']}), {streams}"
    return f"{shape['concurrency']} in flight{', in waves' if shape['in_waves'] else ''}, {streams}"


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def errors_said(errors: Mapping[str, Any]) -> str:
    """`TTFT p99 0.05 ms, gaps p99 0.04 ms, end-to-end max 0.07 ms`: p99, or the largest where there are too few."""
    parts = []
    for title, name in ERRORS:
        value, which = at_most(errors[name])
        if value is not None:
            parts.append(f"{title} {which} {quantity(value, 's', 3)}")
    return ", ".join(parts)


def at_most(error: Mapping[str, Any]) -> tuple[float | None, str]:
    """The error of a figure in one number, and which it is: the p99, or the largest where there are too few."""
    return (error["p99"], "p99") if error["p99"] is not None else (error["max"], "max")
