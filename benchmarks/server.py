"""The server's token path beside FastAPI's `StreamingResponse` and sse-starlette's `EventSourceResponse`.

    pip install sse-starlette
    python benchmarks/server.py             # every load, five runs each by turns, medians and ratios; about 6 minutes
    python benchmarks/server.py --gil 5     # the same with an engine's thread that is busy for 5 ms of each step

Each server runs on core 0 over a token source that costs nothing (benchmarks/zero_cost.py); this program, a plain epoll
loop, on core 1. SLOW more streams ask and never read. What is counted begins SETTLE_S after every stream had a token.

tokens/s: of the streams that read, in the window. Delay: from the end of the step that made a token, as the server's
own thread stamped it, to this program's clock right after the read that brought it. Ratios are ours by theirs, of
medians: of tokens/s more is better, of the others less.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # this file is no package `server`

from benchmarks.zero_cost import FIRST_WORD, LONGEST, STEPS, WORDS  # noqa: E402

SERVERS = {
    "tokenclock": "benchmarks.zero_cost",
    "StreamingResponse": "benchmarks.peers.streaming_response",
    "sse-starlette": "benchmarks.peers.event_source",
}
OURS, *PEERS = SERVERS
SLOW = 8
SLOW_WINDOW = 4096  # bytes that the kernel takes for one of them
SETTLE_S = 0.5
WINDOW_S = 3.0
PATIENCE_S = 60.0
TOKEN = re.compile(rb'"id":(\d+),')


@dataclass(frozen=True, slots=True)
class Load:
    streams: int
    gap_s: float


LOADS = {"drain": Load(256, 0.0), "256x20": Load(256, 0.02), "64x10": Load(64, 0.01)}


@dataclass(frozen=True, slots=True)
class Run:
    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the server, a token
    offered: float  # share of the tokens that its steps made


class Stamps:
    """When each step was over, as the server wrote it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(8 * STEPS)
            self._map = mmap.mmap(file.fileno(), 8 * STEPS)

    @property
    def steps(self) -> int:
        return int(struct.unpack_from("<q", self._map, 0)[0])

    def at(self, word: int, by: int) -> int:
        """When the last step before number `by` that said `word` was over."""
        step = by - (by - word) % WORDS
        return int(struct.unpack_from("<q", self._map, 8 * step)[0])


