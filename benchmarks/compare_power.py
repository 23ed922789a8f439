"""How often does `tokenclock compare` see a change that is there, and one that isn't? By simulation.

    python benchmarks/compare_power.py                     # the table of docs/compare.md
    python benchmarks/compare_power.py --draws 200         # quicker, and rougher

A draw makes two sides of so many figures, of runs or of one run's blocks, each lognormal around its side's; A's is
higher by the shift. Counted is how often the whole 95 % interval lies above no change: `worse`. Without a shift it
should be 2.5 %, as on the other side. Runs are independent. Blocks that follow one another are drawn --alike, as
where a server is slow for a while. Exit code 1 where a false alarm is more frequent than three standard deviations of
so many draws allow.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from loadtest.compare.intervals import ALPHA, ratio

SHIFTS = (0.0, 0.05, 0.10, 0.20)
SPREADS = (0.01, 0.02, 0.05, 0.10)
RUNS, BLOCKS = (5, 10, 20), (5, 10)


def figures(rng: np.random.Generator, n: int, spread: float, alike: float) -> np.ndarray:
    own = rng.normal(0, 1, n)
    for i in range(1, n):
        own[i] = alike * own[i - 1] + math.sqrt(1 - alike**2) * own[i]
    return np.asarray(np.exp(spread * own))


def seen(rng: np.random.Generator, n: int, spread: float, shift: float, draws: int, alike: float) -> float:
    """The share of draws in which A is called worse. alike: the correlation of neighbours; 0 of runs."""
    worse = 0
    for _ in range(draws):
        a, b = (1 + shift) * figures(rng, n, spread, alike), figures(rng, n, spread, alike)
        worse += ratio(list(a), list(b), in_order=alike > 0).bounds(ALPHA)[0] > 1
    return worse / draws


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alike", type=float, default=0.15, help="correlation of blocks that follow one another")
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    most = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / asked.draws)
    too_often = False
    for what, sizes, alike in (("runs a side", RUNS, 0.0), ("blocks a side", BLOCKS, asked.alike)):
        print(f"| {what} | spread | {' | '.join(f'{100 * shift:g} %' for shift in SHIFTS)} |")
        print("|---|---|" + "---|" * len(SHIFTS))
        for n in sizes:
            for spread in SPREADS:
                found = [seen(rng, n, spread, shift, asked.draws, alike) for shift in SHIFTS]
                too_often = too_often or found[0] > most
                print(f"| {n} | {100 * spread:g} % | {' | '.join(f'{100 * each:.1f} %' for each in found)} |")
        print()
    return 1 if too_often else 0


if __name__ == "__main__":
    sys.exit(main())
