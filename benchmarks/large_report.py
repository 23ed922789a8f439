"""How long a report of many requests takes, and how much memory: `python benchmarks/large_report.py`.

Makes a folder as a run leaves it, of a closed loop whose requests have `--tokens` token events each, and reports it
in a process of its own. Prints the size of samples.jsonl, seconds of wall and of CPU, and the largest resident memory.
The page is held to under a minute for 100,000 requests of 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from loadtest.machine import machine, process, versions
from loadtest.plan import Cell
from loadtest.sample import Got, Sample, write_samples
from loadtest.verdict import Verdict

MS = 1_000_000


def samples(requests: int, tokens: int, users: int, begin_ns: int) -> Iterator[Sample]:
    """Users that send one request after the other: 100 ms to the first token, some 10 ms between two, a rare stall."""
    draw = random.Random(1)
    cell = Cell(None, 8, users, 256, tokens)
    free_ns = [begin_ns] * users
    for number in range(requests):
        user = number % users
        started = free_ns[user]
        t = started + int(draw.gammavariate(20, 5 * MS))
        events = []
        for position in range(tokens):
            events.append((t, 1, position))
            t += int(draw.uniform(8, 12) * MS) + (draw.random() < 1e-4) * 300 * MS
        free_ns[user] = events[-1][0] + MS
        failed = draw.random() < 1e-4
        yield Sample(
            run="large",
            id=f"large-{number}",
            process=0,
            user=user,
            cell=cell,
            phase="ramp" if number < users else "drain" if number >= requests - users else "steady",
            got=Got(256, tokens, "server"),
            scheduled_ns=started,
            connect_ns=None,
            started_ns=started,
            sent_ns=started,
            headers_ns=started + MS,
            events=tuple(events),
            first_text_ns=events[0][0],
            ended_ns=events[-1][0] + MS,
            clock="kernel",
            transport="gevent",
            verdict=Verdict.TRUNCATED if failed else Verdict.COMPLETE,
            detail="the stream ended without its last event" if failed else None,
            status=200,
            server={"queue_s": 0.02, "prefill_s": 0.07, "decode_s": 1.28, "batch_sizes": {str(users): tokens}},
        )


def make(folder: Path, requests: int, tokens: int, users: int) -> None:
    here = process(0)
    write_samples(folder / "samples.jsonl", samples(requests, tokens, users, here["start"]["mono_ns"]))
    run = {
        "schema": 1,
        "run": "large",
        "tool": {"name": "tokenclock", "version": "0"},
        "created": "2026-01-01T00:00:00Z",
        "command": ["python", "benchmarks/large_report.py"],
        "plan": None,
        "configs": [],
        "waves": None,
        "seed": 1,
        "options": {},
        "endpoints": [
            {"config": None, "url": "http://127.0.0.1:8080", "protocol": "tgi", "info": None, "command": None}
        ],
        "machine": machine(),
        "versions": versions(),
        "processes": [here],
        "client": [],
        "calibration": None,
        "open_loop": None,
        "interrupted": False,
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep it here; one that has samples.jsonl is not made again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "samples.jsonl").exists():
            make(folder, asked.requests, asked.tokens, asked.users)
        size = (folder / "samples.jsonl").stat().st_size
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "loadtest", "report", folder], check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        print(f"{asked.requests:,} requests of {asked.tokens} tokens, samples.jsonl {size / 1e6:,.0f} MB")
        print(f"report: {took:.1f} s, {cpu_s:.1f} s of CPU, at most {memory:,.0f} MiB resident")
        pages = [path for path in sorted(folder.iterdir()) if path.name not in ("samples.jsonl", "run.json")]
        print("; ".join(f"{path.name} {path.stat().st_size / 1e3:,.0f} kB" for path in pages))


if __name__ == "__main__":
    main()
