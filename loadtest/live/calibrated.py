"""How wrong the client's clock is, as the newest calibrated run on this machine found it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

NEWEST = 20  # folders that are looked at
METRICS = {"ttft_s": "ttft", "itl_s": "itl", "latency_s": "e2e"}
QUANTILES = {"p50": "0.5", "p99": "0.99", "max": "1"}


class Calibrated(NamedTuple):
    metric: str  # ttft | itl | e2e
    quantile: str
    concurrency: int  # requests in flight when it was calibrated
    error_s: float


def newest(results: Path) -> Sequence[Calibrated]:
    """Of the newest run below `results` that has one and was made by this host; empty where there is none."""
    folders = sorted((path.parent for path in results.glob("*/run.json")), reverse=True)  # names begin with the date
    found = (list(_of_run(folder / "run.json")) for folder in islice(folders, NEWEST))
    return next((errors for errors in found if errors), [])


def _of_run(path: Path) -> Iterator[Calibrated]:
    try:
        run = json.loads(path.read_bytes())
        if run["processes"][0]["host"] != socket.gethostname() or not run["calibration"]:
            return
        for load in run["calibration"]["loads"]:
            for name, metric in METRICS.items():
                for statistic, quantile in QUANTILES.items():
                    if (error_s := load["errors"][name][statistic]) is not None:
                        yield Calibrated(metric, quantile, int(load["shape"]["concurrency"]), float(error_s))
    except (OSError, ValueError, LookupError, TypeError):  # another version's, or cut off: a run isn't stopped by that
        return
