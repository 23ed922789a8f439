"""How a load grows with processes: tokens/s and the client's error against their number, and what the master costs.

    python benchmarks/scale.py                            # 1 and 2 processes, three runs each, medians; 5 minutes
    python benchmarks/scale.py --processes 1 2 4 --streams 256 --runs 1

A truth server of known schedule runs on core 0, and all of the client on the others: the processes and their master
share them, as the row says. `each`: every process has --streams streams, so the load grows with them. `shared`: all
have --streams streams between them, so the load stays. Errors are computed as in benchmarks/client.py. µs CPU/token
is the workers' sum over all tokens; µs CPU/sample is what the master takes for a sample that arrives, from its own
/proc entry, between the first sample and the end of the time.

What comes after the table is computed, not measured: as many processes as there are cores, each with the load of the
row of one process, until the master's core is full. It holds where each process has a core of its own and the endpoint
keeps up; the rows show how far that was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks.client import INPUT_TOKENS, Load, figures  # noqa: E402
from loadtest.truth.process import truth  # noqa: E402

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.2
HEAD = (
    "load",
    "processes",
    "on cores",
    "streams",
    "tokens/s",
    "of offered",
    "µs CPU/token",
    "TTFT err steady p50 / p99",
    "gap err p99",
    "started − scheduled p99",
    "master µs CPU/sample",
)


def run(load: Load, processes: int, url: str, results: Path) -> tuple[Path, float]:
    """(folder, CPU seconds that the master took for its samples)."""
    cores = set(range(1, os.cpu_count() or 1))
    command = [sys.executable, "-m", "loadtest", "run", "--url", url, "--processes", str(processes), "--no-calibrate"]
    command += ["-u", str(load.streams), "-t", f"{load.seconds}s", "--new-tokens", str(load.tokens), "--timeout", "10m"]
    command += ["--input-tokens", str(INPUT_TOKENS), "--results", str(results), "--allow", "saturated"]
    seen: list[float] = []
    with (results.parent / "said").open("w+") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            stdout=said,
            stderr=said,
        )
        end_s = 0.0
        while process.poll() is None:
            if any(path.stat().st_size for path in results.glob("*/samples.jsonl")):
                end_s = end_s or time.monotonic() + load.seconds
                if time.monotonic() < end_s:
                    seen.append(cpu_s(process.pid))
            time.sleep(POLL_S)
        said.seek(0)
        if process.returncode not in (0, 1):
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-2000:]}")
    (folder,) = results.iterdir()
    return folder, seen[-1] - seen[0]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def measure(load: Load, processes: int) -> dict[str, float]:
    with (
        truth(cpu=0, first=load.first_s, gap=load.gap_s, tokens_default=load.tokens) as server,
        TemporaryDirectory() as made,
    ):
        results = Path(made) / "results"
        results.mkdir()
        folder, master_s = run(load, processes, server.url, results)
        samples: list[dict[str, Any]] = [json.loads(line) for line in (folder / "samples.jsonl").open()]
        about = json.loads((folder / "run.json").read_text())
        truths = {record["request_id"]: record for record in server.records()}
    assert about["distributed"]["missing"] == []
    assert {sample["id"] for sample in samples} == set(truths), "every request once"
    wall_s = (max(s["ended_ns"] for s in samples) - min(s["scheduled_ns"] for s in samples)) / 1e9
    found = figures(samples, truths, wall_s, sum(entry["cpu"] for entry in about["client"]) * wall_s)
    while_running = sum(s["ended_ns"] < min(s["scheduled_ns"] for s in samples) + load.seconds * 1e9 for s in samples)
    return {**found, "master_us": master_s / max(while_running, 1) * 1e6, "samples_per_s": len(samples) / wall_s}


def row(name: str, load: Load, processes: int, found: dict[str, float]) -> list[str]:
    return [
        name,
        str(processes),
        str((os.cpu_count() or 1) - 1),
        str(load.streams),
        f"{found['tokens_per_s']:,.0f}",
        f"{found['window_tokens_per_s'] / (load.offered_tokens_per_s or 1):.1%}",
        f"{found['cpu_us']:.0f}",
        f"{found['ttft_steady_p50']:.2f} / {found['ttft_steady_p99']:.2f}",
        f"{found['gap_p99']:.2f}",
        f"{found['late_p99']:.2f}",
        f"{found['master_us']:.0f}",
    ]


def beyond(alone: dict[str, float], load: Load) -> str:
    """How it would go on: a core for each process, until the master has no more to give."""
    core = alone["cpu_us"] * alone["window_tokens_per_s"] / 1e6
    most = 1e6 / alone["master_us"] / alone["samples_per_s"] if alone["master_us"] else float("inf")
    lines = [
        f"\nOne process carries {alone['window_tokens_per_s']:,.0f} tokens/s with {core:.0%} of a core. Each further",
        "one, on a core of its own, should carry as much with the same error:",
        *(
            f"  {n:3d} processes: {n * alone['window_tokens_per_s']:10,.0f} tokens/s"
            for n in (4, 8, 16, 32)
            if n < most
        ),
        f"until the master's core is full of samples, of {load.tokens} tokens each: {most:,.0f} processes.",
        "Computed, not measured: see the head of this file.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one core for the server and one for the client are needed")
    kinds = [("each", n, asked.streams * n) for n in asked.processes]
    kinds += [("shared", n, asked.streams) for n in asked.processes if n > 1]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    loads = {(kind, n): Load(streams, 0.2, 0.02, 128, asked.seconds) for kind, n, streams in kinds}
    for _ in range(asked.runs):
        for key, load in loads.items():  # by turns, so that the machine's moods hit all of them
            runs.setdefault(key, []).append(measure(load, key[1]))
    middle = {
        key: {name: statistics.median(run[name] for run in found) for name in found[0]} for key, found in runs.items()
    }
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for (kind, n), found in middle.items():
        print(f"| {' | '.join(row(kind, loads[kind, n], n, found))} |", flush=True)
    if ("each", 1) in middle:
        print(beyond(middle["each", 1], loads["each", 1]))


if __name__ == "__main__":
    main()
