"""Where the server doesn't tell of each request, its histograms before and after a cell give averages: Δsum / Δcount.

They are averages of all requests that the server saw meanwhile, others' included, and are joined to no request of ours.
How many it counted, beside how many we sent, says whether others were there.

Source: vllm-project/vllm@0328b592, docs/design/metrics.md (queue: queued → scheduled; prefill: scheduled → first token;
TTFT: arrival → first token); sgl-project/sglang@00ce49e0, python/sglang/srt/observability/req_time_stats.py;
huggingface/text-generation-inference@db931fcf, router/src/server.rs and backends/v3/src/backend.rs;
server/metrics.py. llama.cpp's `/metrics` counts seconds and no requests, so there is nothing to divide by.

In summary.json, all in seconds:

```
AVERAGES = {"url", "sent", "complete",      our requests between the two reads, whatever their phase
            "counted" | null,               the server's, others' included
            "client_ttft_s" | null,         mean of ours that were complete
            "of": {"ttft_s" | "queue_s" | "prefill_s":
                   {"mean_s" | null, "n", "counts": "request" | "step", "series"}},
            "rest_s" | null,                client_ttft_s − the server's ttft_s, where both are of the same requests:
                                            network, HTTP and the client
            "reason" | null,                why there is no figure
            "doubts": ["sentence", ...]}    what speaks against it
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest import stats
from loadtest.sample import Sample


@dataclass(frozen=True, slots=True)
class Histogram:
    """One that a server is known to publish, and what it counts: `request`, or `step`, of which a long prompt takes
    several and several prompts may share one.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)  # that its series must have
    counts: str = "request"

    def has(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a series is one of it."""
        return name == self.name and self.labels.items() <= labels.items()


#: What each average is of, by whoever publishes it; the first that was read stands.
HISTOGRAMS: dict[str, tuple[Histogram, ...]] = {
    "ttft_s": (
        Histogram("vllm:time_to_first_token_seconds"),
        Histogram("sglang:time_to_first_token_seconds"),
        Histogram("gen_ai_server_time_to_first_token_seconds"),
    ),
    "queue_s": (
        Histogram("vllm:request_queue_time_seconds"),
        Histogram("sglang:queue_time_seconds"),
        Histogram("tgi_request_queue_duration"),
    ),
    "prefill_s": (
        Histogram("vllm:request_prefill_time_seconds"),
        Histogram("sglang:per_stage_req_latency_seconds", {"stage": "prefill_forward"}),
        Histogram("tokenclock_step_duration_seconds", {"step": "prefill"}, "step"),
        Histogram("tgi_batch_inference_duration", {"method": "prefill"}, "step"),
    ),
}
ALL = tuple(histogram for of in HISTOGRAMS.values() for histogram in of)
OF_CELL = ("config", "concurrency", "input_tokens", "new_tokens")  # what names a cell in run.json
STARTED = "process_start_time_seconds"  # Source: prometheus/client_python, prometheus_client/process_collector.py


def averages(
    cell: Mapping[str, Any], samples: Iterable[Sample], reads: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """AVERAGES of a cell. samples: of the whole run; reads: run.json's `server_metrics`, of which a cell's last pair
    counts. None where there is none.
    """
    pairs = [pair for pair in reads if all(pair[key] == cell[key] for key in OF_CELL)]
    if not pairs:
        return None
    phases, only = pairs[-1]["phases"], pairs[-1].get("process")
    of_cell = (s for s in samples if s.phase in phases and all(getattr(s.cell, key) == cell[key] for key in OF_CELL))
    ours = [sample for sample in of_cell if only in (None, sample.process)]
    return compared(pairs[-1], ours)


def compared(pair: Mapping[str, Any], ours: Sequence[Sample]) -> dict[str, Any]:
    """AVERAGES of a pair of reads, beside our own requests between them."""
    sent = [sample for sample in ours if sample.started_ns is not None]
    complete = [sample for sample in sent if sample.complete]
    ttfts = [ttft for sample in complete if (ttft := stats.ttft_s(sample)) is not None]
    client_s = sum(ttfts) / len(ttfts) if ttfts else None
    reason = pair["reason"] or restarted(pair["before"], pair["after"])
    of: dict[str, dict[str, Any]] = {}
    if reason is None:
        of = {name: found for name, known in HISTOGRAMS.items() if (found := _average(pair, known)) is not None}
        if not any(average["n"] for average in of.values()):
            reason = "the server counted no request meanwhile: these are another server's metrics, or they come late"
    counted = next((of[name]["n"] for name in ("ttft_s", "queue_s") if name in of), None)
    theirs_s = of["ttft_s"]["mean_s"] if "ttft_s" in of else None
    the_same = counted == len(sent) == len(ttfts)
    return {
        "url": pair["url"],
        "sent": len(sent),
        "complete": len(complete),
        "counted": counted,
        "client_ttft_s": client_s,
        "of": of,
        "rest_s": client_s - theirs_s if the_same and client_s is not None and theirs_s is not None else None,
        "reason": reason,
        "doubts": [] if reason else list(_doubts(counted, len(sent), len(complete))),
    }


def restarted(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why two reads can't be subtracted: a counter that is lower or gone was begun anew."""
    then, now = _by_labels(before["series"]), _by_labels(after["series"])
    back = [key[0] for key, old in then.items() if key not in now or _went_back(old, now[key])]
    if back or (before["started_s"] and after["started_s"] and before["started_s"] != after["started_s"]):
        return "the server was restarted meanwhile: its counters began anew, so there is no average"
    return None


def _went_back(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(new["count"] < old["count"] or new["sum"] < old["sum"])


def _average(pair: Mapping[str, Any], of: Iterable[Histogram]) -> dict[str, Any] | None:
    """The first histogram that was there after the cell; a series that wasn't there before began at 0."""
    for histogram in of:
        then, now = (
            [each for each in pair[read]["series"] if histogram.has(each["name"], each["labels"])]
            for read in ("before", "after")
        )
        if not now:
            continue
        n = sum(each["count"] for each in now) - sum(each["count"] for each in then)
        total_s = sum(each["sum"] for each in now) - sum(each["sum"] for each in then)
        return {
            "mean_s": total_s / n if n else None,
            "n": int(n),
            "counts": histogram.counts,
            "series": histogram.name,
        }
    return None


def _by_labels(series: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {(each["name"], *sorted(each["labels"].items())): each for each in series}


def _doubts(counted: int | None, sent: int, complete: int) -> Iterator[str]:
    if counted is None:
        yield "the server doesn't say of how many requests: others' may be among them"
    elif counted > sent:
        yield f"the server counted {counted} requests, and we sent {sent}: others' are among them"
    elif counted < complete:
        yield (
            f"the server counted {counted} of our {complete} complete requests: one of several replicas answers, or "
            "it counts late"
        )
