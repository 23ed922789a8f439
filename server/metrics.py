"""Every Prometheus series of the server, in one place.

Names are TGI's where TGI has the series and vLLM's where it hasn't (first token, inter-token), so existing dashboards
find them; counters carry `_total` as Prometheus asks. Durations are seconds. Source: docs/wire.md.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.engine.request import Request

FIRST_TOKEN_S = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.2,
    0.25,
    0.35,
    0.5,
    0.75,
    1,
    1.5,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
INTER_TOKEN_S = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.004,
    0.005,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
    2.5,
)
REQUEST_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120, 240)


class Metrics:
    """One registry per app, so that several apps can live in one process."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("tgi_request_count", "Generation requests received", registry=r)
        self.succeeded = Counter("tgi_request_success", "Requests whose text ended as it should", registry=r)
        self.failed = Counter("tgi_request_failure", "Requests that ended otherwise", ["err"], registry=r)
        self.duration = Histogram(
            "tgi_request_duration", "Arrival to last token, of successful requests, s", buckets=REQUEST_S, registry=r
        )
        self.queue_time = Histogram(
            "tgi_request_queue_duration", "Arrival to start of prefill, s", buckets=FIRST_TOKEN_S, registry=r
        )
        self.queue = Gauge("tgi_queue_size", "Requests waiting for a slot", registry=r)
        self.live = Gauge("tgi_batch_current_size", "Slots in use", registry=r)
        self.calls = Histogram(
            "tgi_batch_forward_duration", "One backend call, s", ["method"], buckets=INTER_TOKEN_S, registry=r
        )
        self.batch = Histogram(
            "tokenclock_decode_batch_size",
            "Live slots of a decode step",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
            registry=r,
        )
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token", buckets=FIRST_TOKEN_S, registry=r
        )
        self.inter_token = Histogram(
            "vllm:inter_token_latency_seconds", "Gap between two tokens of a request", buckets=INTER_TOKEN_S, registry=r
        )
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens of requests that got a token", registry=r)
        self.new_tokens = Counter("vllm:generation_tokens", "Tokens generated", registry=r)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    # The HTTP side counts a text once: when it goes to the engine, or when it is refused before that.

    def received(self, texts: int) -> None:
        self.requests.inc(texts)

    def refused(self, error_type: str) -> None:
        self.requests.inc()
        self.failed.labels(error_type).inc()

    # server.engine.engine.Observer

    def stepped(self, kind: Literal["prefill", "decode"], seconds: float, live: int) -> None:
        self.calls.labels(kind).observe(seconds)
        if kind == "decode":
            self.batch.observe(live)

    def queued(self, waiting: int, live: int) -> None:
        self.queue.set(waiting)
        self.live.set(live)

    def token(self, request: Request, since_previous_s: float | None) -> None:
        self.new_tokens.inc()
        if since_previous_s is not None:
            self.inter_token.observe(since_previous_s)
        elif request.first_token_s is not None and request.prefill_started_s is not None:
            self.prompt_tokens.inc(len(request.task.token_ids))
            self.first_token.observe(request.first_token_s - request.arrived_s)
            self.queue_time.observe(request.prefill_started_s - request.arrived_s)

    def ended(self, request: Request, outcome: str) -> None:
        if outcome != "success":
            self.failed.labels(outcome).inc()
        elif request.last_token_s is not None:
            self.succeeded.inc()
            self.duration.observe(request.last_token_s - request.arrived_s)
