"""The bytes of one streamed answer on their way to its client, which never keeps anybody waiting.

Tokens come in the callback of the engine's step, where all streams of the step have their turn. So nothing is awaited
here: `put` writes to the connection where it can, and else drives ASGI's `send` to its end at once. Where that wants to
wait, because the client doesn't read, a task waits in its place, and what comes meanwhile is kept, up to a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any

from starlette.types import Message, Send


class Outlet:
    __slots__ = (
        "_catching_up",
        "_closed",
        "_kept",
        "_more",
        "_most_unread",
        "_on_overflow",
        "_send",
        "_unread",
        "_write",
    )

    def __init__(
        self,
        send: Send,
        most_unread: int,
        on_overflow: Callable[[], None],
        write: Callable[[bytes], bool] | None = None,
    ) -> None:
        """`on_overflow` is called once, when more than `most_unread` bytes wait for the client. They are dropped.
        `write`, where the server has one, sends a part of the answer that isn't its last, or says that `send` has to.
        """
        self._send = send
        self._write = write
        self._most_unread = most_unread
        self._on_overflow = on_overflow
        self._kept: list[bytes] = []
        self._unread = 0  # bytes of what is kept, and of what is being sent meanwhile
        self._more = True
        self._catching_up: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def behind(self) -> bool:
        """Whether bytes wait for the client to read."""
        return self._catching_up is not None

    def put(self, content: bytes, more: bool = True) -> None:
        """Send `content`, or keep it. Never waits. `more=False` completes the answer, and nothing is taken after it.

        Raises: what `send` raises.
        """
        if self._closed:
            return
        self._closed = not more
        if self._catching_up is None:
            if more and self._write is not None and self._write(content):
                return
            sending: Any = self._send(body(content, more))
            try:
                wanted = sending.send(None)
            except StopIteration:  # sent
                return
            self._more, self._unread = more, len(content)
            self._catching_up = asyncio.ensure_future(self._catch_up(sending, wanted))
        else:
            self._kept.append(content)
            self._more, self._unread = more, self._unread + len(content)
        if self._unread > self._most_unread:
            self.close()
            self._on_overflow()

    def close(self) -> None:
        """Nothing is sent from here on."""
        self._closed = True
        self._kept.clear()
        if self._catching_up is not None:
            self._catching_up.cancel()

    async def _catch_up(self, sending: Coroutine[Any, Any, None], wanted: Any) -> None:
        with contextlib.suppress(OSError):  # how a server may say that the client has gone
            await carried_on(sending, wanted)
            while self._kept:
                content, more = b"".join(self._kept), self._more
                self._kept, self._unread = [], len(content)
                await self._send(body(content, more))
        self._catching_up, self._unread = None, 0


def body(content: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


@coroutine
def carried_on(begun: Coroutine[Any, Any, None], wanted: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that was driven by hand until it wanted to wait for `wanted`."""
    while True:
        try:
            step = partial(begun.send, (yield wanted))
        except BaseException as error:  # the waiting failed, or is cancelled: that is for it to handle
            step = partial(begun.throw, error)
        try:
            wanted = step()
        except StopIteration:
            return
