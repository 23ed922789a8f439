"""The shape of a load: what a truth server must know to give the client the same work as a run does."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from loadtest import stats
from loadtest.arrivals import FASTEST_PER_S, Arrivals
from loadtest.plan import Cell
from loadtest.sample import Sample, read_samples

LEAST_INPUT_TOKENS = 8  # shorter prompts are soon used up
ENOUGH = 2000  # requests of a cell that its shape is read from
LEAST_GAP_S = 0.0005  # a gap of nothing would be a drain, which has no gaps to compare
MOST_EVENT_BYTES = 65_536  # larger events than that are of no token
USUAL_GAP_S = 0.02  # where streams have a single token
STREAMS = 4  # so many of a user's fit into the time; longer ones are shortened
PROTOCOLS = ("tgi", "openai-completions", "openai-chat")


class ShapeError(ValueError):
    """A load that can't be replayed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Shape:
    concurrency: int  # requests in flight; in an open loop at most
    input_tokens: int
    tokens: int  # token events of a stream
    first_s: float  # request received → first token, ± 20 %
    gap_s: float  # between tokens, ± 10 %
    event_bytes: int = 0  # least size of an event; 0: the protocol's own
    arrivals: Arrivals | None = None  # None: a closed loop
    in_waves: bool = False
    protocol: str = "tgi"  # one of PROTOCOLS
    transport: str = "gevent"

    @property
    def stream_s(self) -> float:
        return self.first_s + (self.tokens - 1) * self.gap_s

    @property
    def events_per_s(self) -> float:
        if self.arrivals is not None:
            return self.arrivals.rate_per_s * self.tokens
        return self.concurrency * self.tokens / max(self.stream_s, LEAST_GAP_S)

    @property
    def level(self) -> float:
        """What a search for the highest load changes: requests a second of an open loop, else those in flight."""
        return self.arrivals.rate_per_s if self.arrivals else self.concurrency

    def at(self, level: float) -> Shape:
        if self.arrivals is None:
            return replace(self, concurrency=max(1, round(level)))
        users = math.ceil(self.concurrency * level / self.arrivals.rate_per_s)
        return replace(self, concurrency=max(1, users), arrivals=replace(self.arrivals, rate_per_s=level))

    def with_users(self, users: int) -> Shape:
        return replace(self, concurrency=users)

    def among(self, processes: int) -> Shape:
        """What each of so many processes has of it, the most of them; their schedules are dealt out by turns."""
        if self.arrivals is None:
            return self.with_users(math.ceil(self.concurrency / processes))
        rate_per_s = self.arrivals.rate_per_s / processes
        return replace(
            self,
            concurrency=math.ceil(self.concurrency / processes),
            arrivals=replace(self.arrivals, rate_per_s=rate_per_s),
        )

    def within(self, seconds: float) -> Shape:
        """Streams so short that `STREAMS` of a user's fit: tokens and the first wait by one factor, gaps only where two
        tokens need it. As many are in flight (an open loop's rate rises), no fewer tokens come a second, and requests
        are begun more often: the load is no lighter.
        """
        longest_s = seconds / STREAMS
        factor = longest_s / max(self.stream_s, longest_s)
        if factor == 1:
            return self
        first_s = self.first_s * factor
        tokens = max(min(2, self.tokens), math.ceil(self.tokens * factor))
        gap_s = self.gap_s if tokens == 1 else min(self.gap_s, (longest_s - first_s) / (tokens - 1))
        short = replace(self, first_s=first_s, gap_s=gap_s, tokens=tokens)
        if self.arrivals is None:
            return short
        rate_per_s = min(self.arrivals.rate_per_s * self.stream_s / short.stream_s, FASTEST_PER_S)
        return replace(short, arrivals=replace(self.arrivals, rate_per_s=rate_per_s))

    def said(self) -> dict[str, Any]:
        return asdict(self)


