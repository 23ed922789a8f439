"""What stands between the routes and the engine: is the server ready, and the stream of one request's tokens.

loading ──► ready ──► draining        SIGTERM: new requests get 503, running ones finish
   │          └─────► broken          the backend cannot go on: 503 for good, with the reason
   └──► failed                        the model could not be loaded: the process ends
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import TypeVar

from server.backends.base import Backend
from server.engine.engine import Engine
from server.engine.request import Delivery, Failure, Request, Task, Token
from server.errors import TOLD, BackendLost, GenerationError, Overloaded, RequestError, Unavailable
from server.metrics import Metrics
from server.relay import Relay
from server.settings import Settings
from server.tokenizer import Tokenizer, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Is called with the number of a text among its caller's, and what has come of it since the last call: one or more.
Listener = Callable[[int, Sequence[Delivery]], None]

STEP_S = 2.0  # for the step that runs when the engine is told to end
FAREWELL_S = 1.0  # for the error events of requests that were cut


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"
    FAILED = "failed"


class Stream:
    """The tokens of one caller's texts, as they come. Leaving it early cancels what still runs and frees the slots."""

    def __init__(self, service: Service, engine: Engine, request_id: str, tasks: Sequence[Task], arrived_s: float):
        self.request_id = request_id
        self.tokenizer = engine.tokenizer
        self._engine = engine
        self._service = service
        self._early: list[tuple[int, Sequence[Delivery]]] = []  # what came before anybody listened
        self._listener: Listener | None = None
        ids = [request_id] if len(tasks) == 1 else [f"{request_id}-{index}" for index in range(len(tasks))]
        self.requests = tuple(
            Request(of_text, task, partial(self._deliver, index), arrived_s, service.clock())
            for index, (of_text, task) in enumerate(zip(ids, tasks, strict=True))
        )
        self._running = set(self.requests)

    @property
    def running(self) -> bool:
        """Whether any of the texts has more to come."""
        return bool(self._running)

    def listen(self, listener: Listener) -> None:
        """Call `listener` with what comes and the number of its text, what came already included.

        It is called on the event loop by the very callback that a step's tokens come in, so the other streams of the
        step wait until it returns: it must not block. After a Failure it is not called again.
        """
        self._listener = listener
        early, self._early = self._early, []
        for index, deliveries in early:
            self._deliver(index, deliveries)

    async def texts(self) -> list[list[Token]]:
        """The tokens of every text, once all are complete.

        Raises: GenerationError where the backend failed, Unavailable where the server was stopped.
        """
        texts: list[list[Token]] = [[] for _ in self.requests]
        complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def collect(index: int, deliveries: Sequence[Delivery]) -> None:
            texts[index] += (each for each in deliveries if isinstance(each, Token))
            if complete.done():  # its reader has gone
                return
            if isinstance(last := deliveries[-1], Failure):
                complete.set_exception(last.error)
            elif not self._running:
                complete.set_result(None)

        self.listen(collect)
        await complete
        return texts

    def fail(self, error: RequestError) -> None:
        """End what still runs, where the engine can't."""
        outcome = TOLD[type(error)].error_type
        for request in self._running:
            request.outcome = request.outcome or outcome
            self._service.metrics.lost(request, request.outcome)
        self._deliver(0, [Failure(error)])

    def cancel(self, outcome: str) -> None:
        """Free the slots of what still runs, which ends with this outcome; its listener hears no more."""
        self._listener = _nobody
        while self._running:
            request = self._running.pop()
            request.outcome = request.outcome or outcome
            self._engine.cancel(request, outcome)

    def _deliver(self, index: int, deliveries: Sequence[Delivery]) -> None:
        listener = self._listener
        if listener is None:
            self._early.append((index, deliveries))
            return
        last = deliveries[-1]
        if isinstance(last, Failure):
            self._listener = _nobody
        if isinstance(last, Failure) or last.finish is not None:
            self._running.discard(self.requests[index])
        listener(index, deliveries)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel("dropped")
        self._service.close(self)


def _nobody(index: int, deliveries: Sequence[Delivery]) -> None:
    """Hears what comes after the end."""


