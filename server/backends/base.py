"""A backend is a device with a fixed number of KV slots and three verbs, called by one thread only.

    step = backend.prefill(slot, token_ids, sampling)   # a free slot takes a prompt; None means "call me again"
    steps = backend.decode()                            # every live slot advances by one token, together
    backend.release(slot)                               # the slot may be prefilled again

A slot is live from the `Step` of its prefill to its release. `decode` takes no argument because a compiled graph has
no way to leave a live slot out: absent rows would be overwritten (optimum-neuron 0.4.5 does exactly that).

A call that raises costs the requests it worked for, and no others: `prefill` the one it was given, `decode` all live
ones. Their slots are released at once, and whatever the call has left in them must not reach the next prompts there. A
backend that cannot go on raises `BackendLost`. It is taken for lost, too, where `release` raises, where a call takes
longer than `--step-timeout-s`, and where it fails three times in a row and then does not pass `selfcheck.check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and what is told of it. Defaults are greedy; None is off. Ranges: docs/wire.md."""

    do_sample: bool = False
    temperature: float | None = None  # > 0; divides the logits
    top_k: int | None = None  # >= 1; keeps the k likeliest
    top_p: float | None = None  # in (0, 1); keeps the smallest set whose probability reaches p
    typical_p: float | None = None  # in (0, 1); keeps the tokens nearest to the entropy, up to that probability
    repetition_penalty: float | None = None  # > 0; prompt and generated tokens count
    frequency_penalty: float | None = None  # -2 to 2; taken off a logit once for every time its token was generated
    presence_penalty: float | None = None  # -2 to 2; taken off a logit whose token was generated
    seed: int | None = None  # 64 bits; the same seed gives the same tokens
    ignore_eos: bool = False  # the end-of-sequence tokens end nothing; sampling on the host never chooses them
    min_new_tokens: int | None = None  # before so many, the end-of-sequence tokens are never chosen
    top_n_tokens: int | None = None  # tell the n likeliest tokens of every step
    prompt_logprobs: bool = False  # tell the log probability of every prompt token (and its n likeliest)


@dataclass(frozen=True, slots=True)
class Score:
    """What the model itself thought at one position: natural logs of its probabilities, before any warping."""

    logprob: float  # of the token that stands there
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the likeliest ones, falling


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one slot. `score` is None where the backend keeps its logits to itself (sampling on the device)."""

    token_id: int
    score: Score | None = None
    prompt: tuple[Score, ...] = ()  # with `Sampling.prompt_logprobs`, at the end of prefill: of tokens 1, 2, … n - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the backend can hold and which fields of `Sampling` it honours; everything else is refused by name."""

    slots: int
    max_input_tokens: int
    max_total_tokens: int  # prompt and new tokens of one request
    vocabulary: int  # token ids are below it
    sampling: frozenset[str]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # where a field's own is too wide

    @property
    def tells_scores(self) -> bool:
        """Whether steps come with what the model thought of them."""
        return "top_n_tokens" in self.sampling


class Backend(Protocol):
    @property
    def limits(self) -> Limits: ...

    @property
    def about(self) -> Mapping[str, Any]:
        """What runs the model, for /info and for reports: `name`, the shape it runs in, `versions` of what runs it."""

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        """Take a prompt (1 <= len(token_ids) <= limits.max_input_tokens) into a free slot.

        Returns the first new token, or None: "call me again with the same arguments" (chunked prefill).
        """

    def decode(self) -> Mapping[int, Step]:
        """Advance every live slot by one token in one forward pass."""

    def release(self, slot: int) -> None:
        """Free a live slot, or one whose prefill was cut short or has raised; others are left alone. Never raises."""
