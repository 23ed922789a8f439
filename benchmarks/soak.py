"""Does the client grow? `tokenclock run` for minutes against a server of known schedule; its memory and descriptors.

    python benchmarks/soak.py                  # 10 minutes, 64 streams
    python benchmarks/soak.py --minutes 1 --transport httpx

Prints a row for every tenth of the time. Growth is the difference of the medians of the last two fifths: what is set up
at the start, and the report's own memory at the end, are in neither. Exit code 1 where memory grew by more than 2 % or
5 MB, whichever is more, or descriptors by any.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest.truth import truth

ROOT = Path(__file__).parents[1]
TOKENS = 64
EVERY_S = 1.0
MOST_SHARE, MOST_MB = 0.02, 5.0


def seen(pid: int) -> tuple[float, int]:
    """Resident memory in MB, and open descriptors. Raises: OSError where the process has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between two tokens of a stream")
    parser.add_argument("--transport", default="gevent")
    asked = parser.parse_args()
    rows: list[tuple[float, float, int]] = []
    with truth(gap=asked.gap, tokens_default=TOKENS) as server, TemporaryDirectory() as results:
        command = [sys.executable, "-m", "loadtest", "run", "--url", server.url, "--transport", asked.transport]
        sizes = ["-u", str(asked.streams), "-t", f"{asked.minutes * 60:g}s", "--new-tokens", str(TOKENS)]
        process = subprocess.Popen(
            [*command, "--no-calibrate", *sizes, "--input-tokens", "64", "--results", results],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun = time.monotonic()
        time.sleep(min(10.0, asked.minutes * 6))  # until every stream runs
        while time.monotonic() - begun < asked.minutes * 60 and process.poll() is None:
            rows.append((time.monotonic() - begun, *seen(process.pid)))
            if len(rows) % 60 == 0:
                server.clear()  # the server remembers every stream
            time.sleep(EVERY_S)
        _, said = process.communicate()
        requests = sum(len(path.read_text().splitlines()) for path in Path(results).glob("*/samples.jsonl"))
    print(f"{requests:,} requests of {TOKENS} tokens over {asked.transport}, exit code {process.returncode}")
    if len(rows) < 10:
        raise SystemExit(f"too short to say anything: {said[-500:]}")
    print("| minute | MB | descriptors |\n|---|---|---|")
    for at_s, mb, descriptors in rows[:: max(1, len(rows) // 10)]:
        print(f"| {at_s / 60:.1f} | {mb:.1f} | {descriptors} |")
    fifth = len(rows) // 5
    before, after = rows[-2 * fifth : -fifth], rows[-fifth:]
    grown = [statistics.median(row[i] for row in after) - statistics.median(row[i] for row in before) for i in (1, 2)]
    print(f"growth from the last but one fifth to the last: {grown[0]:+.1f} MB, {grown[1]:+g} descriptors")
    return int(grown[0] > max(MOST_MB, MOST_SHARE * rows[-1][1]) or grown[1] > 0)


if __name__ == "__main__":
    sys.exit(main())
