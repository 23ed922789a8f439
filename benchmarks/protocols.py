"""Do one server's numbers agree over every protocol? The same cell by turns over each of them, in one run.

    python benchmarks/protocols.py           # 30 rounds, 1 user, 256 → 64 tokens; about two minutes
    python benchmarks/protocols.py --users 4 --rounds 20
    python benchmarks/protocols.py --also openai-chat=http://127.0.0.1:8000/v1 --model NAME   # a foreign server too

The project's server with the demonstration model is started once, on core 0; on core 1 are the client, and a stand-in
of AWS's runtime (tests/sagemaker_runtime.py) in front of the server's /invocations. A round sends a wave of `--users`
requests over each protocol, one protocol after the other, in an order drawn anew, so that the machine's moods hit all
of them. Requests are made, timed and judged by the code that a run uses. The first rounds warm up and don't count.

A metric of a wave is the median of its requests (ITL: of their pooled gaps; tokens/s: users × new tokens / the wave's
last token − its release). The table has medians over rounds with their distribution-free 95 % intervals; a ratio is
of two waves of one round. A metric agrees where the interval of its median ratio to tgi holds 1 (one that covers 95 %
of the time for all comparisons together), or its median ratio is at most BOUND from 1, or, through the stand-in, a time
is at most HOP_S longer, which is what the hop through it takes; by the stand-in's own stamps the last lines say what a
TTFT has in it that is the client's. Counts agree where every request got exactly what it asked for, by the server's own
count. Exit code 1 where something disagrees. `--also` servers are measured in the same rounds and judged by verdict
alone.
"""

from __future__ import annotations

from loadtest import runner  # isort: skip  # noqa: F401  (first: importing locust patches sockets, as in a run)

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import httpx

from loadtest import stats
from loadtest.dispatch import ids
from loadtest.endpoints.choice import TYPES, Wanted
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.site import Look, Site
from loadtest.transport.base import Connection, Timeouts, monotonic_ns
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls
from tests.loadtest.sagemaker_fixtures import runtime

ROOT = Path(__file__).parents[1]
BOUND = 0.02  # of 1: what a ratio may be off and still be noise
HOP_S = 0.008  # seconds: boto3's own work, checking the signature, and a connection of the stand-in's to the server
WARM_UP = 2  # rounds
BASE = "tgi"


@dataclass(slots=True)
class Way:
    """One way to a server, and what its waves gave."""

    name: str
    site: Site
    connections: list[Connection]
    foreign: bool = False
    waves: list[list[Sample]] = field(default_factory=list)
    next_id: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self.next_id = ids(self.name, 0)

    @property
    def through_stand_in(self) -> bool:
        return self.site.url.startswith("sagemaker://")

    def wave(self, cell: Cell) -> list[Sample]:
        prompts = [self.site.prompts.drawn_for(cell)[0] for _ in self.connections]
        for connection in self.connections:
            connection.ready(10)
        released_ns = monotonic_ns()

        def one(user: int, connection: Connection, order: Order) -> Sample:
            limits = Timeouts()
            return measure(connection, self.site.endpoint, order, run="", process=0, user=user, timeouts=limits)

        users = [
            gevent.spawn(one, i, connection, Order(next(self.next_id), cell, "steady", prompts[i], released_ns))
            for i, connection in enumerate(self.connections)
        ]
        return [user.get() for user in users]


def one_token_more(samples: list[Sample]) -> float:
    gaps = [gap for sample in samples for gap in stats.itl_s(sample)]
    return statistics.median(gaps) if gaps else float("nan")


def middle(metric: Callable[[Sample], float | None]) -> Callable[[list[Sample]], float]:
    return lambda samples: statistics.median(value for each in samples if (value := metric(each)) is not None)


def rate(samples: list[Sample]) -> float:
    last_ns = max(sample.events[-1][0] for sample in samples)
    return sum(sample.got.new_tokens for sample in samples) / (last_ns - samples[0].scheduled_ns) * 1e9


METRICS: dict[str, tuple[float, Callable[[list[Sample]], float]]] = {  # what multiplies it, and a wave's value
    "TTFT, ms": (1e3, middle(stats.ttft_s)),
    "ITL p50, ms": (1e3, one_token_more),
    "TPOT, ms": (1e3, middle(stats.tpot_s)),
    "latency, ms": (1e3, middle(stats.latency_s)),
    "tokens/s": (1, rate),
}


