"""Gaps between tokens, pooled: each of them up to ten million, above that a histogram of three significant digits.

Count, mean, least and most are of the gaps themselves in either form. A quantile of the histogram is within 0.5 % of
the pool's own, because so is every value that was rounded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_EXACT = 10_000_000
DIGITS = 3
_BLOCK = 1 << 16


class Gaps:
    """A pool of gaps in nanoseconds. `exact`: how many are kept one by one."""

    def __init__(self, exact: int = MOST_EXACT) -> None:
        self._most = exact
        self._blocks: list[NDArray[np.int64]] = []
        self._waiting: list[int] = []
        self._counts: Counter[int] | None = None
        self._sum = 0
        self._shift, self._squares = 0, 0.0  # of deviations from the first gap: no small difference of large numbers
        self.n = 0
        self.least_ns: int | None = None  # of those that are no longer waiting
        self.most_ns: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the pool is still of the gaps themselves."""
        self._settle()
        return self._counts is None

    def add(self, gaps_ns: Sequence[int]) -> None:
        self._waiting += gaps_ns
        self.n += len(gaps_ns)
        if len(self._waiting) >= _BLOCK:
            self._settle()

    def mean_s(self) -> float | None:
        self._settle()
        return self._sum / self.n / 1e9 if self.n else None

    def std_s(self) -> float | None:
        """Of the sample (n − 1)."""
        self._settle()
        if self.n < 2:
            return None
        deviation = self._sum - self.n * self._shift
        return math.sqrt(max(self._squares - deviation**2 / self.n, 0.0) / (self.n - 1)) / 1e9

    def sorted_s(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Values in seconds, rising, and how many gaps are at or below each of them."""
        self._settle()
        if self._counts is None:
            values = np.sort(np.concatenate(self._blocks)) if self._blocks else np.empty(0, np.int64)
            return values / 1e9, np.arange(1, len(values) + 1)
        keys = sorted(self._counts)
        return np.array(keys) / 1e9, np.cumsum([self._counts[key] for key in keys])

    def quantiles_s(self, at: Sequence[float]) -> NDArray[np.float64]:
        """Linear interpolation between order statistics, numpy's default. n must not be 0."""
        values, through = self.sorted_s()
        positions = np.asarray(at, dtype=float) * (self.n - 1)
        below = np.floor(positions).astype(np.int64)
        low, high = (
            values[np.searchsorted(through, rank, side="right")] for rank in (below, np.minimum(below + 1, self.n - 1))
        )
        return np.asarray(low + (high - low) * (positions - below))

    def _settle(self) -> None:
        """What waits goes into a block, or into the histogram."""
        if not self._waiting:
            return
        block = np.array(self._waiting, dtype=np.int64)
        self._waiting = []
        if self.least_ns is None:
            self._shift = int(block[0])
        self._sum += int(block.sum())
        self._squares += float(((block - self._shift).astype(float) ** 2).sum())
        least, most = int(block.min()), int(block.max())
        self.least_ns = least if self.least_ns is None else min(self.least_ns, least)
        self.most_ns = most if self.most_ns is None else max(self.most_ns, most)
        if self._counts is None:
            self._blocks.append(block)
            if self.n <= self._most:
                return
            self._counts, kept = Counter(), self._blocks
            self._blocks = []
        else:
            kept = [block]
        for each in kept:
            values, counts = np.unique(_rounded(each), return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                self._counts[value] += count


def _rounded(gaps_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """To three significant digits."""
    magnitude = np.floor(np.log10(np.maximum(np.abs(gaps_ns), 1))).astype(np.int64)
    step = 10 ** np.maximum(magnitude - (DIGITS - 1), 0)
    return np.asarray(np.round(gaps_ns / step).astype(np.int64) * step)
