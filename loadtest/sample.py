"""One request as it was seen: raw instants, counts and a verdict. Nothing is averaged here.

`samples.jsonl` holds one of these per line, in the schema of `samples.schema.json`; every figure of every report is
computed from that file alone. Instants are monotonic nanoseconds of the process that sent the request.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from loadtest.plan import Asked, Cell
from loadtest.verdict import Verdict

SCHEMA = 1

#: (arrival in ns, tokens the event carries, id of the socket read it came out of). Events that share a read came out
#: of one read, and of those only the last is exact.
Event = tuple[int, int, int]


class SampleError(ValueError):
    """A line of samples.jsonl that is not a sample; the message names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Got:
    """What the request really was, and who counted it."""

    input_tokens: int | None
    new_tokens: int
    counted_by: str  # server | tokenizer | events


@dataclass(frozen=True, slots=True)
class Sample:
    run: str
    id: str
    process: int
    user: int
    cell: Cell
    phase: str  # warmup | ramp | steady | drain
    got: Got
    scheduled_ns: int  # when the plan wanted it sent
    connect_ns: int | None  # what a fresh connection cost, before `started`; None where one was open
    started_ns: int | None  # read immediately before the first write
    sent_ns: int | None  # last byte of the request handed to the kernel
    headers_ns: int | None
    events: tuple[Event, ...]  # every event that carried tokens
    first_text_ns: int | None  # first visible text
    ended_ns: int  # last byte, or the moment it was given up
    clock: str  # kernel | user
    transport: str
    verdict: Verdict
    detail: str | None
    status: int | None
    server: dict[str, Any] | None = field(default=None)  # the server's own timing, where it says
    asked: Asked | None = None  # its own; None: what the cell says
    streamed: bool = True  # else the reply came whole: one event, which is its end, and no first token
    body_bytes: int | None = None  # of the reply, its framing taken off; None in older files

    @property
    def demanded(self) -> Asked:
        return self.cell.demands(self.asked)

    @property
    def complete(self) -> bool:
        return self.verdict is Verdict.COMPLETE

    def to_json(self) -> str:
        """One line of samples.jsonl, without the newline; ASCII, whatever a server wrote into its messages."""
        raw = {"schema": SCHEMA, **{each.name: getattr(self, each.name) for each in fields(self)}}
        with suppress(TypeError):  # half a surrogate pair, or an integer of more than 64 bits
            line = orjson.dumps(raw)  # at a fifth of what json costs
            if line.isascii():
                return line.decode()
        return json.dumps(raw, default=asdict, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Sample:
        """Raises: SampleError where the line is not a sample of schema 1."""
        try:
            raw = json.loads(line)
            schema = raw.pop("schema")
            if schema != SCHEMA:
                raise SampleError(f"schema {schema!r} is not {SCHEMA}: read it with the version that wrote it")
            raw["cell"] = Cell(**raw["cell"])
            raw["got"] = Got(**raw["got"])
            if (asked := raw.get("asked")) is not None:
                raw["asked"] = Asked(**asked)
            elif raw["cell"].new_tokens is None:
                raise SampleError("neither the request nor its cell says how many new tokens were asked for")
            raw["verdict"] = Verdict(raw["verdict"])
            if raw["events"]:
                at_ns, tokens, reads = zip(*raw["events"], strict=True)
                raw["events"] = tuple(zip(at_ns, tokens, reads, strict=True))
            else:
                raw["events"] = ()
            return cls(**raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, SampleError):
                raise
            raise SampleError(f"not a sample: {error}") from error


def read_samples(path: Path, only: Container[int] | None = None) -> Iterator[Sample]:
    """Every sample, or those of the numbers `only`, counted from 0. An unfinished last line (a run that was killed) is
    left out.

    Raises: SampleError naming the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            if only is not None and number - 1 not in only:
                continue
            try:
                yield Sample.from_json(line)
            except SampleError as error:
                raise SampleError(f"{path}, line {number}: {error}") from error


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    with path.open("w", encoding="utf-8") as out:
        out.writelines(sample.to_json() + "\n" for sample in samples)
