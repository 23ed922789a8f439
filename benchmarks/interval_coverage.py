"""How often does an interval that a report makes of blocks hold the true figure? By simulation.

    python benchmarks/interval_coverage.py                 # the table of docs/report.md
    python benchmarks/interval_coverage.py --draws 100     # quicker, and rougher

A draw is a run of four users that ask again as soon as they are answered, or whose requests come as they like (an open
loop). A request takes exp(state + its own), each with a spread of 10 %; the state is the server's, an
Ornstein-Uhlenbeck process that forgets with the time constant given, in mean requests. Or four slots serve sixteen
users, or a Poisson stream, in order. Truth is a run of 100,000 requests. Counted is how often the interval of the
median latency, and that of requests a second, hold it: 95 % is stated. `independent`: the interval of the median that
takes requests for independent observations, as a report does for one user.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from loadtest import batch_means, stats
from loadtest.plan import Cell
from loadtest.sample import Got, Sample
from loadtest.verdict import Verdict

USERS, SLOTS, SPREAD = 4, 4, 0.1
ROUNDS = (50, 100, 300)  # requests of every user
STEP = 0.1  # of the state, in mean requests
FORGETS = (0.0, 1.0, 2.0, 5.0, 10.0)
LOADS = (0.5, 0.8, 0.9)
Requests = Iterator[tuple[float, float]]  # begin and end, in mean requests


def state(rng: np.random.Generator, forgets: float) -> Callable[[float], float]:
    """Of the server, by time. forgets: its time constant."""
    if forgets == 0:
        return lambda _: 0.0
    keeps = math.exp(-STEP / forgets)
    values = [rng.normal(0, SPREAD)]

    def at(time: float) -> float:
        while len(values) <= time / STEP:
            values.append(keeps * values[-1] + rng.normal(0, SPREAD * math.sqrt(1 - keeps**2)))
        return float(values[int(time / STEP)])

    return at


def closed(rng: np.random.Generator, forgets: float) -> Requests:
    now, free = state(rng, forgets), rng.uniform(0, 1, USERS)
    while True:
        user = int(np.argmin(free))
        begin = float(free[user])
        free[user] = begin + math.exp(now(begin) + rng.normal(0, SPREAD))
        yield begin, float(free[user])


def queue(rng: np.random.Generator, users: int) -> Requests:
    slot, free = np.zeros(SLOTS), rng.uniform(0, 1, users)
    while True:
        user, first = int(np.argmin(free)), int(np.argmin(slot))
        begin = float(free[user])
        free[user] = slot[first] = max(begin, slot[first]) + SLOTS / users * math.exp(rng.normal(0, 0.5))
        yield begin, float(free[user])


def opened(rng: np.random.Generator, load: float) -> Requests:
    slot, begin = np.zeros(SLOTS), 0.0
    while True:
        begin += rng.exponential(1 / (load * SLOTS))
        first = int(np.argmin(slot))
        slot[first] = max(begin, slot[first]) + math.exp(rng.normal(-0.125, 0.5))
        yield begin, float(slot[first])


def samples(requests: Requests, users: int, n: int) -> list[Sample]:
    """The first n that are begun when all users are there."""
    cell, found = Cell(None, None, users, 1, 1), []
    for begin, end in requests:
        if begin < 1:
            continue
        begin_ns, ends_ns = int(begin * 1e9), int(end * 1e9)
        found.append(
            Sample(
                "r", f"{len(found):07}", 0, 0, cell, "steady", Got(1, 1, "server"), begin_ns, None, begin_ns, begin_ns,
                begin_ns, ((ends_ns, 1, 0),), ends_ns, ends_ns, "kernel", "gevent", Verdict.COMPLETE, None, 200,
            )
        )  # fmt: skip
        if len(found) == n:
            return found
    raise AssertionError("requests have no end")


def cells(made: Callable[[np.random.Generator], Requests], users: int, draws: int, open_loop: bool) -> Iterator[str]:
    """Of one row: `median / rate / independent` for each number of requests."""
    rng = np.random.default_rng(1)
    long = samples(made(rng), users, 100_000)
    median = float(np.median([stats.latency_s(sample) for sample in long]))
    rate = len(long) / stats.wall_s(long)
    for rounds in ROUNDS:
        hits = np.zeros(3)
        for _ in range(draws):
            run = samples(made(rng), users, rounds * users)
            if open_loop:
                n = min(batch_means.MOST, rounds // batch_means.ROUNDS)
                edges = np.linspace(run[0].scheduled_ns, max(s.ended_ns for s in run), n + 1)
                latencies = [(s.ended_ns - s.scheduled_ns) / 1e9 for s in run]
                of = (batch_means.of_median(latencies, n), batch_means.of_rate(run, [1] * len(run), edges))
            else:
                found = batch_means.intervals(run, {}, open_loop=False).of
                of = (found["latency_s"], found["requests_per_s"])
            alone = stats.median_interval([(s.ended_ns - s.scheduled_ns) / 1e9 for s in run])
            assert alone is not None
            ends = (*of, (alone.low, alone.high))
            hits += [low <= true <= high for (low, high), true in zip(ends, (median, rate, median), strict=True)]
        yield " / ".join(f"{100 * hit / draws:.0f}" for hit in hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    rows: list[tuple[str, Callable[[np.random.Generator], Requests], int, bool]] = [
        (f"closed, the server forgets after {forgets:g} requests", partial(closed, forgets=forgets), USERS, False)
        for forgets in FORGETS
    ]
    rows.append(("closed, 16 users of 4 slots", partial(queue, users=16), 16, False))
    rows += [(f"open, 4 slots, {100 * load:.0f} % busy", partial(opened, load=load), SLOTS, True) for load in LOADS]
    print("| median / rate / independent, % | " + " | ".join(f"{rounds} a user" for rounds in ROUNDS) + " |")
    print("|---|" + "---|" * len(ROUNDS))
    for name, made, users, open_loop in rows:
        print(f"| {name} | " + " | ".join(cells(made, users, draws, open_loop)) + " |", flush=True)


if __name__ == "__main__":
    main()
