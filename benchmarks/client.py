"""How wrong each client's clock is, at the same load, in one run: ours on three transports, vLLM's pattern on aiohttp.

    python benchmarks/client.py                     # every load, three runs each, medians; about 15 minutes
    python benchmarks/client.py --load 256 --runs 1 --client gevent aiohttp

A truth server of known schedule runs on core 0 and stamps just before each send; the client, with all that it starts,
on core 1. Instants are CLOCK_MONOTONIC of one machine, so they compare.

Errors are computed as by `tokenclock calibrate` (loadtest/calibrate/errors.py), paired by id: of a TTFT (client's first
token − server's send) + (server's receive − client's `started`); of a gap client's − server's, the p99 of its absolute
value.
CPU per token is the client process's, start-up and report left out. `all` has the opening burst, `steady` has not.
Of offered: tokens that arrived from the first request's end to the last one's begin, while every stream was kept busy,
of those that the server's schedule has for so many streams. tokens/s is of the whole run, its begin and end included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from loadtest.calibrate.errors import cpu_us_per_token, gap_errors_s, pair, ttft_error_s
from loadtest.truth.process import truth

ROOT = Path(__file__).parents[1]
PEER = ROOT / "benchmarks" / "peers" / "vllm_pattern.py"
CLIENTS = ("gevent", "httpx", "huggingface_hub", "aiohttp")
INPUT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Load:
    streams: int
    first_s: float  # until a request's first token
    gap_s: float
    tokens: int
    seconds: int  # how long requests are begun

    @property
    def offered_tokens_per_s(self) -> float | None:
        """While every stream is in its gaps; None where the server sends as fast as it can."""
        if not self.gap_s:
            return None
        return self.streams * self.tokens / (self.first_s + (self.tokens - 1) * self.gap_s)


LOADS = {
    "256": Load(256, 0.2, 0.02, 128, 12),
    "512": Load(512, 0.2, 0.02, 128, 12),
    "1024": Load(1024, 0.2, 0.02, 128, 12),
    "drain": Load(16, 0.0, 0.0, 2048, 6),
}
HEAD = (
    "client",
    "tokens/s",
    "of offered",
    "µs CPU/token",
    "TTFT err p50 / p99, all",
    "steady p50 / p99",
    "started − scheduled p99",
    "gap err p99",
    "kernel stamps",
)


def on_core_1(command: Sequence[str]) -> None:
    done = subprocess.run(
        [*command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {1}),
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


def ours(transport: str, load: Load, url: str, folder: Path) -> tuple[list[dict[str, Any]], float, float]:
    """Samples as `tokenclock run` wrote them, the wall and the CPU of its load window."""
    command = [sys.executable, "-m", "loadtest", "run", "--url", url, "--transport", transport]
    sizes = ["-u", str(load.streams), "-t", f"{load.seconds}s", "--new-tokens", str(load.tokens)]
    sizes += ["--input-tokens", str(INPUT_TOKENS), "--results", str(folder), "--timeout", "10m"]
    on_core_1([*command, "--no-calibrate", *sizes])
    (run,) = folder.iterdir()
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (client,) = json.loads((run / "run.json").read_text())["client"]
    wall_s = (max(s["ended_ns"] for s in samples) - min(s["scheduled_ns"] for s in samples)) / 1e9
    return samples, wall_s, client["cpu"] * wall_s


def peer(load: Load, url: str, folder: Path) -> tuple[list[dict[str, Any]], float, float]:
    out = folder / "samples.jsonl"
    sizes = [str(each) for each in (load.streams, load.seconds, INPUT_TOKENS, load.tokens)]
    on_core_1([sys.executable, str(PEER), url, *sizes, str(out)])
    *lines, last = map(json.loads, out.read_text().splitlines())
    samples = [{**line, "events": [[t, 1, i] for i, t in enumerate(line["events"])], "clock": "user"} for line in lines]
    return samples, last["wall_s"], last["cpu_s"]


def figures(
    samples: list[dict[str, Any]], truths: dict[str, dict[str, Any]], wall_s: float, cpu_s: float
) -> dict[str, float]:
    """Milliseconds where the name says so. Only whole streams are paired; the others count as missing tokens."""
    ttft: dict[str, list[float]] = {"all": [], "steady": []}
    gaps: list[float] = []
    late: list[float] = []
    tokens = in_window = 0
    window = min(s["events"][-1][0] for s in samples if s["events"]), max(s["scheduled_ns"] for s in samples)
    for sample in samples:
        tokens += len(sample["events"])
        in_window += sum(window[0] <= t <= window[1] for t, _, _ in sample["events"])
        seen = pair(sample["started_ns"], [t for t, _, _ in sample["events"]], truths.get(sample["id"]))
        if seen is None:
            continue
        error = ttft_error_s(seen) * 1e3
        ttft["all"].append(error)
        if sample["phase"] != "warmup":
            ttft["steady"].append(error)
            late.append((sample["started_ns"] - sample["scheduled_ns"]) / 1e6)
        gaps += [abs(error_s) * 1e3 for error_s in gap_errors_s(seen)]
    return {
        "tokens_per_s": tokens / wall_s,
        "window_tokens_per_s": in_window / (window[1] - window[0]) * 1e9,
        "cpu_us": cpu_us_per_token(cpu_s, tokens) or float("nan"),
        "ttft_all_p50": quantile(ttft["all"], 0.5),
        "ttft_all_p99": quantile(ttft["all"], 0.99),
        "ttft_steady_p50": quantile(ttft["steady"], 0.5),
        "ttft_steady_p99": quantile(ttft["steady"], 0.99),
        "late_p99": quantile(late, 0.99),
        "gap_p99": quantile(gaps, 0.99),
        "kernel": sum(sample["clock"] == "kernel" for sample in samples) / len(samples),
        "whole": len(ttft["all"]) / len(truths),
    }


def quantile(values: Iterable[float], q: float) -> float:
    values = np.asarray(list(values))
    return float(np.quantile(values, q)) if values.size else float("nan")


def measure(client: str, load: Load) -> dict[str, float]:
    with (
        truth(cpu=0, first=load.first_s, gap=load.gap_s, tokens_default=load.tokens) as server,
        TemporaryDirectory() as made,
    ):
        folder = Path(made)
        found = peer(load, server.url, folder) if client == "aiohttp" else ours(client, load, server.url, folder)
        truths = {record["request_id"]: record for record in server.records()}
    return figures(found[0], truths, *found[1:])


def row(client: str, load: Load, runs: list[dict[str, float]]) -> list[str]:
    def middle(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    offered = load.offered_tokens_per_s
    return [
        client,
        f"{middle('tokens_per_s'):,.0f}",
        f"{middle('window_tokens_per_s') / offered:.1%}" if offered else "–",
        f"{middle('cpu_us'):.0f}",
        f"{middle('ttft_all_p50'):.2f} / {middle('ttft_all_p99'):.2f}",
        f"{middle('ttft_steady_p50'):.2f} / {middle('ttft_steady_p99'):.2f}",
        f"{middle('late_p99'):.2f}",
        f"{middle('gap_p99'):.2f}",
        f"{middle('kernel'):.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one core for the server and one for the client are needed")
    for name in asked.load:
        load = LOADS[name]
        print(
            f"\n## {load.streams} streams, {f'{load.gap_s * 1e3:g} ms gaps' if load.gap_s else 'as fast as it can'}\n"
        )
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
        runs: dict[str, list[dict[str, float]]] = {client: [] for client in asked.client}
        for _ in range(asked.runs):
            for client in asked.client:  # by turns, so that the machine's moods hit all of them
                runs[client].append(measure(client, load))
        for client in asked.client:
            print(f"| {' | '.join(row(client, load, runs[client]))} |", flush=True)


if __name__ == "__main__":
    main()
