"""The engine under what clients and devices do: they leave, they fail, they come too many at once.

Method: a scripted backend whose answers and faults are known; it also asserts the contract (no live slot is prefilled,
only used slots are released).
"""

from __future__ import annotations

import queue

import pytest

from server.backends.base import Sampling
from server.engine.engine import Batch, Engine
from server.engine.request import Delivery, Failure, Request, Task, Token
from server.errors import GenerationError, Unavailable
from server.metrics import Metrics
from tests.server.scripted import ScriptedBackend


class Alphabet:
    """A tokenizer of one letter per id, for a backend that has no text."""

    eos_token_ids = frozenset({0})
    special_ids = frozenset({0})

    class fast:  # noqa: N801
        """Never used: the detokenizer below replaces DecodeStream."""


class Letters:
    def __init__(self, tokenizer: object) -> None:
        self.text = ""

    def push(self, token_id: int) -> str:
        letter = chr(96 + token_id) if token_id else ""
        self.text += letter
        return letter

    def flush(self) -> str:
        return ""


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.engine.engine.Detokenizer", Letters)


class Run:
    def __init__(self, backend: ScriptedBackend) -> None:
        self.backend = backend
        self.metrics = Metrics()
        self.broken: list[Exception] = []
        self.engine = Engine(backend, Alphabet(), self.hand_over, self.metrics, self.broken.append)  # type: ignore[arg-type]

    def hand_over(self, batch: Batch) -> None:
        for request, delivery in batch:
            request.deliver(delivery)

    def request(self, ids: tuple[int, ...], new_tokens: int) -> tuple[Request, queue.SimpleQueue[Delivery]]:
        inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        request = Request("r", Task("", ids, new_tokens, Sampling(ignore_eos=True)), inbox.put)
        return request, inbox

    def value(self, series: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(series, labels) or 0.0


def collect(inbox: queue.SimpleQueue[Delivery]) -> str:
    text = ""
    while True:
        delivery = inbox.get(timeout=10)
        assert isinstance(delivery, Token), delivery
        text += delivery.text
        if delivery.finish is not None:
            return text


def test_every_request_gets_its_own_answer_and_every_slot_comes_back():
    run = Run(ScriptedBackend(slots=3))
    inboxes = []
    for i in range(20):
        request, inbox = run.request((i % 7 + 1, i % 5 + 1, 3), new_tokens=i + 1)
        run.engine.submit(request)
        inboxes.append((i, inbox))
    run.engine.start()
    for i, inbox in inboxes:
        script = [i % 7 + 1, i % 5 + 1, 3]
        assert collect(inbox) == "".join(chr(96 + script[(k + 1) % 3]) for k in range(i + 1))
    run.engine.stop(10)
    releases = [slot for verb, slot in run.backend.log if verb == "release"]
    assert len(releases) == 20
    assert run.value("tgi_request_success") == 20
    assert run.value("tokenclock_output_tokens_total") == sum(range(1, 21))
    assert run.value("tgi_queue_size") == run.value("tgi_batch_current_size") == 0


def test_at_most_one_prefill_stands_between_two_decode_steps_of_running_requests():
    run = Run(ScriptedBackend(slots=4))
    for _ in range(8):
        run.engine.submit(run.request((1, 2), new_tokens=6)[0])
    last, inbox = run.request((1, 2), new_tokens=6)
    run.engine.submit(last)
    run.engine.start()
    collect(inbox)
    run.engine.stop(10)
    verbs = [verb for verb, _ in run.backend.log if verb != "release"]
    assert verbs.count("prefill") == 9
    live = 0
    for (verb, _), following in zip(run.backend.log, run.backend.log[1:], strict=False):
        live += {"prefill": 1, "release": -1, "decode": 0}[verb]
        assert not (verb == following[0] == "prefill" and live > 0)


def test_a_chunked_prefill_lets_running_requests_decode_between_its_chunks():
    run = Run(ScriptedBackend(slots=2, chunks=3))
    first, one = run.request((1, 2), new_tokens=12)
    second, two = run.request((3, 4), new_tokens=4)
    run.engine.submit(first)
    run.engine.submit(second)
    run.engine.start()
    assert (collect(one), collect(two)) == ("ba" * 6, "dcdc")
    run.engine.stop(10)
    verbs = [verb for verb, _ in run.backend.log if verb != "release"]
    assert verbs[:9] == ["prefill"] * 3 + ["decode", "prefill"] * 3


def test_a_client_that_leaves_frees_its_slot_and_nobody_else_notices():
    run = Run(ScriptedBackend(slots=1))
    leaver, _ = run.request((1, 2), new_tokens=90)
    waiter, _ = run.request((1, 2), new_tokens=90)
    stayer, inbox = run.request((5, 6), new_tokens=4)
    for request in (leaver, waiter, stayer):
        run.engine.submit(request)
    run.engine.cancel(leaver)
    run.engine.cancel(waiter)
    run.engine.cancel(waiter)  # twice, and after the end: nothing happens
    run.engine.start()
    assert collect(inbox) == "fefe"
    run.engine.cancel(stayer)
    run.engine.stop(10)
    assert run.value("tgi_request_failure", err="dropped") == 2
    assert run.value("tgi_request_success") == 1


def test_a_client_that_leaves_mid_decode_frees_its_slot():
    run = Run(ScriptedBackend(slots=1))
    leaver, leaving = run.request((1, 2), new_tokens=10**6)
    stayer, inbox = run.request((5, 6), new_tokens=4)
    run.engine.submit(leaver)
    run.engine.submit(stayer)
    run.engine.start()
    leaving.get(timeout=10)
    run.engine.cancel(leaver)
    assert collect(inbox) == "fefe"
    run.engine.stop(10)


def test_a_backend_that_breaks_fails_every_request_and_those_that_come_after():
    run = Run(ScriptedBackend(slots=2, fail_after=3))
    inboxes = []
    for _ in range(3):
        request, inbox = run.request((1, 2), new_tokens=50)
        run.engine.submit(request)
        inboxes.append(inbox)
    run.engine.start()
    for inbox in inboxes:
        deliveries = [inbox.get(timeout=10)]
        while isinstance(deliveries[-1], Token):
            deliveries.append(inbox.get(timeout=10))
        assert isinstance(deliveries[-1], Failure)
        assert isinstance(deliveries[-1].error, GenerationError)
        assert "the device is gone" in str(deliveries[-1].error)
    late, inbox = run.request((1, 2), new_tokens=2)
    run.engine.submit(late)
    assert isinstance(inbox.get(timeout=10), Failure)
    assert [str(error) for error in run.broken] == ["the device is gone"]
    run.engine.stop(10)


def test_a_stop_fails_what_still_runs_instead_of_leaving_it_waiting():
    run = Run(ScriptedBackend(slots=1))
    request, inbox = run.request((1, 2), new_tokens=10**6)
    run.engine.submit(request)
    run.engine.start()
    inbox.get(timeout=10)
    run.engine.stop(10)
    while isinstance(last := inbox.get(timeout=10), Token):
        pass
    assert isinstance(last.error, Unavailable)


def test_timing_says_where_the_time_went():
    run = Run(ScriptedBackend(slots=2))
    request, inbox = run.request((1, 2), new_tokens=5)
    run.engine.submit(request)
    run.engine.start()
    collect(inbox)
    run.engine.stop(10)
    timing = request.timing()
    assert timing["batch_sizes"] == {"1": 4}, "five tokens: one from the prefill, four decode steps"
    assert request.prefill_started_s is not None
    assert request.last_token_s is not None
    total = request.last_token_s - request.arrived_s
    assert timing["queue_s"] + timing["prefill_s"] + timing["decode_s"] == pytest.approx(total, abs=1e-5)
