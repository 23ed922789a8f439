"""One generation request: what was asked, where it stands, and when it got there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
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

    def __post_init__(self) -> None:
        if not self.token_ids:  # a forward pass over nothing would end the engine
            raise ValueError("a task without tokens")


@dataclass(eq=False, slots=True)
class Request:
    """A task on its way. Instants are monotonic seconds; None until reached. The engine's thread alone writes them."""

    id: str
    task: Task
    deliver: Callable[[Delivery], None]  # called on the event loop
    arrived_s: float = field(default_factory=time.monotonic)  # before its body was read
    queued_s: float = field(default_factory=time.monotonic)
    prefill_started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    new_tokens: int = 0
    prompt_scores: tuple[Score, ...] = ()  # where asked for, from the first token on
    batch_sizes: Counter[int] = field(default_factory=Counter)  # decode steps by the number of slots that were live

    def timing(self) -> dict[str, Any]:
        """Where the time went, in seconds: what `x-tokenclock-timing` carries once the request has ended."""
        started = self.prefill_started_s or self.arrived_s
        first = self.first_token_s or started
        return {
            "request_id": self.id,
            "queue_s": round(started - self.arrived_s, 6),
            "prefill_s": round(first - started, 6),
            "decode_s": round((self.last_token_s or first) - first, 6),
            "batch_sizes": {str(size): steps for size, steps in sorted(self.batch_sizes.items())},
        }
