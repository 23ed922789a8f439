"""What the peers' apps stand on: streams with a mailbox each, filled once a step from a thread, as an engine would.

The lightest thing that still is one: no scheduler, no queue, no slots, no detokenizer, no metrics.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel, Field

from benchmarks.zero_cost import FIRST_WORD, SPELLED, WORDS, Beat, arguments


class Parameters(BaseModel):
    max_new_tokens: int = Field(20, ge=1)
    ignore_eos: bool = False


class Body(BaseModel):
    inputs: str = Field(min_length=1)
    parameters: Parameters = Parameters()


class Token(NamedTuple):
    id: int
    text: str


class Mailboxes:
    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._open: set[asyncio.Queue[Token]] = set()
        self._words = [Token(FIRST_WORD + number, SPELLED[number]) for number in range(WORDS)]

    def start(self) -> None:
        self._beat.loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(self._beat.loop,), daemon=True).start()

    async def tokens(self, most: int) -> AsyncIterator[tuple[int, Token]]:
        mailbox: asyncio.Queue[Token] = asyncio.Queue()
        self._open.add(mailbox)
        try:
            for index in range(1, most + 1):
                yield index, await mailbox.get()
        finally:
            self._open.discard(mailbox)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            loop.call_soon_threadsafe(self._deliver, self._words[self._beat.step() % WORDS])

    def _deliver(self, token: Token) -> None:
        for mailbox in self._open:
            mailbox.put_nowait(token)


def event(index: int, token: Token) -> dict[str, object]:
    """TGI's, as ours."""
    told = {"id": token.id, "text": token.text, "logprob": None, "special": False}
    return {"index": index, "token": told, "generated_text": None, "details": None}


def serving(mailboxes: Mailboxes) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan in which they are filled."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        mailboxes.start()
        yield

    return lifespan


__all__ = ["Body", "Mailboxes", "arguments", "event", "serving"]
