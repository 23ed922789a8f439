"""The one thread that owns the backend: it asks the scheduler, runs the backend, and hands tokens over.

    loop thread ── submit, cancel ──► inbox ──► engine thread ── one call_soon_threadsafe per step ──► loop thread

Requests come in through a queue, so the engine sees them between two steps; tokens of all slots of a step leave in one
hand-over. The scheduler, the backend and every request's state belong to the engine's thread alone.

A call that raises fails the requests it worked for, and the engine goes on; server/backends/base.py says when it can't.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.backends import selfcheck
from server.backends.base import Backend, Step
from server.engine.detokenizer import Detokenizer
from server.engine.request import Delivery, Failure, FinishReason, Request, Token
from server.engine.scheduler import Idle, Prefill, Scheduler
from server.errors import TOLD, BackendLost, GenerationError, RequestError, Unavailable
from server.tokenizer import Tokenizer, first_line

logger = logging.getLogger(__name__)

FAILURES = 3  # calls of a kind in a row that may fail before the backend has to pass its self-check again
#: Everything that one step produced, in slot order.
Batch = Sequence[tuple[Request, Delivery]]


class Observer(Protocol):
    """Watches the engine from its own thread; server.metrics implements it. In the order of a step:"""

    def filling(self, request: Request) -> None:
        """It has left the queue for a slot; said before every chunk of its prefill."""

    def stepped(self, kind: Literal["prefill", "decode"], seconds: float, live: int) -> None:
        """The backend's call came back well."""

    def token(self, request: Request, since_previous_s: float | None) -> None: ...
    def ended(self, request: Request, outcome: str) -> None: ...
    def queued(self, waiting: int, live: int) -> None: ...

    def completed(self, kind: Literal["prefill", "decode"], seconds: float, sending_s: float) -> None:
        """The step is over, well or not: it took `seconds`, the last `sending_s` of them to hand its tokens over."""


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hand_over` is called on the engine's thread, once a step; `on_broken` when the backend cannot go on."""
        self.backend = backend
        self.tokenizer = tokenizer
        self._hand_over = hand_over
        self._observer = observer
        self._on_broken = on_broken
        self._clock = clock
        self._call_began_s: float | None = None
        self._failures = {"prefill": 0, "decode": 0}  # calls of each kind in a row
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._scheduler: Scheduler[Request] = Scheduler(backend.limits.slots)
        self._detokenizers: dict[Request, Detokenizer] = {}
        self._batch: list[tuple[Request, Delivery]] = []
        self._steps: Counter[int] = Counter()  # decode steps so far, by the number of slots that were live
        self._steps_before: dict[Request, Counter[int]] = {}  # a live request's first one
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

    def cancelled(self) -> list[tuple[Request, str]]:
        """Requests that were cancelled, with their outcomes, and the thread hasn't heard of it: for who gives it up."""
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        for message in messages:
            self._inbox.put(message)
        return [(each.request, each.outcome) for each in messages if each.verb == "cancel" and each.request is not None]

    def busy_s(self) -> float:
        """Seconds that the running call to the backend has taken so far; 0 where none runs. For any thread."""
        began = self._call_began_s
        return 0.0 if began is None else self._clock() - began

    def _run(self) -> None:
        try:
            while self._receive():
                self._step()
        except Exception as error:
            logger.exception("the backend cannot go on")
            self._on_broken(error)
            self._fail_everyone(GenerationError(f"Request failed during generation: {first_line(error)}"))
            while (message := self._inbox.get()).verb != "stop":
                if message.verb == "submit" and message.request is not None:
                    self._end(message.request, Failure(GenerationError("the backend has failed")), "generation")
                    self._flush()
            return
        self._fail_everyone(Unavailable("the server was stopped"))

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
                longest = max(map(len, message.request.task.stop), default=0)
                self._detokenizers[message.request] = Detokenizer(self.tokenizer, max(0, longest - 1))
                self._scheduler.submit(message.request)
            elif message.request in self._detokenizers:
                slot = self._scheduler.drop(message.request)
                if slot is not None:
                    self.backend.release(slot)
                self._forget(message.request, message.outcome)
            self._observer.queued(len(self._scheduler.waiting), len(self._scheduler.live))

    def _step(self) -> None:
        action = self._scheduler.next()
        if isinstance(action, Idle):
            return
        began = sending = self._clock()
        try:
            if isinstance(action, Prefill):
                self._observer.filling(action.request)
                self._observer.queued(len(self._scheduler.waiting), len(self._scheduler.live))
                self._prefill(action.slot, action.request)
            else:
                self._decode()
            sending = self._clock()
            self._observer.queued(len(self._scheduler.waiting), len(self._scheduler.live))
            self._flush()
        finally:
            over = self._clock()
            self._observer.completed(
                "prefill" if isinstance(action, Prefill) else "decode", over - began, over - sending
            )

    def _prefill(self, slot: int, request: Request) -> None:
        started = self._call_began_s = self._clock()
        if request.prefill_started_s is None:
            request.prefill_started_s = started
        try:
            step = self.backend.prefill(slot, request.task.token_ids, request.task.sampling)
        except Exception as error:
            self._failed("prefill", error, [request])
            return
        now = self._succeeded("prefill", started, 1)
        if step is not None:
            self._scheduler.prefilled()
            self._steps_before[request] = self._steps.copy()
            request.prompt_scores = step.prompt
            self._accept(slot, request, step, now)

    def _decode(self) -> None:
        live = list(self._scheduler.live.items())
        started = self._call_began_s = self._clock()
        try:
            steps = self.backend.decode()
            given = [(slot, request, steps[slot]) for slot, request in live]
        except Exception as error:
            self._failed("decode", error, [request for _, request in live])
            return
        now = self._succeeded("decode", started, len(live))
        self._steps[len(live)] += 1
        for slot, request, step in given:
            self._accept(slot, request, step, now)

    def _succeeded(self, kind: Literal["prefill", "decode"], started: float, live: int) -> float:
        """The instant at which a call of the backend came back."""
        now = self._clock()
        self._call_began_s = None
        self._failures[kind] = 0
        self._observer.stepped(kind, now - started, live)
        return now

    def _failed(self, kind: Literal["prefill", "decode"], error: Exception, touched: Sequence[Request]) -> None:
        """End the requests that a call worked for. Raises: what the backend cannot go on from."""
        if isinstance(error, BackendLost):
            raise error
        self._call_began_s = None
        self._failures[kind] += 1
        ids = [request.id for request in touched]
        logger.error("the backend failed in %s", kind, exc_info=error, extra={"request_ids": ids})
        for request in touched:
            self._give_up(request, error)
        # The check takes every slot: where one is in use it has to wait for the next failure.
        if self._failures[kind] >= FAILURES and not self._scheduler.live and self._scheduler.prefilling is None:
            self._check_again(kind, error)

    def _check_again(self, kind: Literal["prefill", "decode"], error: Exception) -> None:
        """Raises: BackendLost."""
        self._call_began_s = self._clock()
        try:
            selfcheck.check(self.backend)
        except Exception as problem:
            raise BackendLost(
                f"{self._failures[kind]} {kind} calls in a row failed ({first_line(error)}), and its self-check does, "
                f"too: {first_line(problem)}"
            ) from problem
        self._call_began_s = None
        self._failures[kind] = 0

    def _give_up(self, request: Request, error: Exception) -> None:
        """Fail a request that has a slot, and free the slot."""
        slot = self._scheduler.drop(request)
        assert slot is not None, "it has a slot"
        self.backend.release(slot)
        self._end(
            request, Failure(GenerationError(f"Request failed during generation: {first_line(error)}")), "generation"
        )

    def _accept(self, slot: int, request: Request, step: Step, now: float) -> None:
        """Turn a step into a token of its request, and end the request where it ends."""
        since_previous = None if request.last_token_s is None else now - request.last_token_s
        if request.first_token_s is None:
            request.first_token_s = now
        request.last_token_s = now
        request.new_tokens += 1
        try:
            token = self._token(request, step)
        except Exception as error:  # the tokenizer's: no other text is touched
            logger.exception("a token has no text", extra={"request_id": request.id})
            self._give_up(request, error)
            return
        self._observer.token(request, since_previous)
        if token.finish is None:
            self._batch.append((request, token))
        else:
            self._scheduler.finish(slot)
            self.backend.release(slot)
            self._end(request, token, "success")

    def _token(self, request: Request, step: Step) -> Token:
        detokenizer = self._detokenizers[request]
        text = detokenizer.push(step.token_id)
        finish = self._finish(request, step, detokenizer.recent, len(text))
        if finish is not None:
            text += detokenizer.flush()
        # A flushed tail is text, whatever carries it.
        special = step.token_id in self.tokenizer.special_ids and not text
        return Token(request.new_tokens, step.token_id, text, step.score, special, finish)

    def _finish(self, request: Request, step: Step, recent: str, new: int) -> FinishReason | None:
        """Why the request ends with this token, or None. It brought the last `new` characters of the `recent` ones."""
        task = request.task
        if step.token_id in self.tokenizer.eos_token_ids and not task.sampling.ignore_eos:
            return FinishReason.EOS
        # A stop string may begin in earlier text, but it must end in what is new.
        if (
            task.stop
            and request.new_tokens > (task.sampling.min_new_tokens or 0)
            and any(recent.find(stop, max(0, len(recent) - new - len(stop) + 1)) >= 0 for stop in task.stop)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if request.new_tokens >= task.max_new_tokens else None

    def _end(self, request: Request, last: Delivery, outcome: str) -> None:
        self._batch.append((request, last))
        self._forget(request, outcome)

    def _forget(self, request: Request, outcome: str) -> None:
        self._detokenizers.pop(request, None)
        if (before := self._steps_before.pop(request, None)) is not None:
            request.batch_sizes = self._steps - before
        request.outcome = outcome
        self._observer.ended(request, outcome)

    def _fail_everyone(self, error: RequestError) -> None:
        for request in list(self._detokenizers):
            self._end(request, Failure(error), TOLD[type(error)].error_type)
        self._observer.queued(0, 0)
        self._flush()

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._hand_over(batch)
