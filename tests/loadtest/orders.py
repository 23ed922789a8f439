"""What a dispatch is given in its tests: a cell, prompts that are never used up, and a finished sample."""

from __future__ import annotations

from loadtest.plan import Cell
from loadtest.prompts import Prompts
from loadtest.sample import Got, Sample
from loadtest.verdict import Verdict

CELL = Cell("T", 4, 3, 8, 4)


def prompts() -> Prompts:
    return Prompts(dict.fromkeys("abcdef", 1), around=0, seed=1)


def sample(status: int | None = 200, ended_ns: int = 50) -> Sample:
    return Sample(
        run="r",
        id="i",
        process=0,
        user=0,
        cell=CELL,
        phase="steady",
        got=Got(8, 4, "server"),
        scheduled_ns=0,
        connect_ns=None,
        started_ns=1,
        sent_ns=2,
        headers_ns=3,
        events=(),
        first_text_ns=None,
        ended_ns=ended_ns,
        clock="user",
        transport="gevent",
        verdict=Verdict.COMPLETE if status == 200 else Verdict.CONNECTION,
        detail=None,
        status=status,
    )
