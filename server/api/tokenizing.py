"""Long work on texts, off the event loop and one at a time: two would only fight for the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

LONG = 2_000  # characters, or as many other small things; less is done in less time than a thread costs
WORKERS = 1
T = TypeVar("T")
_workers: RunVar[CapacityLimiter] = RunVar("workers")  # of each event loop


async def off_the_loop(work: Callable[[], T], size: int) -> T:
    """The result of `work`, from a thread where it is long enough to keep running streams waiting."""
    if size <= LONG:
        return work()
    try:
        workers = _workers.get()
    except LookupError:
        workers = CapacityLimiter(WORKERS)
        _workers.set(workers)
    return await anyio.to_thread.run_sync(work, limiter=workers)
