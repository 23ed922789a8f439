"""When each token of a stream is due is settled by the request's id and a seed: a rerun gets the same waits."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """wait = base × (1 + fraction × (2u − 1)), u uniform in 0..1; the first token has both of its own."""

    first_s: float = 0.2  # request received → first token due
    first_spread: float = 0.2  # fraction: 0.2 is 0.16 to 0.24 s
    gap_s: float = 0.02  # token due → next token due; 0 is a drain, see truth.py
    jitter: float = 0.1  # fraction of the gap
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.first_s, self.gap_s) < 0:
            raise ValueError(f"first is {self.first_s:g} s and gap {self.gap_s:g} s; neither may be negative")
        if not (0 <= self.first_spread <= 1 and 0 <= self.jitter <= 1):
            raise ValueError(f"first_spread is {self.first_spread:g} and jitter {self.jitter:g}; both lie in 0..1")

    def waits(self, request_id: str, tokens: int) -> list[int]:
        """Nanoseconds before each token: from the request's arrival to the first, then from one to the next."""
        uniform = random.Random(f"{self.seed}:{request_id}").random  # noqa: S311 - a load, not a secret
        first_ns = 1e9 * self.first_s * (1 + self.first_spread * (2 * uniform() - 1))
        least_ns = 1e9 * self.gap_s * (1 - self.jitter)
        span_ns = 2e9 * self.gap_s * self.jitter
        return [int(first_ns), *(int(least_ns + span_ns * uniform()) for _ in range(tokens - 1))]