@contextmanager
def served(name: str, load: Load, gil_s: float) -> Iterator[tuple[int, int, Stamps]]:
    """(process id, port, its stamps) of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with NamedTemporaryFile() as file:
        stamps = Stamps(Path(file.name))
        sizes = [str(each) for each in (port, load.streams + SLOW, load.gap_s, gil_s, file.name)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        running = subprocess.Popen(
            [sys.executable, "-m", SERVERS[name], *sizes],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_DISABLE_TELEMETRY": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        )
        try:
            until = time.monotonic() + PATIENCE_S
            while not answers(port):
                if running.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{SERVERS[name]} does not serve")
                time.sleep(0.1)
            yield running.pid, port, stamps
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()


def answers(port: int) -> bool:
    """Whether it streams a token."""
    with suppress(OSError), asked(port, 1) as one:
        one.settimeout(2)
        return b"data: " in one.recv(65536) + one.recv(65536)
    return False


def asked(port: int, tokens: int, window: int | None = None) -> socket.socket:
    body = json.dumps({"inputs": " w1", "parameters": {"max_new_tokens": tokens, "ignore_eos": True}}).encode()
    head = b"POST /generate_stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    made = socket.socket()
    if window is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    made.connect(("127.0.0.1", port))
    made.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    return made


def cpu_s(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(name: str, load: Load, gil_s: float) -> Run:
    with served(name, load, gil_s) as (process, port, stamps):
        slow = [asked(port, LONGEST // 2, SLOW_WINDOW) for _ in range(SLOW)]
        streams = {each.fileno(): each for each in (asked(port, LONGEST // 2) for _ in range(load.streams))}
        poll = select.epoll()
        for number in streams:
            poll.register(number, select.EPOLLIN)
        begun: set[int] = set()
        rests = dict.fromkeys(streams, b"")
        delays: list[int] = []
        tokens, opens, closes = 0, time.monotonic() + PATIENCE_S, 2 * time.monotonic()
        at_first: tuple[int, float] | None = None
        now_s = time.monotonic()
        while now_s < closes:
            for number, _ in poll.poll(1):
                data = rests[number] + streams[number].recv(1 << 18)
                now = time.monotonic_ns()
                whole, _, rests[number] = data.rpartition(b"\n\n")
                words = TOKEN.findall(whole)
                if at_first is not None:
                    tokens += len(words)
                    by = stamps.steps
                    delays += [now - stamps.at(int(word) - FIRST_WORD, by) for word in words]
                elif words:
                    begun.add(number)
                    if len(begun) == len(streams):
                        opens = min(opens, now / 1e9 + SETTLE_S)
            now_s = time.monotonic()
            if at_first is None and now_s > opens:
                if len(begun) < len(streams):
                    raise SystemExit(f"{name}: {len(begun)} of {len(streams)} streams began in {PATIENCE_S:g} s")
                at_first, began, closes = (stamps.steps, cpu_s(process)), now_s, now_s + WINDOW_S
        assert at_first is not None
        made = (stamps.steps - at_first[0]) * load.streams
        spent = cpu_s(process) - at_first[1]
        for each in (*slow, *streams.values()):
            each.close()
    cuts = statistics.quantiles(delays, n=100)
    return Run(tokens / (now_s - began), cuts[49] / 1e6, cuts[98] / 1e6, spent / tokens * 1e6, tokens / made)


def table(load: Load, gil_s: float, runs: dict[str, list[Run]]) -> str:
    """Medians of the runs, and what ours are of each peer's."""

    def middle(name: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[name])

    pace = f"{load.gap_s * 1e3:g} ms" if load.gap_s else "as fast as it can"
    busy = f", the engine's thread busy for {gil_s * 1e3:g} ms of a step" if gil_s else ""
    lines = [
        f"\n{load.streams} streams, {pace}{busy}; {SLOW} more that don't read\n",
        "| server | tokens/s | delay p50 | p99, ms | server's CPU, µs/token | of the tokens made |",
        "|---|---|---|---|---|---|",
    ]
    for name in runs:
        shown = [f"{middle(name, 'tokens_per_s'):,.0f}", *(f"{middle(name, p):.2f}" for p in ("p50_ms", "p99_ms"))]
        lines.append(f"| {' | '.join([name, *shown])} | {middle(name, 'cpu_us'):.1f} | {middle(name, 'offered'):.1%} |")
    for name in (peer for peer in PEERS if peer in runs and OURS in runs):
        shown = [f"{middle(OURS, f) / middle(name, f):.2f}" for f in ("tokens_per_s", "p50_ms", "p99_ms", "cpu_us")]
        lines.append(f"| ours by {name} | {' | '.join(shown)} | |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument(
        "--gil", type=float, default=0.0, metavar="MS", help="of each step; see benchmarks/zero_cost.py"
    )
    parser.add_argument("--runs", type=int, default=5)
    wanted = parser.parse_args(given)
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one core for the server and one for the client are needed")
    os.sched_setaffinity(0, {1})
    for load in (LOADS[name] for name in wanted.load):
        runs: dict[str, list[Run]] = {name: [] for name in wanted.server}
        for _ in range(wanted.runs):
            for name in wanted.server:  # by turns, so that the machine's moods hit all of them
                runs[name].append(measure(name, load, wanted.gil / 1e3))
        print(table(load, wanted.gil / 1e3, runs), flush=True)


if __name__ == "__main__":
    main()
