"""Does the server grow? As many requests as an hour brings, a third of which misbehave, as fast as it takes them.

    python -m benchmarks.server_soak                       # an hour of 10 requests a second: 36,000
    python -m benchmarks.server_soak --hours 4 --rate 20

The backend is scripted, so that the time goes into what could grow: connections, bodies, streams, counters, logs.
Prints a row for every tenth of the requests. Growth is from the fifth tenth to the last: what is set up at the start
isn't in it. Exit code 1 where the interpreter's memory blocks grew by one for every ten requests, or memory by more
than 2 % or 5 MB, whichever is more, or tasks, threads or descriptors by any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from server.demo import ensure_demo_model
from tests.fault_run import Crowd, Texts, series

ROOT = Path(__file__).parents[1]
PARTS, TOKENS, LIMIT = 10, 12, 20_000
PROMPTS = ["The clock", "A", "One two three four five six seven", "Time and again, and again"]
MOST_SHARE, MOST_MB = 0.02, 5.0


class Row(NamedTuple):
    requests: int
    seconds: float
    mb: float
    blocks: int
    tasks: int
    threads: int
    descriptors: int


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1)
    parser.add_argument("--rate", type=float, default=10, help="requests a second that those hours would bring")
    parser.add_argument("--concurrency", type=int, default=32)
    asked = parser.parse_args()
    each = int(asked.hours * 3600 * asked.rate / PARTS)
    command = [sys.executable, "-m", "tests.fault_server", "--scripted", "--model", str(ensure_demo_model())]
    command += ["--slots", "8", "--port", "0", "--payload-limit", str(LIMIT)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log = iter(process.stderr)
    port = next(int(found[1]) for line in log if (found := re.search(r"listening on \S+:(\d+),", line)))
    lines = Counter[str]()
    threading.Thread(target=lambda: lines.update(json.loads(line)["event"] for line in log), daemon=True).start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while client.get("/health").status_code != 200:
                time.sleep(0.1)
            rows, ends = loaded(client, port, psutil.Process(process.pid), each, asked.concurrency)
            metrics = client.get("/metrics").text
    finally:
        process.terminate()
        code = process.wait()
    counted = int(series(metrics, "tgi_request_count")[""])
    print(f"{each * PARTS:,} requests, {counted:,} counted, exit code {code}; log lines: {dict(lines.most_common(3))}")
    print("how they ended: " + ", ".join(f"{end} {count:,}" for end, count in ends.most_common()))
    print("| requests | s | MB | blocks | tasks | threads | descriptors |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in row) + " |")
    middle, last = rows[len(rows) // 2 - 1], rows[-1]
    mb, blocks = last.mb - middle.mb, last.blocks - middle.blocks
    left = [after - before for before, after in zip(middle[4:], last[4:], strict=True)]
    more = last.requests - middle.requests
    print(
        f"growth over the last {more:,} requests: {mb:+.1f} MB, {blocks:+,} blocks; tasks, threads, descriptors {left}"
    )
    grown = blocks > more / 10 or mb > max(MOST_MB, MOST_SHARE * last.mb) or any(each > 0 for each in left)
    return int(grown or counted != each * PARTS or code != 0)


def loaded(
    client: httpx.Client, port: int, server: psutil.Process, each: int, concurrency: int
) -> tuple[list[Row], Counter[str]]:
    """A row after every part of the requests, and how they ended for their clients."""
    rows, ends, began = [], Counter[str](), time.monotonic()
    for part in range(PARTS):
        crowd = Crowd(port, Texts({prompt: [""] * TOKENS for prompt in PROMPTS}), TOKENS, LIMIT, seed=part)
        asyncio.run(crowd.come(each, concurrency))
        for (_, end), count in crowd.tally.ends.items():
            ends[end] += count
        time.sleep(0.5)  # the last connections close
        held = client.get("/held").json()
        rows.append(
            Row(
                each * (part + 1),
                time.monotonic() - began,
                server.memory_info().rss / 2**20,
                held["blocks"],
                len(held["tasks"]),
                len(held["threads"]),
                server.num_fds(),
            )
        )
    return rows, ends


if __name__ == "__main__":
    sys.exit(main())
