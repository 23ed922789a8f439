"""A token source that costs nothing, the same for our engine and for the peers' apps; and our server on top of it.

    python -m benchmarks.zero_cost PORT SLOTS GAP_S GIL_S STAMPS     # serves, as benchmarks/peers/ do

A step gives every stream its next token. Which step made it can be read from the token's id, and when the step ended
from STAMPS, a file of int64 nanoseconds (CLOCK_MONOTONIC) that a client on the same machine maps.

The thread that steps is in each step GIL_S seconds busy as an engine that runs a model eagerly is: SLICE_S of pure
Python, then as long without the interpreter's lock, and so on, from the moment when the last step's tokens have been
handed over. GAP_S is from step to step. 0: as fast as the event loop takes tokens, at most DEPTH steps ahead of it.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.backends.base import Limits, Sampling, Step

SLICE_S = 0.00025
DEPTH = 2
WORDS = 1000  # a step's tokens have the id FIRST_WORD + its number modulo this
FIRST_WORD = 1
STEPS = 1 << 20
LONGEST = 10**7
SPELLED = [f" w{number}" for number in range(WORDS)]


class Beat:
    """When steps happen, and what they cost."""

    def __init__(self, gap_s: float, gil_s: float, stamps: Path) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # that tokens are handed to
        self._gap_s = gap_s
        self._gil_s = gil_s
        self._due_s = time.monotonic()
        self._turns = threading.Semaphore(DEPTH)
        self._behind = 0
        self.steps = 0
        with stamps.open("r+b") as file:
            self._stamps = mmap.mmap(file.fileno(), 8 * STEPS)

    def step(self) -> int:
        """Wait until the next step is over; its number."""
        self._hold()
        if self._gap_s:
            now = time.monotonic()
            self._due_s = max(self._due_s + self._gap_s, now)
            time.sleep(self._due_s - now)
        elif self.loop is not None:
            if self._behind:
                self.loop.call_soon_threadsafe(self._turns.release)  # runs after the last step's tokens
            self._behind = 1
            self._turns.acquire()
        return self.mark()

    def mark(self) -> int:
        """Stamp a step that is over now; its number."""
        self.steps += 1
        struct.pack_into("<q", self._stamps, 8 * self.steps, time.monotonic_ns())
        struct.pack_into("<q", self._stamps, 0, self.steps)
        return self.steps

    def _hold(self) -> None:
        """Half of it is pure Python: the other threads get the interpreter in between, as they do between two ops."""
        for _ in range(round(self._gil_s / SLICE_S / 2)):
            end = time.monotonic() + SLICE_S
            while time.monotonic() < end:
                pass
            time.sleep(SLICE_S)


class ZeroCostBackend:
    """server.backends.base.Backend: every live slot says the word of the step."""

    def __init__(self, slots: int, beat: Beat) -> None:
        self.limits = Limits(slots, 100, LONGEST, FIRST_WORD + WORDS, frozenset({"ignore_eos"}))
        self.about: Mapping[str, Any] = {"name": "zero cost"}
        self._beat = beat
        self._live: set[int] = set()
        self._words = [Step(FIRST_WORD + number) for number in range(WORDS)]

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step:
        self._live.add(slot)
        return self._words[self._beat.mark() % WORDS]

    def decode(self) -> Mapping[int, Step]:
        return dict.fromkeys(self._live, self._words[self._beat.step() % WORDS])

    def release(self, slot: int) -> None:
        self._live.discard(slot)


def tokenizer() -> Any:
    """One id a word, byte-level as most models' are."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from server.tokenizer import Tokenizer

    words = {"</s>": 0} | {word.replace(" ", "Ġ"): FIRST_WORD + n for n, word in enumerate(SPELLED)}
    fast = Fast(models.WordLevel(words, unk_token=SPELLED[0].replace(" ", "Ġ")))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>"), [0])


def arguments() -> tuple[int, int, Beat]:
    port, slots, gap_s, gil_s, stamps = sys.argv[1:]
    return int(port), int(slots), Beat(float(gap_s), float(gil_s), Path(stamps))


def serve() -> None:
    import uvicorn

    from server.app import create_app
    from server.lifecycle import Http1, Server
    from server.settings import Settings

    port, slots, beat = arguments()

    class Stepped(Server):
        async def startup(self, sockets: Any = None) -> None:
            beat.loop = asyncio.get_running_loop()
            await super().startup(sockets)

    settings = Settings(slots=slots, max_concurrent_requests=2 * slots, port=port)
    app = create_app(settings, lambda _: (ZeroCostBackend(slots, beat), tokenizer()))
    config = uvicorn.Config(app, port=port, http=Http1, ws="none", log_config=None, access_log=False)
    Stepped(config, app.state.service, 0.0).run()


if __name__ == "__main__":
    serve()
