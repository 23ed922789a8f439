"""boto3 against our own transports on a SageMaker endpoint: how wrong is each one's TTFT, and what does a request cost?

    python benchmarks/sagemaker.py                 # 1, 20 and 100 users, three runs each, medians; some minutes

A stand-in of the runtime (tests/sagemaker_runtime.py) checks signatures and frames the stream, in front of a server of
known schedule; both on core 0, the client on core 1. Error of a TTFT = (client's first token − the stand-in's send of
the first part) + (the stand-in's receipt − client's `started`), paired by inference id. So the stand-in's own slowness,
and that of what is behind it, is in no error. boto3's `started` is before its signing: the client's own work is part of
what a program that uses it waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.truth import truth
from tests.loadtest.sagemaker_fixtures import runtime

ROOT = Path(__file__).parents[1]
CLIENTS = ("gevent", "httpx", "boto3")
TOKENS = 20
SECONDS = 6


def measure(client: str, users: int) -> dict[str, float]:
    """Milliseconds, and CPU milliseconds a request."""
    os.sched_setaffinity(0, {0})
    with truth(first=0.1, gap=0.02) as container, runtime(container.url) as aws, TemporaryDirectory() as results:
        command = [sys.executable, "-m", "loadtest", "run", "--url", "sagemaker://good", "--transport", client]
        sizes = ["-u", str(users), "-t", f"{SECONDS}s", "--input-tokens", "8", "--new-tokens", str(TOKENS)]
        done = subprocess.run(
            [*command, "--no-calibrate", *sizes, "--results", results],
            cwd=ROOT,
            env={**os.environ, **aws.environ()},
            preexec_fn=lambda: os.sched_setaffinity(0, {1}),
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(done.stderr[-2000:])
        (folder,) = Path(results).iterdir()
        samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        records = {record["headers"].get("x-amzn-sagemaker-inference-id"): record for record in aws.records()}
        (seen,) = json.loads((folder / "run.json").read_text())["client"]
    errors = []
    for sample in samples:
        record = records[sample["id"]]
        if sample["verdict"] == "complete" and sample["phase"] != "warmup":
            sent = record["sends"][0][0] - record["received_ns"]
            errors.append((sample["events"][0][0] - sample["started_ns"] - sent) / 1e6)
    wall_s = (max(s["ended_ns"] for s in samples) - min(s["scheduled_ns"] for s in samples)) / 1e9
    return {
        "requests": len(samples),
        "p50": float(np.quantile(errors, 0.5)),
        "p99": float(np.quantile(errors, 0.99)),
        "cpu_ms": seen["cpu"] * wall_s / len(samples) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 20, 100])
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    print(
        "| users | client | requests | TTFT error p50 / p99, ms | CPU ms a request |\n|---|---|---|---|---|", flush=True
    )
    for users in asked.users:
        runs: dict[str, list[dict[str, float]]] = {client: [] for client in CLIENTS}
        for _ in range(asked.runs):
            for client in CLIENTS:  # by turns, so that the machine's moods hit all of them
                runs[client].append(measure(client, users))
        for client in CLIENTS:
            requests, p50, p99, cpu_ms = (
                statistics.median(run[name] for run in runs[client]) for name in ("requests", "p50", "p99", "cpu_ms")
            )
            print(f"| {users} | {client} | {requests:.0f} | {p50:.2f} / {p99:.2f} | {cpu_ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
