"""Good enough? The share of requests that met every objective, and how many of them there were a second.

An objective is `ttft:500`: at most 500 ms until the first token. `tpot` and `e2el` are TPOT and end-to-end latency,
names and milliseconds as vLLM's `--goodput` has them. A request that isn't complete met nothing. A TPOT that is
undefined (one token) is met, as vLLM has it.

Source: vllm-project/vllm, vllm/benchmarks/serve.py (`--goodput`); the word is DistServe's, arXiv 2401.09670.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from loadtest import stats
from loadtest.sample import Sample

OBJECTIVES: Mapping[str, Callable[[Sample], float | None]] = {
    "ttft": stats.ttft_s,
    "tpot": stats.tpot_s,
    "e2el": stats.latency_s,
}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "latency"}
LIKE = "write objectives as ttft:500 tpot:50 e2el:5000, in milliseconds"


class GoodputError(ValueError):
    """Not an objective, or one that can't be judged; the message names it and the remedy."""


def parse(words: Iterable[str]) -> dict[str, float]:
    """Seconds by objective. Raises: GoodputError."""
    found: dict[str, float] = {}
    for word in words:
        name, colon, text = word.partition(":")
        if not colon or name not in OBJECTIVES:
            raise GoodputError(f"{word!r} is no objective: {LIKE}")
        if name in found:
            raise GoodputError(f"{name} is there twice: a request has one {name}, leave one of them out")
        try:
            milliseconds = float(text)
        except ValueError:
            milliseconds = math.nan
        if not (math.isfinite(milliseconds) and milliseconds > 0):
            raise GoodputError(f"{word!r}: {text!r} is no time above 0: {LIKE}")
        found[name] = milliseconds / 1e3
    return found


def misses(sample: Sample, objectives_s: Mapping[str, float]) -> list[str]:
    """The objectives that a complete request didn't meet. Raises: GoodputError where it came whole and TTFT counts."""
    if not sample.streamed and (timed := [name for name in ("ttft", "tpot") if name in objectives_s]):
        raise GoodputError(
            f"replies that came whole (--no-stream) have no first token: leave {timed[0]} out of --goodput"
        )
    values = {name: OBJECTIVES[name](sample) for name in objectives_s}
    return [name for name, limit_s in objectives_s.items() if (value := values[name]) is not None and value > limit_s]


def demanded(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run's options (`goodput`, `goodput_share`) ask of its requests. Raises: GoodputError."""
    words = options.get("goodput")
    return {"objectives_s": parse(words), "demanded_share": options.get("goodput_share")} if words else None


def goodput(steady: Sequence[Sample], hosts: Mapping[int, str], objectives_s: Mapping[str, float]) -> dict[str, Any]:
    """Of one cell, as summary.json has it. `goodput_rps` is taken as `requests_per_s` is: outside waves, over the wall
    of all steady requests. Raises: GoodputError.
    """
    complete = [sample for sample in steady if sample.complete]
    missed = [misses(sample, objectives_s) for sample in complete]
    good = [sample for sample, those in zip(complete, missed, strict=True) if not those]
    return {
        "met": len(good),
        "of": len(steady),
        "share": len(good) / len(steady),
        "missed": {name: sum(name in those for those in missed) for name in objectives_s},
        "not_complete": len(steady) - len(complete),
        "goodput_rps": stats.goodput_rps(steady, good, hosts) if steady[0].cell.wave is None else None,
    }


def short_of(summary: Mapping[str, Any]) -> list[str]:
    """The cells where fewer requests met the objectives than is demanded, as sentences."""
    asked = summary["goodput"]
    if not asked or asked["demanded_share"] is None:
        return []
    return [
        f"{entry['label']}: {found['met']} of {found['of']} requests ({100 * found['share']:.1f} %) met every "
        f"objective, {100 * asked['demanded_share']:g} % are demanded"
        for entry in summary["cells"]
        if (found := entry["goodput"])["share"] < asked["demanded_share"]
    ]


def objectives_said(objectives_s: Mapping[str, float]) -> str:
    """`TTFT at most 500 ms, TPOT at most 50 ms`."""
    return ", ".join(f"{NAMES[name]} at most {limit_s * 1e3:g} ms" for name, limit_s in objectives_s.items())
