"""A backend that says what it is told to: the smallest honest implementation of the contract, for tests."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from server.backends.base import Limits, Sampling, Step
from server.engine.request import Delivery


class ScriptedBackend:
    """Each prompt's own ids are its answer, from the second on, round and round. Keeps a log of every call.

    `chunks` prefill calls are needed for a prompt; `fail_after` decode steps it breaks. `before` is called with the
    verb of every call: it may raise, take its time, or move a clock.
    """

    def __init__(
        self,
        slots: int = 4,
        chunks: int = 1,
        fail_after: int | None = None,
        before: Callable[[str], None] = lambda verb: None,
        keep_log: bool = True,
        vocabulary: int = 256,
        longest: int = 100,
    ) -> None:
        self.limits = Limits(slots, longest - 1, longest, vocabulary, frozenset({"ignore_eos"}))
        self._before = before
        self._raised: set[int] = set()  # slots whose prefill has raised: they may be released, too
        self.about = {"name": "scripted"}
        self.log: list[tuple[str, int]] | deque[tuple[str, int]] = [] if keep_log else deque(maxlen=1)
        self._chunks = chunks
        self._left: dict[int, int] = {}  # slot -> chunks still to come
        self._live: dict[int, tuple[Sequence[int], int]] = {}
        self._fail_after = fail_after

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        assert slot not in self._live, f"slot {slot} is live"
        self.log.append(("prefill", slot))
        self._raised.add(slot)
        self._before("prefill")
        self._raised.discard(slot)
        left = self._left.get(slot, self._chunks) - 1
        self._left[slot] = left
        if left:
            return None
        del self._left[slot]
        self._live[slot] = (token_ids, 1)
        return self._next(slot)

    def decode(self) -> Mapping[int, Step]:
        self.log.append(("decode", len(self._live)))
        self._before("decode")
        if self._fail_after is not None:
            self._fail_after -= 1
            if self._fail_after < 0:
                raise RuntimeError("the device is gone")
        return {slot: self._next(slot) for slot in list(self._live)}

    def release(self, slot: int) -> None:
        self.log.append(("release", slot))
        self._before("release")
        assert slot in self._live or slot in self._left or slot in self._raised, f"slot {slot} is not in use"
        self._raised.discard(slot)
        self._live.pop(slot, None)
        self._left.pop(slot, None)

    def _next(self, slot: int) -> Step:
        token_ids, position = self._live[slot]
        self._live[slot] = (token_ids, position + 1)
        return Step(token_ids[position % len(token_ids)])


def put_all(inbox: queue.SimpleQueue[Delivery], came: Sequence[Delivery]) -> None:
    """What a request that is listened to by a queue does with what comes."""
    for delivery in came:
        inbox.put(delivery)