class Service:
    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], tuple[Backend, Tokenizer]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` blocks for as long as the model takes; it runs in a thread of its own. `clock` gives the instants of
        every request, in seconds.
        """
        self.clock = clock
        self.settings = settings
        self.phase = Phase.LOADING
        self.failure: Exception | None = None  # why FAILED or BROKEN
        self.engine: Engine | None = None  # until the model is loaded
        self._stuck = False  # the engine's thread was left in a step that did not end
        self.model_name = settings.served_model_name or settings.model or "demo"
        self.metrics = Metrics(settings.backend, self.model_name, clock)
        self.started_s = int(time.time())  # Unix seconds
        self._load = load
        self._open: set[Stream] = set()
        self._entered: set[object] = set()  # requests that are read
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model, then take requests."""
        loop = asyncio.get_running_loop()
        try:
            backend, tokenizer = await _in_daemon_thread(lambda: self._load(self.settings))
        except Exception as error:
            self.failure, self.phase = error, Phase.FAILED
            return

        def on_broken(error: Exception) -> None:
            self.failure, self.phase = error, Phase.BROKEN

        if self.phase is not Phase.LOADING:  # a signal came first
            return
        self.metrics.loaded(backend.limits)
        self.engine = Engine(backend, tokenizer, Relay(loop).hand_over, self.metrics, on_broken, self.clock)
        self.engine.start()
        self._watch = asyncio.create_task(self._watch_over(self.engine))
        gc.collect()
        gc.freeze()  # what the model is made of stays: no later collection need walk through it while streams wait
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
        if self._watch is not None:
            self._watch.cancel()
        if self.engine is None or self._stuck:
            return
        self._stuck = not await asyncio.to_thread(self.engine.stop, STEP_S)
        if self._stuck:
            logger.warning("the backend's step takes longer than %g s: it is left behind", STEP_S)
            self._leave(self.engine, Unavailable("the server was stopped"))

    async def _watch_over(self, engine: Engine) -> None:
        """Take a backend for lost whose call does not come back."""
        limit = self.settings.step_timeout_s
        while engine.busy_s() <= limit:
            await asyncio.sleep(min(1.0, limit / 4))
        self.failure = BackendLost(f"a call of it takes longer than {limit:g} s")
        self.phase, self._stuck = Phase.BROKEN, True
        logger.error("the backend cannot go on: %s", self.failure)
        self._leave(engine, GenerationError(f"Request failed during generation: {self.failure}"))

    def _leave(self, engine: Engine, error: RequestError) -> None:
        """End all texts in the place of an engine whose thread doesn't come back."""
        for request, outcome in engine.cancelled():
            self.metrics.lost(request, outcome)
        for stream in list(self._open):
            stream.fail(error)

    async def _closed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._open:
                    await asyncio.sleep(0.02)

    def require_ready(self) -> Engine:
        """The engine that takes requests.

        Raises: Unavailable while the model loads, during shutdown, and after the backend was lost.
        """
        match self.phase:
            case Phase.READY if self.engine is not None:
                return self.engine
            case Phase.LOADING:
                raise Unavailable("loading")
            case Phase.DRAINING:
                raise Unavailable("shutting down")
            case _:
                why = "" if self.failure is None else f": {first_line(self.failure)}"
                raise Unavailable(f"unhealthy: the backend cannot go on{why}")

    def require_room(self, texts: int = 1) -> None:
        """Raises: Unavailable; Overloaded where so many texts would be more than the server takes."""
        self.require_ready()
        most = self.settings.max_concurrent_requests
        there = sum(len(stream.requests) for stream in self._open) + len(self._entered)
        if there + texts > most:
            raise Overloaded(
                f"Model is overloaded: {there} of at most {most} texts are running or waiting, and {texts} more "
                f"were asked for; try again later"
            )

    def enter(self, request: object) -> None:
        """Take a place for a request that is read, tokenized and checked, which may wait for others of its kind.

        Raises: Overloaded; Unavailable.
        """
        self.require_room()
        self._entered.add(request)

    def leave(self, request: object) -> None:
        """Give its place back; it need not have one."""
        self._entered.discard(request)

    def open(self, request_id: str, tasks: Sequence[Task], arrived_s: float) -> Stream:
        """Queue the texts of one caller, all of them or none.

        Raises: Overloaded where that would be more than the server takes; Unavailable.
        """
        engine = self.require_ready()
        self.require_room(len(tasks))
        stream = Stream(self, engine, request_id, tasks, arrived_s)
        self._open.add(stream)
        self.metrics.received(tasks)
        for request in stream.requests:
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
