"""A backend is a device with a fixed number of KV slots and three verbs, called by one thread only.

    step = backend.prefill(slot, token_ids, sampling)   # a free slot takes a prompt; None means "call me again"
    steps = backend.decode()                            # every live slot advances by one token, together
    backend.release(slot)                               # the slot may be prefilled again

A slot is live from the `Step` of its prefill to its release. `decode` takes no argument because a compiled graph has
no way to leave a live slot out: absent rows would be overwritten (optimum-neuron 0.4.5 does exactly that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Defaults are greedy; a None is off. Ranges are TGI's (docs/wire.md)."""

    do_sample: bool = False
    temperature: float | None = None  # > 0; divides the logits
    top_k: int | None = None  # >= 1; keeps the k likeliest
    top_p: float | None = None  # in (0, 1); keeps the smallest set whose probability reaches p
    repetition_penalty: float | None = None  # > 0; prompt and generated tokens count
    seed: int | None = None  # 64 bits; the same seed gives the same tokens
    ignore_eos: bool = False  # the end-of-sequence tokens are never chosen


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one slot. `logprob` is the natural log of the model's own probability, before any warping."""

    token_id: int
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the backend can hold and which fields of `Sampling` it honours; everything else is refused with 422."""

    slots: int
    max_input_tokens: int
    max_total_tokens: int  # prompt and new tokens of one request
    sampling: frozenset[str]


class Backend(Protocol):
    @property
    def limits(self) -> Limits: ...

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        """Take a prompt (1 <= len(token_ids) <= limits.max_input_tokens) into a free slot.

        Returns the first new token, or None: "call me again with the same arguments" (chunked prefill).
        """

    def decode(self) -> Mapping[int, Step]:
        """Advance every live slot by one token in one forward pass."""

    def release(self, slot: int) -> None:
        """Free a live slot, or one whose prefill was cut short."""