@contextmanager
def server(slots: int) -> Iterator[str]:
    """The URL of the project's server on core 0, ready."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--threads", "1", "--slots", str(slots)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=lambda: os.sched_setaffinity(0, {0})
    )
    try:
        assert process.stderr is not None
        url = next((found[1] for line in process.stderr if (found := re.search(r"listening on (\S+),", line))), None)
        if url is None:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        while httpx.get(f"{url}/health").status_code != 200:
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def way(name: str, url: str, kind: str, carrier: str, asked: argparse.Namespace, foreign: bool = False) -> Way:
    look = Look(connecting(carrier, Tls()), controlling(carrier, Tls()), Wanted(kind, asked.model, transport=carrier))
    site = look.at(url, f"protocols-{name}", [asked.input_tokens], asked.input_tokens + asked.new_tokens)
    print(f"{name}: {'; '.join(site.notes)}", file=sys.stderr)
    return Way(name, site, [site.connect(site.target) for _ in range(asked.users)], foreign)


def measured(ways: list[Way], asked: argparse.Namespace) -> None:
    cell = Cell(None, None, asked.users, asked.input_tokens, asked.new_tokens)
    for number in range(WARM_UP + asked.rounds):
        for each in random.Random(number).sample(ways, len(ways)):
            samples = each.wave(cell)
            if number >= WARM_UP:
                each.waves.append(samples)


def said(values: list[float], scale: float) -> str:
    interval = stats.median_interval(values)
    within = f" ({interval.low * scale:.2f}–{interval.high * scale:.2f})" if interval else ""
    return f"{statistics.median(values) * scale:.2f}{within}"


def table(ways: list[Way]) -> list[str]:
    """Prints a table for each metric; returns what disagrees."""
    disagree = []
    base = next(each for each in ways if each.name == BASE)
    comparisons = len(METRICS) * (sum(not each.foreign for each in ways) - 1)
    for title, (scale, value_of) in METRICS.items():
        print(f"\n| {title} | median (95 %) | ratio to {BASE} (95 %) |\n|---|---|---|")
        base_values = [value_of(wave) for wave in base.waves]
        for each in ways:
            if not all(sample.complete for wave in each.waves for sample in wave):
                print(f"| {each.name} | – | – |")
                continue
            values = [value_of(wave) for wave in each.waves]
            if each is base or each.foreign:
                print(f"| {each.name} | {said(values, scale)} | {'1' if each is base else '–'} |")
                continue
            ratios = [value / of_base for value, of_base in zip(values, base_values, strict=True)]
            print(f"| {each.name} | {said(values, scale)} | {said(ratios, 1)} |")
            interval, ratio = stats.median_interval(ratios, 1 - 0.05 / comparisons), statistics.median(ratios)
            longer_s = statistics.median(values) - statistics.median(base_values)
            if each.through_stand_in and scale == 1e3 and 0 <= longer_s <= HOP_S:
                continue
            if interval and not interval.low <= 1 <= interval.high and abs(ratio - 1) > BOUND:
                disagree.append(f"{title.partition(',')[0]} over {each.name}: {ratio:.3f}")
    return disagree


def counts(ways: list[Way], asked: argparse.Namespace) -> list[str]:
    """Prints what every request got, by way; returns what isn't as asked."""
    wrong = []
    wanted = {(asked.input_tokens, asked.new_tokens, asked.new_tokens, "server")}
    print("\n| tokens | requests | verdicts | in | new | in events | counted by |\n|---|---|---|---|---|---|---|")
    for each in ways:
        samples = [sample for wave in each.waves for sample in wave]
        verdicts = {str(sample.verdict) for sample in samples}
        got = {
            (s.got.input_tokens, s.got.new_tokens, sum(tokens for _, tokens, _ in s.events), s.got.counted_by)
            for s in samples
        }
        columns = (", ".join(sorted({str(row[i]) for row in got})) for i in range(4))
        print(f"| {each.name} | {len(samples)} | {', '.join(sorted(verdicts))} | {' | '.join(columns)} |")
        if not each.foreign and (got != wanted or verdicts != {"complete"}):
            wrong.append(f"{each.name}: {sorted(verdicts)}, {sorted(got, key=str)}")
    return wrong


def clients_share(ways: list[Way], records: list[dict[str, Any]]) -> None:
    """TTFT of what went through the stand-in, less the stand-in's own from receipt to its first part."""
    seen_s = {
        record["headers"].get("x-amzn-sagemaker-inference-id"): (record["sends"][0][0] - record["received_ns"]) / 1e9
        for record in records
        if record["sends"]
    }
    for each in ways:
        if each.through_stand_in:
            samples = [sample for wave in each.waves for sample in wave if sample.id in seen_s]
            shares = [(stats.ttft_s(sample) or 0) - seen_s[sample.id] for sample in samples]
            print(f"{each.name}: of its TTFT {said(shares, 1e3)} ms are the client's, by the stand-in's stamps")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--input-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--also", action="append", default=[], metavar="TYPE=URL", help="a foreign server beside ours")
    parser.add_argument("--model", help="of the foreign servers")
    asked = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one core for the server and one for the client are needed")
    with server(max(asked.users, 1)) as url:
        os.sched_setaffinity(0, {1})  # what is started from here stays there
        with runtime(url) as aws:
            os.environ.update(aws.environ())
            mine = argparse.Namespace(**{**vars(asked), "model": None})
            ways = [way(kind, url, kind, "gevent", mine) for kind in TYPES]
            ways += [
                way(f"sagemaker://, {by}", "sagemaker://good", "sagemaker", by, mine) for by in ("gevent", "boto3")
            ]
            for kind, _, there in (each.partition("=") for each in asked.also):
                ways.append(way(f"{there}, {kind}", there, kind, "gevent", asked, foreign=True))
            measured(ways, asked)
            records = aws.records()
            for connection in (connection for each in ways for connection in each.connections):
                with closing(connection):
                    pass
    users = f"{asked.users} user{'s' if asked.users > 1 else ''}"
    print(f"{asked.rounds} rounds, {users}, {asked.input_tokens} → {asked.new_tokens} tokens")
    disagree, wrong = table(ways), counts(ways, asked)
    print()
    clients_share(ways, records)
    within = f"agree within noise, {BOUND:.0%}, or {HOP_S * 1e3:g} ms of the stand-in's hop"
    times = f"disagree ({'; '.join(disagree)})" if disagree else within
    tokens = f"differ ({'; '.join(wrong)})" if wrong else "agree exactly"
    print(f"\nTimes {times}; token counts {tokens}.")
    sys.exit(1 if disagree or wrong else 0)


if __name__ == "__main__":
    main()
