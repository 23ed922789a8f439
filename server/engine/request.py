"""One generation request: what was asked, where it stands, and when it got there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.backends.base import Sampling, Score
from server.errors import RequestError


class FinishReason(StrEnum):
    """Why a text ended, in TGI's words."""

    LENGTH = "length"
    EOS = "eos_token"
    STOP = "stop_sequence"


@dataclass(slots=True)  # nobody writes to it; but frozen, it would take a microsecond more to make
class Token:
    """One token on its way out. `text` is what became readable with it: "" while a character is incomplete."""

    index: int  # from 1
    id: int
    text: str
    score: Score | None
    special: bool
    finish: FinishReason | None = None  # set on the last token


@dataclass(frozen=True, slots=True)
class Failure:
    """The request ends without a last token."""

    error: RequestError


Delivery = Token | Failure


@dataclass(frozen=True, slots=True)
class Task:
    """One text to generate, validated: 1 <= len(token_ids), and prompt and new tokens fit the backend."""

    prompt: str  # what `token_ids` spell
    token_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    operation: str = "text_completion"  # or "chat": OpenTelemetry's words, for the metrics

    def __post_init__(self) -> None:
        if not self.token_ids:  # a forward pass over nothing would end the engine
            raise ValueError("a task without tokens")


@dataclass(eq=False, slots=True)
class Request:
    """A task on its way. Instants are monotonic seconds; None until reached. The engine's thread alone writes them;
    the outcome is also its stream's to write, where it is left before its end.
    """

    id: str
    task: Task
    deliver: Callable[[Sequence[Delivery]], None]  # called on the event loop, with one or more
    arrived_s: float = field(default_factory=time.monotonic)  # before its body was read
    queued_s: float = field(default_factory=time.monotonic)
    prefill_started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    new_tokens: int = 0
    prompt_scores: tuple[Score, ...] = ()  # where asked for, from the first token on
    batch_sizes: Counter[int] = field(
        default_factory=Counter
    )  # its decode steps by the slots that were live, once it has ended
    outcome: str | None = None  # once it has ended: "success", "dropped", or the `error_type` of its failure

    def timing(self) -> dict[str, Any]:
        """Where the time went, in seconds: what `x-tokenclock-timing` carries once the request has ended.

        queue_s + prefill_s + decode_s = last token − arrival, to the rounding.
        """
        started = self.arrived_s if self.prefill_started_s is None else self.prefill_started_s
        first = started if self.first_token_s is None else self.first_token_s
        last = first if self.last_token_s is None else self.last_token_s
        return {
            "request_id": self.id,
            "queue_s": round(started - self.arrived_s, 6),
            "prefill_s": round(first - started, 6),
            "decode_s": round(last - first, 6),
            "batch_sizes": {str(size): steps for size, steps in sorted(self.batch_sizes.items())},
        }
