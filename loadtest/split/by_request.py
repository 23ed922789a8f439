"""Where the server tells its own times of each request, what the client measured is split by request.

A streamed reply's TTFT, and the latency of one that came whole, is what the server told plus a remainder: network, HTTP
and both sides' event loops, `network_s`. Parts are summed up as means, which add up to the mean of the whole; medians
of parts don't add up to anything.

In summary.json, all in seconds:

```
SPLIT = {"of": "ttft_s" | "latency_s", "n", "mean_s",       latency: of replies that came whole; mean_s: of n requests
         "parts": {"network_s", "queue_s", "prefill_s"}     means; they add up to mean_s
                  | {"network_s", "queue_s", "prefill_s", "decode_s"}
                  | {"network_s", "validation_s", "queue_s", "inference_s"}
                  | {"network_and_queue_s", "prefill_s"} | {"network_and_queue_s", "prefill_s", "decode_s"},
         "negative": {"n", "least_s" | null}}               requests of which the server tells more than the client saw
SERVER = {"n", "validation_s", "queue_s", "prefill_s", "inference_s", "decode_s",     medians; null where not printable
          "steps_by_batch_size": {"4": 3}}
```
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtest import stats
from loadtest.sample import Sample

#: What a server must tell for a split, the finest first: of a TTFT, and of a reply that came whole.
OF_TTFT = (("queue_s", "prefill_s"), ("prefill_s",))
OF_LATENCY = (
    ("queue_s", "prefill_s", "decode_s"),
    ("validation_s", "queue_s", "inference_s"),
    ("prefill_s", "decode_s"),
)
TOLD = ("validation_s", "queue_s", "prefill_s", "inference_s", "decode_s")


def seconds(said: object) -> float | None:
    """A duration as a server should tell it; anything else is none."""
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said) or said < 0:
        return None
    return float(said)


def parts(sample: Sample) -> dict[str, float] | None:
    """`{"network_s", "queue_s", "prefill_s"}` of one request, in seconds; they add up to its TTFT (or latency).

    network_s = what the client measured − what the server told. It is negative where the server tells more than the
    client waited. Where the server tells no queue, the remainder has that in it and is `network_and_queue_s`. None
    where the server tells too little.
    """
    whole_s = stats.ttft_s(sample) if sample.streamed else stats.latency_s(sample)
    said = {name: seconds((sample.server or {}).get(name)) for name in TOLD}
    for names in OF_TTFT if sample.streamed else OF_LATENCY:
        told = {name: value for name in names if (value := said[name]) is not None}
        if whole_s is not None and len(told) == len(names):
            rest = "network_s" if "queue_s" in told else "network_and_queue_s"
            return {rest: whole_s - sum(told.values()), **told}
    return None


def split(complete: Iterable[Sample]) -> dict[str, Any] | None:
    """SPLIT of summary.json: means of each part over the requests that told the same parts, most of them.

    The means of the parts add up to `mean_s`, the mean TTFT (or latency) of the same requests. None where nothing is
    told.
    """
    alike: dict[tuple[Any, ...], list[dict[str, float]]] = defaultdict(list)
    for sample in complete:
        if found := parts(sample):
            alike[sample.streamed, *found].append(found)
    if not alike:
        return None
    (streamed, *names), members = max(alike.items(), key=lambda item: len(item[1]))
    negative = [each[names[0]] for each in members if each[names[0]] < 0]
    return {
        "of": "ttft_s" if streamed else "latency_s",
        "n": len(members),
        "mean_s": _mean([sum(each.values()) for each in members]),
        "parts": {name: _mean([each[name] for each in members]) for name in names},
        "negative": {"n": len(negative), "least_s": min(negative, default=None)},
    }


def told(complete: Iterable[Sample]) -> dict[str, Any] | None:
    """SERVER of summary.json: medians of each time that the server tells, and its decode steps by batch size.

    Each median is over the requests that told that time. None where nothing is told.
    """
    times: dict[str, list[float]] = {name: [] for name in TOLD}
    steps: Counter[str] = Counter()
    n = 0
    for sample in complete:
        if sample.server is None:
            continue
        n += 1
        for name in TOLD:
            if (value := seconds(sample.server.get(name))) is not None:
                times[name].append(value)
        steps.update(_steps(sample.server.get("batch_sizes")))
    if not n:
        return None
    medians = {name: stats.quantile(values, 0.5) for name, values in times.items()}
    return {"n": n, **medians, "steps_by_batch_size": dict(sorted(steps.items(), key=lambda step: int(step[0])))}


def _steps(said: object) -> dict[str, int]:
    if not isinstance(said, Mapping):
        return {}
    return {str(size): n for size, n in said.items() if str(size).isdecimal() and isinstance(n, int)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
