"""A backend that says what it is told to: the smallest honest implementation of the contract, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.backends.base import Limits, Sampling, Step


class ScriptedBackend:
    """Each prompt's own ids are its answer, from the second on, round and round. Keeps a log of every call.

    `chunks` prefill calls are needed for a prompt; `fail_after` decode steps it breaks.
    """

    def __init__(self, slots: int = 4, chunks: int = 1, fail_after: int | None = None) -> None:
        self.limits = Limits(slots, 99, 100, 256, frozenset({"ignore_eos"}))
        self.about = {"name": "scripted"}
        self.log: list[tuple[str, int]] = []
        self._chunks = chunks
        self._left: dict[int, int] = {}  # slot -> chunks still to come
        self._live: dict[int, tuple[Sequence[int], int]] = {}
        self._fail_after = fail_after

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        assert slot not in self._live, f"slot {slot} is live"
        self.log.append(("prefill", slot))
        left = self._left.get(slot, self._chunks) - 1
        self._left[slot] = left
        if left:
            return None
        del self._left[slot]
        self._live[slot] = (token_ids, 1)
        return self._next(slot)

    def decode(self) -> Mapping[int, Step]:
        self.log.append(("decode", len(self._live)))
        if self._fail_after is not None:
            self._fail_after -= 1
            if self._fail_after < 0:
                raise RuntimeError("the device is gone")
        return {slot: self._next(slot) for slot in list(self._live)}

    def release(self, slot: int) -> None:
        self.log.append(("release", slot))
        assert slot in self._live or slot in self._left, f"slot {slot} is not in use"
        self._live.pop(slot, None)
        self._left.pop(slot, None)

    def _next(self, slot: int) -> Step:
        token_ids, position = self._live[slot]
        self._live[slot] = (token_ids, position + 1)
        return Step(token_ids[position % len(token_ids)])
