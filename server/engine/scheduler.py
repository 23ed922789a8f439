"""What the device does next: a pure decision over a queue and a row of slots.

First come, first served. A free slot takes the next request. At most one prefill runs between two decode steps, so that
a burst of prompts can delay a running stream by one prefill per token and no more. A prefill that comes in chunks is
carried on, one chunk between two decode steps, before another one starts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Prefill(Generic[R]):
    slot: int
    request: R


@dataclass(frozen=True, slots=True)
class Decode:
    """Step all live slots."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until a request comes."""


class Scheduler(Generic[R]):
    """Keeps who waits and who sits where. The caller reports what happened: `prefilled`, `finish`."""

    def __init__(self, slots: int) -> None:
        self.waiting: deque[R] = deque()
        self.live: dict[int, R] = {}
        self._free = deque(range(slots))
        self.prefilling: Prefill[R] | None = None  # stays until its last chunk is done
        self._decode_is_due = False  # a prefill ran since the last decode step

    def submit(self, request: R) -> None:
        self.waiting.append(request)

    def next(self) -> Prefill[R] | Decode | Idle:
        """The next action. A `Prefill` stays the same one until `prefilled` or `drop` is called for it."""
        if self.live and self._decode_is_due:
            self._decode_is_due = False
            return Decode()
        if self.prefilling is None and self.waiting and self._free:
            self.prefilling = Prefill(self._free.popleft(), self.waiting.popleft())
        if self.prefilling is not None:
            self._decode_is_due = True
            return self.prefilling
        return Decode() if self.live else Idle()

    def prefilled(self) -> None:
        """The running prefill gave its token: its slot is live."""
        assert self.prefilling is not None, "no prefill is running"
        self.live[self.prefilling.slot] = self.prefilling.request
        self.prefilling = None

    def finish(self, slot: int) -> None:
        """A live slot is free again."""
        del self.live[slot]
        self._free.append(slot)

    def drop(self, request: R) -> int | None:
        """Forget a request wherever it is. Returns the slot the backend must release, or None if it held none."""
        if self.prefilling is not None and self.prefilling.request == request:
            slot = self.prefilling.slot
            self.prefilling = None
            self._free.append(slot)
            return slot
        for slot, holder in self.live.items():
            if holder == request:
                self.finish(slot)
                return slot
        if request in self.waiting:
            self.waiting.remove(request)
        return None
