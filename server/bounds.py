"""Where the buckets of histograms end: TGI's own, and denser ones where OpenTelemetry only recommends some.

Source: huggingface/text-generation-inference@db931fcf, router/src/server.rs; open-telemetry/semantic-conventions-genai
@004902b8, docs/gen-ai/gen-ai-metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import mul

TGI_S = tuple(accumulate(repeat(1.5, 35), mul, initial=0.0001))[1:]  # multiplied one by one, as TGI does: equal bits
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def hundredths(most: int) -> tuple[float, ...]:
    """TGI's bounds of token counts: a hundred equal steps to the most there can be."""
    return tuple(most / 100 * step for step in range(1, 101))


def dense(first: int, end: int, recommended: Sequence[float] = ()) -> tuple[float, ...]:
    """Ten bounds a decade from 10^first to 10^end, and those that OpenTelemetry recommends.

    Neighbours are at most 28 % apart, so a quantile between the first and the last, read from the buckets, is within
    28 % of the true one. The recommended bounds alone are up to 400 % apart.
    """
    steps = ("1", "1.25", "1.6", "2", "2.5", "3.2", "4", "5", "6.4", "8")
    grid = [float(f"{step}e{power}") for power in range(first, end) for step in steps]
    return tuple(sorted({*grid, float(f"1e{end}"), *recommended}))


RECOMMENDED_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
RECOMMENDED_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
RECOMMENDED_REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = dense(-3, 2, RECOMMENDED_FIRST_TOKEN_S)
PER_TOKEN_S = dense(-4, 1, RECOMMENDED_PER_TOKEN_S)
REQUEST_S = dense(-3, 3, RECOMMENDED_REQUEST_S)
STEP_S = dense(-4, 1)
