"""The engine under what clients and devices do: they leave, they fail, they come too many at once.

Method: a scripted backend whose answers and faults are known; it also asserts the contract (no live slot is prefilled,
only used slots are released).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from server.backends.base import Sampling
from server.engine.engine import Batch, Engine
from server.engine.request import Delivery, Failure, Request, Task, Token
from server.errors import BackendLost, GenerationError, Unavailable
from server.metrics import Metrics
from tests.server.scripted import ScriptedBackend, put_all


class Alphabet:
    """A tokenizer of one letter per id, for a backend that has no text."""

    eos_token_ids = frozenset({0})
    special_ids = frozenset({0})

    class fast:  # noqa: N801
        """Never used: the detokenizer below replaces DecodeStream."""


class Letters:
    def __init__(self, tokenizer: object, remembered: int) -> None:
        self.recent = ""

    def push(self, token_id: int) -> str:
        self.recent = chr(96 + token_id) if token_id else ""
        return self.recent

    def flush(self) -> str:
        return ""


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.engine.engine.Detokenizer", Letters)


class Run:
    def __init__(self, backend: ScriptedBackend, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self.metrics = Metrics()
        self.broken: list[Exception] = []
        self.engine = Engine(
            backend,
            Alphabet(),  # type: ignore[arg-type]
            self.hand_over,
            self.metrics,
            self.broken.append,
            clock,
        )

    def hand_over(self, batch: Batch) -> None:
        for request, delivery in batch:
            request.deliver([delivery])

    def request(self, ids: tuple[int, ...], new_tokens: int) -> tuple[Request, queue.SimpleQueue[Delivery]]:
        inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        request = Request("r", Task("", ids, new_tokens, Sampling(ignore_eos=True)), partial(put_all, inbox))
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


def failing(verb: str, *numbers: int, error: type[Exception] = RuntimeError) -> Callable[[str], None]:
    """Calls of `verb` with these numbers, from 1, raise; without numbers, all of them."""
    calls = 0

    def before(called: str) -> None:
        nonlocal calls
        if called == verb:
            calls += 1
            if not numbers or calls in numbers:
                raise error("the device is gone")

    return before


def ended(inbox: queue.SimpleQueue[Delivery]) -> tuple[int, Token | Exception]:
    """How many tokens came, and the last token or the error that ended them."""
    tokens = 0
    while True:
        delivery = inbox.get(timeout=10)
        if isinstance(delivery, Failure):
            return tokens, delivery.error
        tokens += 1
        if delivery.finish is not None:
            return tokens, delivery


def test_a_decode_step_that_raises_fails_the_live_requests_and_the_waiting_ones_run():
    run = Run(ScriptedBackend(slots=2, before=failing("decode", 4)))
    asked = [run.request((1, 2), new_tokens=20) for _ in range(4)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    ends = [ended(inbox) for _, inbox in asked]
    run.engine.stop(10)
    # a: prefill, decode; b: prefill; two decodes together; the fourth raises.
    assert [tokens for tokens, _ in ends] == [4, 3, 20, 20]
    assert all(isinstance(error, GenerationError) and "the device is gone" in str(error) for _, error in ends[:2])
    assert all(isinstance(last, Token) for _, last in ends[2:])
    assert [request.outcome for request, _ in asked] == ["generation"] * 2 + ["success"] * 2
    assert run.broken == []
    assert sorted(slot for verb, slot in run.backend.log if verb == "release") == [0, 0, 1, 1]
    assert run.value("tgi_batch_current_size") == 0


def test_a_prefill_that_raises_fails_its_request_alone():
    run = Run(ScriptedBackend(slots=2, before=failing("prefill", 2)))
    asked = [run.request((1, 2), new_tokens=5) for _ in range(3)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    ends = [ended(inbox) for _, inbox in asked]
    run.engine.stop(10)
    assert [tokens for tokens, _ in ends] == [5, 0, 5]
    assert isinstance(ends[1][1], GenerationError)
    assert run.broken == []


def test_a_chunk_that_raises_fails_its_request_alone():
    run = Run(ScriptedBackend(slots=2, chunks=3, before=failing("prefill", 5)))
    asked = [run.request((1, 2), new_tokens=5) for _ in range(3)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    assert [ended(inbox)[0] for _, inbox in asked] == [5, 0, 5]
    run.engine.stop(10)


@pytest.mark.parametrize(("verb", "tokens"), [("decode", 1), ("prefill", 0)])
def test_a_backend_that_fails_three_times_in_a_row_and_its_self_check_is_lost(verb: str, tokens: int):
    run = Run(ScriptedBackend(slots=1, before=failing(verb)))
    asked = [run.request((1, 2), new_tokens=5) for _ in range(5)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    ends = [ended(inbox) for _, inbox in asked]
    late, inbox = run.request((1, 2), new_tokens=2)
    run.engine.submit(late)
    ends.append(ended(inbox))
    run.engine.stop(10)
    assert [count for count, _ in ends] == [tokens] * 3 + [0] * 3
    assert all(isinstance(error, GenerationError) for _, error in ends)
    assert [type(error) for error in run.broken] == [BackendLost]
    assert f"3 {verb} calls in a row failed (the device is gone)" in str(run.broken[0])
    assert run.value("tgi_request_failure", err="generation") == 6


def test_a_backend_that_passes_its_self_check_after_three_failures_goes_on():
    run = Run(ScriptedBackend(slots=2, before=failing("prefill", 1, 2, 3)))
    asked = [run.request((1, 2), new_tokens=5) for _ in range(4)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    assert [ended(inbox)[0] for _, inbox in asked] == [0, 0, 0, 5]
    run.engine.stop(10)
    assert run.broken == []


@pytest.mark.parametrize(
    "before", [failing("decode", 1, error=BackendLost), failing("release", 1)], ids=["it says so", "it can't release"]
)
def test_a_backend_that_cannot_go_on_is_lost_at_once(before: Callable[[str], None]):
    run = Run(ScriptedBackend(slots=1, before=before))
    asked = [run.request((1, 2), new_tokens=2) for _ in range(2)]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    assert [isinstance(ended(inbox)[1], GenerationError) for _, inbox in asked] == [True, True]
    run.engine.stop(10)
    assert [str(error) for error in run.broken] == ["the device is gone"]


def test_a_token_that_has_no_text_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch):
    class Illiterate(Letters):
        def push(self, token_id: int) -> str:
            if token_id == 9:
                raise ValueError("no such token")
            return super().push(token_id)

    monkeypatch.setattr("server.engine.engine.Detokenizer", Illiterate)
    run = Run(ScriptedBackend(slots=2))
    asked = [run.request(ids, new_tokens=5) for ids in ((1, 2), (1, 9, 1), (3, 4))]
    for request, _ in asked:
        run.engine.submit(request)
    run.engine.start()
    assert [ended(inbox)[0] for _, inbox in asked] == [5, 0, 5]
    run.engine.stop(10)
    assert run.broken == []
    assert sorted(slot for verb, slot in run.backend.log if verb == "release") == [0, 1, 1]


def test_a_call_that_runs_says_for_how_long():
    now, entered, leave = [10.0], threading.Event(), threading.Event()

    def before(verb: str) -> None:
        entered.set()
        assert leave.wait(10)

    run = Run(ScriptedBackend(before=before), clock=lambda: now[0])
    request, inbox = run.request((1, 2), new_tokens=1)
    assert run.engine.busy_s() == 0
    run.engine.submit(request)
    run.engine.start()
    assert entered.wait(10)
    now[0] = 17.5
    assert run.engine.busy_s() == 7.5
    leave.set()
    collect(inbox)
    run.engine.stop(10)
    assert run.engine.busy_s() == 0


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
    # A clock that only the backend moves: a prefill takes 1 s, a decode step 10 s.
    now = [0.0]

    def before(verb: str) -> None:
        now[0] += {"prefill": 1.0, "decode": 10.0, "release": 0.0}[verb]

    run = Run(ScriptedBackend(slots=2, before=before), clock=lambda: now[0])
    asked = [run.request((1, 2), new_tokens=5) for _ in range(3)]
    for request, _ in asked:
        request.arrived_s = 0.0
        run.engine.submit(request)
    run.engine.start()
    for _, inbox in asked:
        collect(inbox)
    run.engine.stop(10)
    told = [request.timing() for request, _ in asked]
    # 0 a 1 D 11 b 12 D 22 D 32 D 42 (a ends) c 43 D 53 (b ends) D 63 D 73 D 83
    times = [(each["queue_s"], each["prefill_s"], each["decode_s"]) for each in told]
    assert times == [(0, 1, 41), (11, 1, 41), (42, 1, 40)]
    assert [each["batch_sizes"] for each in told] == [{"1": 1, "2": 3}, {"2": 4}, {"1": 3, "2": 1}]
    assert [request.last_token_s for request, _ in asked] == [sum(each) for each in times]
