"""The one thread that owns the backend: it asks the scheduler, runs the backend, and hands tokens over.

    loop thread ── submit, cancel ──► inbox ──► engine thread ── one call_soon_threadsafe per step ──► loop thread

Requests come in through a queue, so the engine sees them between two steps; tokens of all slots of a step leave in one
hand-over. The scheduler, the backend and every request's state belong to the engine's thread alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.backends.base import Backend, Step
from server.engine.detokenizer import Detokenizer
from server.engine.request import Delivery, Failure, FinishReason, Request, Token
from server.engine.scheduler import Decode, Idle, Prefill, Scheduler
from server.errors import GenerationError, RequestError, Unavailable
from server.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

#: Everything that one step produced, in slot order.
Batch = Sequence[tuple[Request, Delivery]]


class Observer(Protocol):
    """Watches the engine from its own thread; server.metrics implements it."""

    def stepped(self, kind: Literal["prefill", "decode"], seconds: float, live: int) -> None: ...
    def queued(self, waiting: int, live: int) -> None: ...
    def token(self, request: Request, since_previous_s: float | None) -> None: ...
    def ended(self, request: Request, outcome: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Message:
    verb: Literal["submit", "cancel", "stop"]
    request: Request | None = None
    outcome: str = ""  # of a request that is cancelled


class Engine:
    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        hand_over: Callable[[Batch], None],
        observer: Observer,
        on_broken: Callable[[Exception], None],
    ) -> None:
        """`hand_over` is called on the engine's thread, once a step; `on_broken` when the backend cannot go on."""
        self.backend = backend
        self.tokenizer = tokenizer
        self._hand_over = hand_over
        self._observer = observer
        self._on_broken = on_broken
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._scheduler: Scheduler[Request] = Scheduler(backend.limits.slots)
        self._detokenizers: dict[Request, Detokenizer] = {}
        self._batch: list[tuple[Request, Delivery]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        self._inbox.put(_Message("submit", request))

    def cancel(self, request: Request, outcome: str = "dropped") -> None:
        """Free its slot before the next step: its client has gone ("dropped"), or doesn't read ("slow_reader"). A
        request that has ended already is left alone.
        """
        self._inbox.put(_Message("cancel", request, outcome))

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the step it is in; what still ran gets a failure. False: that step takes longer than
        `timeout_s` seconds.
        """
        self._inbox.put(_Message("stop"))
        self._thread.join(timeout_s)
        return not self.running

    def _run(self) -> None:
        try:
            while self._receive():
                self._step()
            self._fail_everyone(Unavailable("the server was stopped"))
        except Exception as error:
            logger.exception("the backend cannot go on")
            self._on_broken(error)
            self._fail_everyone(GenerationError(f"Request failed during generation: {error}"))
            while (message := self._inbox.get()).verb != "stop":
                if message.verb == "submit" and message.request is not None:
                    self._end(message.request, Failure(GenerationError("the backend has failed")), "generation")
                    self._flush()

    def _receive(self) -> bool:
        """Take what is in the inbox; wait for a message where there is nothing else to do. False: stop."""
        idle = not self._scheduler.live and not self._scheduler.waiting and not self._scheduler.prefilling
        while True:
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if message.verb == "stop":
                return False
            assert message.request is not None
            if message.verb == "submit":
                self._detokenizers[message.request] = Detokenizer(self.tokenizer)
                self._scheduler.submit(message.request)
            elif message.request in self._detokenizers:
                slot = self._scheduler.drop(message.request)
                if slot is not None:
                    self.backend.release(slot)
                self._forget(message.request, message.outcome)
            self._observer.queued(len(self._scheduler.waiting), len(self._scheduler.live))

    def _step(self) -> None:
        match self._scheduler.next():
            case Prefill(slot, request):
                self._prefill(slot, request)
            case Decode():
                self._decode()
            case Idle():
                return
        self._observer.queued(len(self._scheduler.waiting), len(self._scheduler.live))
        self._flush()

    def _prefill(self, slot: int, request: Request) -> None:
        started = time.monotonic()
        if request.prefill_started_s is None:
            request.prefill_started_s = started
        step = self.backend.prefill(slot, request.task.token_ids, request.task.sampling)
        now = time.monotonic()
        self._observer.stepped("prefill", now - started, 1)
        if step is not None:
            self._scheduler.prefilled()
            request.prompt_scores = step.prompt
            self._accept(slot, request, step, now)

    def _decode(self) -> None:
        started = time.monotonic()
        steps = self.backend.decode()
        now = time.monotonic()
        live = list(self._scheduler.live.items())
        self._observer.stepped("decode", now - started, len(live))
        for slot, request in live:
            request.batch_sizes[len(live)] += 1
            self._accept(slot, request, steps[slot], now)

    def _accept(self, slot: int, request: Request, step: Step, now: float) -> None:
        """Turn a step into a token of its request, and end the request where it ends."""
        since_previous = None if request.last_token_s is None else now - request.last_token_s
        if request.first_token_s is None:
            request.first_token_s = now
        request.last_token_s = now
        request.new_tokens += 1
        detokenizer = self._detokenizers[request]
        already = len(detokenizer.text)
        text = detokenizer.push(step.token_id)
        finish = self._finish(request, step, detokenizer.text, already)
        if finish is not None:
            text += detokenizer.flush()
        special = (
            step.token_id in self.tokenizer.special_ids and not text
        )  # a flushed tail is text, whatever carries it
        token = Token(request.new_tokens, step.token_id, text, step.score, special, finish)
        self._observer.token(request, since_previous)
        if finish is None:
            self._batch.append((request, token))
        else:
            self._scheduler.finish(slot)
            self.backend.release(slot)
            self._end(request, token, "success")

    def _finish(self, request: Request, step: Step, text: str, already: int) -> FinishReason | None:
        """Why the request ends with this token, or None. `text[already:]` came with it."""
        task = request.task
        if step.token_id in self.tokenizer.eos_token_ids and not task.sampling.ignore_eos:
            return FinishReason.EOS
        # A stop string may begin in earlier text, but it must end in what is new.
        if (
            task.stop
            and request.new_tokens > (task.sampling.min_new_tokens or 0)
            and any(text.find(stop, max(0, already - len(stop) + 1)) >= 0 for stop in task.stop)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if request.new_tokens >= task.max_new_tokens else None

    def _end(self, request: Request, last: Delivery, outcome: str) -> None:
        self._batch.append((request, last))
        self._forget(request, outcome)

    def _forget(self, request: Request, outcome: str) -> None:
        self._detokenizers.pop(request, None)
        self._observer.ended(request, outcome)

    def _fail_everyone(self, error: RequestError) -> None:
        for request in list(self._detokenizers):
            self._end(request, Failure(error), "generation")
        self._observer.queued(0, 0)
        self._flush()

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._hand_over(batch)
