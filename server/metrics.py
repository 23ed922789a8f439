"""Every Prometheus series of the server, in one place; docs/metrics.md is written from here.

Names, labels and buckets are TGI's where TGI has the series, then those of OpenTelemetry's conventions for generative
AI; what neither has is `tokenclock_*`. A text is what TGI calls a request: n texts of one HTTP request count n times.
Instants are those of server.engine.request; durations are seconds.
Source: huggingface/text-generation-inference@db931fcf: router/src/server.rs, router/src/infer/mod.rs,
router/src/validation.rs and backends/v3/src/backend.rs; open-telemetry/semantic-conventions-genai@004902b8,
docs/gen-ai/gen-ai-metrics.md.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector

from server import __version__
from server.backends.base import Limits
from server.bounds import BATCH, FIRST_TOKEN_S, PER_TOKEN_S, REQUEST_S, STEP_S, TGI_S, hundredths
from server.engine.request import Request, Task
from server.series import Counter, Gauge, Histogram, Series, text

S = TypeVar("S", bound=Series)

#: Where a meaning differs from TGI's, or needs a word more than its HELP line has.
NOTES = {
    "tgi_request_count": "TGI counts HTTP requests, those of OpenAI's routes twice",
    "tgi_request_failure": "TGI's words where it has one; `healthcheck`: the server was loading, draining or broken",
    "tgi_request_duration": "the body's reading is in it; TGI's begins after",
    "tgi_request_validation_duration": "the body's reading is in it; TGI's begins after",
    "tgi_request_max_new_tokens": "whole; TGI cuts what is over 1,024 into pieces",
    "tgi_request_mean_time_per_token_duration": "with the prefill, as TGI's",
    "tgi_batch_current_max_tokens": "without padding",
    "tgi_batch_forward_duration": "with the choice of the token, which TGI counts to `tgi_batch_decode_duration`",
    "tgi_batch_decode_duration": "detokenizing, stop sequences, freeing slots",
    "tgi_batch_concat": "the one `reason` here is `free_slot`: a prompt joins as soon as a slot is free",
    "gen_ai_server_request_duration_seconds": "`error_type` is the cause, and absent where there is none",
    "tokenclock_input_tokens_total": "of each text: TGI's `best_of` and OpenAI's `n` read a prompt n times",
    "tokenclock_aborted_requests_total": "in `tgi_request_failure`, too, where those are that never came so far",
}
#: TGI's names that are not served, and why.
ABSENT = {
    "tgi_request_skipped_tokens": "nothing is speculated",
    "tgi_batch_concat_duration": "a prompt is read into a slot of the running batch: no batches are put together",
    "tgi_batch_next_size": "a prefill takes one prompt: 1,024 buckets would say 1",
    "tgi_batch_total_tokens": "TGI describes it and never sets it",
}
#: TGI's word for a cause, where it isn't the `error_type` of the reply.
CAUSES = {"template_error": "template"}
PROVIDER = "tokenclock"
OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
CALLS = [("prefill",), ("decode",)]


class Metrics:
    """One registry per app, so that several apps can live in one process. Implements server.engine.engine.Observer."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, backend: str = "", model: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: that of the requests' instants, in seconds."""
        self._clock = clock
        self.registry = CollectorRegistry()
        self.series: list[Series] = []
        of = self._served
        causes = [("overloaded",), ("validation",), ("template",), ("generation",), ("dropped",), ("healthcheck",)]

        self.texts = of(Counter("tgi_request_count", "Texts that were asked for"))
        self.succeeded = of(Counter("tgi_request_success", "Texts that ended as they should"))
        self.failed = of(Counter("tgi_request_failure", "Texts that were refused or cut, by cause", ["err"], causes))
        self.took = of(Histogram("tgi_request_duration", "Arrival to last token of successful texts", TGI_S))
        self.validation = of(
            Histogram("tgi_request_validation_duration", "Arrival to queue of successful texts", TGI_S)
        )
        self.queueing = of(
            Histogram("tgi_request_queue_duration", "Queue to start of prefill of successful texts", TGI_S)
        )
        self.inference = of(
            Histogram("tgi_request_inference_duration", "Start of prefill to last token of successful texts", TGI_S)
        )
        self.mean_per_token = of(
            Histogram(
                "tgi_request_mean_time_per_token_duration", "Inference over tokens generated of successful texts", TGI_S
            )
        )
        self.input_length = of(Histogram("tgi_request_input_length", "Prompt tokens of texts that were taken", ()))
        self.max_new_tokens = of(
            Histogram("tgi_request_max_new_tokens", "Tokens that may be generated of texts that were taken", ())
        )
        self.generated = of(Histogram("tgi_request_generated_tokens", "Tokens generated of successful texts", ()))
        self.waiting = of(Gauge("tgi_queue_size", "Texts waiting for a slot"))
        self.batch_size = of(Gauge("tgi_batch_current_size", "Texts that decode together"))
        self.batch_tokens = of(
            Gauge("tgi_batch_current_max_tokens", "Prompt tokens of the running batch and all that may follow them")
        )
        self.most_tokens = of(Gauge("tgi_batch_max_total_tokens", "Tokens that all slots hold together"))
        self.calls = of(Counter("tgi_batch_inference_count", "Steps of the device", ["method"], CALLS))
        self.good_calls = of(Counter("tgi_batch_inference_success", "Steps that went well", ["method"], CALLS))
        self.bad_calls = of(Counter("tgi_batch_inference_failure", "Steps that failed", ["method"], CALLS))
        self.whole_step = of(
            Histogram(
                "tgi_batch_inference_duration", "A step, from the device to the clients", TGI_S, ["method"], CALLS
            )
        )
        self.forward = of(
            Histogram("tgi_batch_forward_duration", "A step's call of the device", TGI_S, ["method"], CALLS)
        )
        self.reading = of(
            Histogram("tgi_batch_decode_duration", "A step's tokens becoming text", TGI_S, ["method"], CALLS)
        )
        self.sending = of(
            Histogram("tgi_batch_filter_duration", "A step's tokens going to the clients", TGI_S, ["method"], CALLS)
        )
        self.joined = of(
            Counter("tgi_batch_concat", "Prompts that joined a running batch", ["reason"], [("free_slot",)])
        )

        self.first_token = of(
            Histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "Arrival to first token of successful texts",
                FIRST_TOKEN_S,
                OPERATION,
            )
        )
        self.per_token = of(
            Histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "First to last token over tokens after the first of successful texts",
                PER_TOKEN_S,
                OPERATION,
            )
        )
        self.request = of(
            Histogram(
                "gen_ai_server_request_duration_seconds",
                "Arrival to end of texts that were taken",
                REQUEST_S,
                (*OPERATION, "error_type"),
            )
        )

        self.gap = of(
            Histogram("tokenclock_inter_token_latency_seconds", "From a token to the next one of its text", STEP_S)
        )
        self.step = of(
            Histogram("tokenclock_step_duration_seconds", "A step's call of the device", STEP_S, ["step"], CALLS)
        )
        self.together = of(Histogram("tokenclock_decode_batch_size", "Texts in a decode step", BATCH))
        self.slots = of(Gauge("tokenclock_slots", "Slots there are"))
        self.slots_in_use = of(Gauge("tokenclock_slots_in_use", "Slots that decode or are being filled"))
        self.input_tokens = of(Counter("tokenclock_input_tokens_total", "Prompt tokens of texts that got a token"))
        self.output_tokens = of(Counter("tokenclock_output_tokens_total", "Tokens generated"))
        self.aborted = of(
            Counter(
                "tokenclock_aborted_requests_total",
                "Texts that were taken and cut, by cause",
                ["cause"],
                [("dropped",), ("generation",), ("slow_reader",)],
            )
        )
        self.build = of(Gauge("tokenclock_build_info", "What serves", ["version", "python", "backend", "model"]))
        ProcessCollector(registry=self.registry)

        self.build.set(1, __version__, platform.python_version(), backend, model)
        self._model = model
        self._gauges = (self.waiting, self.batch_size, self.batch_tokens, self.slots_in_use)
        self._state = (0, 0, 0, 0)  # what they say
        self._filling: Request | None = None  # a slot
        self._lost: set[Request] = set()
        self._held: dict[Request, int] = {}  # tokens that the texts of the batch have and may get
        self._held_tokens = 0  # all of them
        self._call_s: float | None = None  # of the running step, once its call is back
        self._gap_s, self._alike = math.nan, 0  # how many tokens of the running step came so long after their last

    def _served(self, series: S) -> S:
        self.registry.register(series)
        self.series.append(series)
        return series

    def render(self) -> bytes:
        return text(self.registry).encode()

    # The HTTP side counts a text once: when it goes to the engine, or when it is refused before that.

    def loaded(self, limits: Limits) -> None:
        """The backend is there: before this nothing can be taken."""
        self.slots.set(limits.slots)
        self.most_tokens.set(limits.slots * limits.max_total_tokens)
        self.input_length.set_bounds(hundredths(limits.max_input_tokens))
        self.max_new_tokens.set_bounds(hundredths(limits.max_total_tokens))
        self.generated.set_bounds(hundredths(limits.max_total_tokens))

    def received(self, tasks: Sequence[Task]) -> None:
        self.texts.inc(len(tasks))
        for task in tasks:
            self.input_length.observe(len(task.token_ids))
            self.max_new_tokens.observe(task.max_new_tokens)

    def lost(self, request: Request, outcome: str) -> None:
        """It was taken and has ended, and the engine can't say so: its call of the backend doesn't come back."""
        if request not in self._lost:
            self._lost.add(request)
            self._cut(request, outcome)

    def refused(self, error_type: str) -> None:
        self.texts.inc()
        self.failed.inc(1, CAUSES.get(error_type, error_type))

    # server.engine.engine.Observer. What a token costs here is paid for every token of every slot: those of a step that
    # came the same time after their last are counted, and told together.

    def queued(self, waiting: int, live: int) -> None:
        self._tell_tokens()
        state = waiting, live, self._held_tokens, live + (self._filling is not None)
        if state == self._state:
            return
        self._state = state
        for gauge, value in zip(self._gauges, state, strict=True):
            gauge.set(value)

    def filling(self, request: Request) -> None:
        self._filling = request

    def stepped(self, kind: Literal["prefill", "decode"], seconds: float, live: int) -> None:
        self._call_s = seconds
        self.step.observe(seconds, kind)
        if kind == "decode":
            self.together.observe(live)

    def token(self, request: Request, since_previous_s: float | None) -> None:
        if since_previous_s == self._gap_s:
            self._alike += 1
        elif since_previous_s is not None:
            self._tell_tokens()
            self._gap_s, self._alike = since_previous_s, 1
        else:
            self._filling = None
            self._held[request] = len(request.task.token_ids) + request.task.max_new_tokens
            self._held_tokens += self._held[request]
            self.input_tokens.inc(len(request.task.token_ids))
            self.output_tokens.inc()
            if self._state[1]:
                self.joined.inc(1, "free_slot")

    def _tell_tokens(self) -> None:
        if self._alike:
            self.output_tokens.inc(self._alike)
            self.gap.observe(self._gap_s, times=self._alike)
            self._alike = 0

    def completed(self, kind: Literal["prefill", "decode"], seconds: float, sending_s: float) -> None:
        self.calls.inc(1, kind)
        call_s, self._call_s = self._call_s, None
        if call_s is None:
            self.bad_calls.inc(1, kind)
            return
        self.good_calls.inc(1, kind)
        self.forward.observe(call_s, kind)
        self.reading.observe(max(0.0, seconds - sending_s - call_s), kind)
        self.sending.observe(sending_s, kind)
        self.whole_step.observe(seconds, kind)

    def ended(self, request: Request, outcome: str) -> None:
        self._held_tokens -= self._held.pop(request, 0)
        if request is self._filling:
            self._filling = None
        if request in self._lost:
            return
        if outcome == "success":
            self._succeeded(request)
        else:
            self._cut(request, outcome)

    def _operation(self, request: Request) -> tuple[str, str, str]:
        return request.task.operation, PROVIDER, self._model

    def _cut(self, request: Request, outcome: str) -> None:
        cause = CAUSES.get(outcome, outcome)
        self.failed.inc(1, cause)
        self.aborted.inc(1, cause)
        self.request.observe(self._clock() - request.arrived_s, *self._operation(request), cause)

    def _succeeded(self, request: Request) -> None:
        operation = self._operation(request)
        started, first, last = request.prefill_started_s, request.first_token_s, request.last_token_s
        assert started is not None, "it has tokens"
        assert first is not None, "it has tokens"
        assert last is not None, "it has tokens"
        self.succeeded.inc()
        self.took.observe(last - request.arrived_s)
        self.validation.observe(request.queued_s - request.arrived_s)
        self.queueing.observe(started - request.queued_s)
        self.inference.observe(last - started)
        self.mean_per_token.observe((last - started) / request.new_tokens)
        self.generated.observe(request.new_tokens)
        self.request.observe(last - request.arrived_s, *operation, "")
        self.first_token.observe(first - request.arrived_s, *operation)
        if request.new_tokens > 1:
            self.per_token.observe((last - first) / (request.new_tokens - 1), *operation)
