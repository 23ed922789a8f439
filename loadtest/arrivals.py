"""When each request of an open loop is due: a constant rate, or the random gaps of a Poisson or a gamma process.

The schedule knows nothing of the endpoint: that is what makes the loop open. Instants are whole nanoseconds after the
begin of the run, so nothing drifts, however long the run is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, count, repeat
from typing import Literal, get_args

Kind = Literal["constant", "poisson", "gamma"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NS_PER_S = 1_000_000_000
SLOWEST_PER_S, FASTEST_PER_S = 1e-6, 1e6
LEAST_BURSTINESS, MOST_BURSTINESS = 0.01, 1000.0


class ArrivalsError(ValueError):
    """Arrivals that can't be scheduled; the message names the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A renewal process: the gaps between requests are independent and have the mean 1 / rate.

    `constant`: request i (from 0) is due at i / rate, exactly, rounded down to a nanosecond; nothing is drawn.
    `gamma`: gaps of shape `burstiness` and scale 1 / (rate × burstiness), so their coefficient of variation is
    1 / √burstiness: below 1 requests come in bursts, above 1 they come more evenly. `poisson` is burstiness 1.

    The first random gap comes before request 0, so that a window of T seconds has a Poisson(rate × T) number of
    arrivals, and the drawn instants are left as they are: a run of n seconds has about n × rate requests, not exactly.

    Source: vllm-project/vllm, vllm/benchmarks/serve.py, `get_request`, for the meaning of burstiness. It rescales its
    instants so that the last one comes at n / rate, which takes the randomness out of the rate; here nothing is.
    """

    kind: Kind
    rate_per_s: float
    burstiness: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: ArrivalsError."""
        if self.kind not in KINDS:
            raise ArrivalsError(f"there are no arrivals {self.kind!r}: choose {', '.join(KINDS)}")
        if not SLOWEST_PER_S <= self.rate_per_s <= FASTEST_PER_S:
            raise ArrivalsError(
                f"a rate of {self.rate_per_s:g} requests a second can't be scheduled: "
                f"choose one from {SLOWEST_PER_S:g} to {FASTEST_PER_S:,.0f}"
            )
        if self.kind != "gamma" and self.burstiness != 1:
            raise ArrivalsError(
                f"{self.kind} arrivals have no burstiness, {self.burstiness:g} was asked for: "
                "choose gamma arrivals, or leave it out"
            )
        if not LEAST_BURSTINESS <= self.burstiness <= MOST_BURSTINESS:
            raise ArrivalsError(
                f"a burstiness of {self.burstiness:g} is outside {LEAST_BURSTINESS:g} to {MOST_BURSTINESS:g}: "
                "choose one inside, or constant arrivals for a rate without bursts"
            )

    def offsets_ns(self) -> Iterator[int]:
        """Nanoseconds after the begin of the run for request 0, 1, 2 …: without end, and never falling."""
        return self._even() if self.kind == "constant" else accumulate(self._gaps_ns())

    def _even(self) -> Iterator[int]:
        gap_ns = NS_PER_S / Fraction(repr(self.rate_per_s))  # the rate as it is written: 0.1 is a tenth
        return (i * gap_ns.numerator // gap_ns.denominator for i in count())

    def _gaps_ns(self) -> Iterator[int]:
        """Each gap is rounded before it is added: a sum of whole numbers can't drift."""
        draw = random.Random(f"arrivals-{self.seed}")  # noqa: S311 - a load, not a secret
        scale_ns = NS_PER_S / (self.rate_per_s * self.burstiness)
        return (round(draw.gammavariate(shape, scale_ns)) for shape in repeat(self.burstiness))
