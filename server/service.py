"""What stands between the routes and the engine: is the server ready, and the stream of one request's tokens.

loading ──► ready ──► draining        SIGTERM: new requests get 503, running ones finish
   │          └─────► broken          the backend cannot go on: 503 for good
   └──► failed                        the model could not be loaded: the process ends
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from types import TracebackType
from typing import TypeVar

from server.backends.base import Backend, Sampling
from server.engine.engine import Batch, Engine
from server.engine.request import Delivery, Failure, Request, Token
from server.errors import Overloaded, Unavailable
from server.metrics import Metrics
from server.settings import Settings
from server.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

FAREWELL_S = 1.0  # for the error events of requests that were cut


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"
    FAILED = "failed"


class Stream:
    """The tokens of one request, in order. Leaving it early cancels the request and frees its slot."""

    def __init__(self, service: Service, engine: Engine, request: Request, mailbox: asyncio.Queue[Delivery]) -> None:
        self.request = request
        self.tokenizer = engine.tokenizer
        self._engine = engine
        self._service = service
        self._mailbox = mailbox
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Raises: GenerationError where the backend failed."""
        while not self._ended:
            delivery = await self._mailbox.get()
            if isinstance(delivery, Failure):
                self._ended = True
                raise delivery.error
            self._ended = delivery.finish is not None
            yield delivery

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._ended = True
            self._engine.cancel(self.request)
        self._service.close(self)


class Service:
    def __init__(self, settings: Settings, load: Callable[[Settings], tuple[Backend, Tokenizer]]) -> None:
        """`load` blocks for as long as the model takes; it runs in a thread of its own."""
        self.settings = settings
        self.metrics = Metrics()
        self.phase = Phase.LOADING
        self.failure: Exception | None = None  # why FAILED or BROKEN
        self.engine: Engine | None = None  # until the model is loaded
        self.model_name = settings.model or "demo"
        self._load = load
        self._open: set[Stream] = set()

    async def start(self) -> None:
        """Load the model, then take requests."""
        loop = asyncio.get_running_loop()
        try:
            backend, tokenizer = await _in_daemon_thread(lambda: self._load(self.settings))
        except Exception as error:
            self.failure, self.phase = error, Phase.FAILED
            return

        def hand_over(batch: Batch) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_deliver, batch)

        def on_broken(error: Exception) -> None:
            self.failure, self.phase = error, Phase.BROKEN

        if self.phase is not Phase.LOADING:  # a signal came first
            return
        self.engine = Engine(backend, tokenizer, hand_over, self.metrics, on_broken)
        self.engine.start()
        self.phase = Phase.READY
        logger.info("ready: %s, %d slots", self.model_name, backend.limits.slots)

    async def drain(self, grace_s: float) -> None:
        """Take no more requests and wait for the running ones; those that need more than `grace_s` seconds are
        failed.
        """
        self.phase = Phase.DRAINING if self.phase in (Phase.LOADING, Phase.READY) else self.phase
        logger.info("draining: %d requests may take %g s to finish", len(self._open), grace_s)
        await self._closed(grace_s)
        if self._open:
            logger.warning("%d requests did not finish in %g s and are cut", len(self._open), grace_s)
            await self.stop()
            await self._closed(FAREWELL_S)

    async def stop(self) -> None:
        """End the engine; what still runs fails. May be called twice."""
        if self.engine is not None:
            await asyncio.to_thread(self.engine.stop)

    async def _closed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._open:
                    await asyncio.sleep(0.02)

    def require_ready(self) -> Engine:
        """The engine that takes requests.

        Raises: Unavailable while the model loads, during shutdown, and after the backend failed.
        """
        match self.phase:
            case Phase.READY if self.engine is not None:
                return self.engine
            case Phase.LOADING:
                raise Unavailable("loading")
            case Phase.DRAINING:
                raise Unavailable("shutting down")
            case _:
                raise Unavailable("unhealthy")

    def open(
        self,
        request_id: str,
        token_ids: tuple[int, ...],
        max_new_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
        arrived_s: float,
    ) -> Stream:
        """Queue a request that has been validated.

        Raises: Overloaded where as many requests as the server takes are in it; Unavailable.
        """
        engine = self.require_ready()
        if len(self._open) >= self.settings.max_concurrent_requests:
            raise Overloaded("Model is overloaded")
        mailbox: asyncio.Queue[Delivery] = asyncio.Queue()
        request = Request(request_id, token_ids, max_new_tokens, sampling, stop, mailbox.put_nowait, arrived_s)
        stream = Stream(self, engine, request, mailbox)
        self._open.add(stream)
        engine.submit(request)
        return stream

    def close(self, stream: Stream) -> None:
        self._open.discard(stream)


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Like asyncio.to_thread, but a process that is told to end need not wait for it: loading can take minutes."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, problem = None, None
        try:
            value = work()
        except Exception as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(settle, value, problem)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await result


def _deliver(batch: Batch) -> None:
    """Runs on the event loop, once per step."""
    for request, delivery in batch:
        request.deliver(delivery)