def users_for(rate_per_s: float, stream_s: float) -> int:
    """Enough for an open loop: twice what is in flight on average (rate × stream), and some."""
    return 8 + math.ceil(2 * rate_per_s * stream_s)


def protocol_of(said: str) -> str:
    """Whose events are replayed for a protocol of run.json; what SageMaker frames is replayed without its frames."""
    return next((each for each in PROTOCOLS if each in said), "tgi")


def shapes(samples: Iterable[Sample], run: Mapping[str, Any], event_bytes: int = 0) -> dict[Cell, Shape]:
    """A shape for each cell that has a complete request in its steady phase: medians of what was seen there.

    run: the content of run.json. event_bytes: 0 takes what was seen.

    Raises: ShapeError where there is none, or none that the truth server could take the place of.
    """
    transport = run["options"].get("transport") or "gevent"
    if transport == "boto3":
        raise ShapeError("boto3 speaks to SageMaker only, which the truth server is not")
    protocols = {protocol_of(endpoint["protocol"]) for endpoint in run["endpoints"]} or {"tgi"}
    arrivals = None
    if loop := run.get("open_loop"):
        arrivals = Arrivals(loop["kind"], loop["rate_per_s"], loop["burstiness"], run["seed"])
    seen: dict[Cell, list[Sample]] = defaultdict(list)
    for sample in samples:
        of = seen[sample.cell.in_wave(None)] if sample.phase == "steady" and sample.complete else []
        if sample.started_ns is not None and sample.events and len(of) < ENOUGH:
            of.append(sample)
    seen = {cell: of for cell, of in seen.items() if of}
    if not seen:
        raise ShapeError("no request was complete in the steady phase: there is no load to replay")
    if not all(sample.streamed for of in seen.values() for sample in of):
        raise ShapeError("nothing was streamed, and the truth server only streams")
    (protocol, *_) = sorted(protocols)
    return {
        cell: Shape(
            concurrency=cell.concurrency,
            input_tokens=max(LEAST_INPUT_TOKENS, _middle([stats.input_tokens(each) or 0 for each in of])),
            tokens=_middle([len(each.events) for each in of]),
            first_s=median(ttft for each in of if (ttft := stats.ttft_s(each)) is not None),
            gap_s=max(median([gap for each in of for gap in stats.itl_s(each)] or [USUAL_GAP_S]), LEAST_GAP_S),
            event_bytes=event_bytes or _event_bytes(of),
            arrivals=arrivals,
            in_waves=of[0].cell.wave is not None,
            protocol=protocol,
            transport=transport,
        )
        for cell, of in seen.items()
    }


def shapes_of(folder: Path, event_bytes: int = 0) -> dict[Cell, Shape]:
    """`shapes` of a run's folder.

    Raises: ShapeError; OSError, ValueError, KeyError, TypeError where it isn't one.
    """
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return shapes(read_samples(folder / "samples.jsonl"), run, event_bytes)


def heaviest(of: Mapping[Cell, Shape]) -> Iterator[tuple[Shape, Sequence[Cell]]]:
    """One shape for all cells of a concurrency: that with the most token events a second; the heaviest comes first."""
    groups: dict[tuple[int, Arrivals | None], list[tuple[Cell, Shape]]] = defaultdict(list)
    for cell, shape in of.items():
        groups[shape.concurrency, shape.arrivals].append((cell, shape))
    found = [
        (max((shape for _, shape in members), key=lambda shape: shape.events_per_s), [cell for cell, _ in members])
        for members in groups.values()
    ]
    yield from sorted(found, key=lambda each: -each[0].events_per_s)


def _event_bytes(of: Iterable[Sample]) -> int:
    """Median of what came for a token event, all frames of the reply included; 0 where older files don't say."""
    sizes = [each.body_bytes // len(each.events) for each in of if each.body_bytes is not None]
    return min(_middle(sizes), MOST_EVENT_BYTES) if sizes else 0


def _middle(values: Sequence[int]) -> int:
    return max(1, round(median(values)))
