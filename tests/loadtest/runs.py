"""Runs whose requests are as correlated as real ones: what a run, a wave and a request have of their own is drawn.

Times are lognormal: exp(run + wave + request), each with a spread of its own, around 100 ms until the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.compare.sides import Run, key_of
from loadtest.plan import Cell
from loadtest.sample import Got, Sample
from loadtest.summary import summarise
from loadtest.verdict import Verdict

MS = 1_000_000


@dataclass(frozen=True)
class Spread:
    """Standard deviations of logarithms: 0.03 is 3 %."""

    run: float = 0.02
    wave: float = 0.03
    request: float = 0.03


def request(
    cell: Cell, number: int, begin_ms: float, ttft_ms: float, step_ms: float, user: int, **changes: Any
) -> Sample:
    begin_ns, first_ns = int(begin_ms * MS), int((begin_ms + ttft_ms) * MS)
    assert cell.new_tokens is not None
    last_ns = first_ns + int(step_ms * (cell.new_tokens - 1) * MS)
    events = ((first_ns, 1, 0), (last_ns, cell.new_tokens - 1, 1))[: min(cell.new_tokens, 2)]
    fields: dict[str, Any] = {
        "run": "r", "id": f"{cell.label}-{number}", "process": 0, "user": user, "cell": cell, "phase": "steady",
        "got": Got(cell.input_tokens, cell.new_tokens, "server"), "scheduled_ns": begin_ns, "connect_ns": None,
        "started_ns": begin_ns, "sent_ns": begin_ns, "headers_ns": begin_ns, "events": events,
        "first_text_ns": first_ns, "ended_ns": last_ns, "clock": "kernel", "transport": "gevent",
        "verdict": Verdict.COMPLETE, "detail": None, "status": 200,
    }  # fmt: skip
    return Sample(**(fields | changes))


def in_waves(
    rng: np.random.Generator, waves: int = 10, users: int = 4, shift: float = 1.0, spread: Spread | None = None
) -> list[Sample]:
    """One cell, 256→16: a request of a wave waits for those before it, as where prompts are prefilled in turn."""
    spread = spread or Spread()
    cell = Cell("T", users, users, 256, 16)
    of_run = shift * np.exp(rng.normal(0, spread.run))
    samples = []
    for wave in range(waves):
        of_wave = of_run * np.exp(rng.normal(0, spread.wave))
        for rank, own in enumerate(np.exp(rng.normal(0, spread.request, users))):
            ttft, step = 100 * (rank + 1) * of_wave * own, 10 * of_wave * own
            samples.append(request(cell.in_wave(wave), wave * users + rank, 10_000 * wave, ttft, step, rank))
    return samples


def in_a_loop(
    rng: np.random.Generator, rounds: int = 60, users: int = 4, shift: float = 1.0, spread: Spread | None = None
) -> list[Sample]:
    """One cell of a closed loop: users that ask again as soon as they are answered. What is slow stays slow for a
    while: the state of the server is an autoregression over rounds (0.5).
    """
    spread = spread or Spread()
    cell = Cell(None, users, users, 256, 16)
    of_run = shift * np.exp(rng.normal(0, spread.run))
    free_ms, state, samples = np.arange(users, dtype=float), 0.0, []
    for turn in range(rounds):
        state = 0.5 * state + rng.normal(0, spread.wave)
        for user, own in enumerate(np.exp(rng.normal(0, spread.request, users))):
            ttft, step = 100 * of_run * np.exp(state) * own, 10 * of_run * np.exp(state) * own
            samples.append(request(cell, turn * users + user, free_ms[user], ttft, step, user))
            free_ms[user] = samples[-1].ended_ns / MS
    return samples


def a_run(samples: list[Sample], name: str = "run", **changes: Any) -> Run:
    """As `load` would read it."""
    waves = samples[0].cell.wave is not None
    said = {
        "schema": 1, "run": name, "tool": {"name": "tokenclock", "version": "0.1.0"}, "created": "2026-11-22T21:55:00Z",
        "command": ["tokenclock", "run"], "plan": "published" if waves else None, "configs": ["T"] * waves,
        "waves": 10 if waves else None, "seed": 1, "options": {},
        "endpoints": [{"config": None, "url": "http://h", "protocol": "tgi", "info": None, "command": None}],
        "machine": {"platform": "Linux", "cpu": "any", "cores": 2, "memory_bytes": None, "python": "3.11"},
        "versions": {}, "processes": [], "client": [], "open_loop": None, "interrupted": False,
    } | changes  # fmt: skip
    by_cell: dict[Any, list[Sample]] = {}
    for sample in samples:
        cell: Mapping[str, Any] = {name: getattr(sample.cell, name) for name in sample.cell.__slots__}
        by_cell.setdefault(key_of(cell), []).append(sample)
    return Run(name, said, summarise(samples, said), by_cell)
