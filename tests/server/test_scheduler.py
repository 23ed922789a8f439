"""The scheduler keeps its promises for every sequence of arrivals and departures.

Method: worked examples, then hypothesis drives it with random events against the promises themselves: first come first
served, no slot used twice, no prefill after a prefill while somebody decodes, no idling while there is work.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduler import Decode, Idle, Prefill, Scheduler


def test_a_free_slot_takes_the_next_request_and_nothing_to_do_is_idle():
    scheduler = Scheduler[str](2)
    assert scheduler.next() == Idle()
    scheduler.submit("a")
    assert scheduler.next() == Prefill(0, "a")
    scheduler.prefilled()
    assert scheduler.next() == Decode()
    scheduler.finish(0)
    assert scheduler.next() == Idle()


def test_one_decode_step_runs_between_two_prefills():
    scheduler = Scheduler[str](4)
    for request in "abc":
        scheduler.submit(request)
    seen = []
    for _ in range(6):
        action = scheduler.next()
        seen.append(action)
        if isinstance(action, Prefill):
            scheduler.prefilled()
    assert seen == [Prefill(0, "a"), Decode(), Prefill(1, "b"), Decode(), Prefill(2, "c"), Decode()]


def test_prefills_follow_each_other_where_nobody_decodes():
    scheduler = Scheduler[str](1)
    for request in "ab":
        scheduler.submit(request)
    assert scheduler.next() == Prefill(0, "a")
    scheduler.prefilled()
    scheduler.finish(0)  # one token was all it wanted
    assert scheduler.next() == Prefill(0, "b")


def test_a_prefill_in_chunks_is_carried_on_between_decode_steps_before_another_starts():
    scheduler = Scheduler[str](3)
    scheduler.submit("a")
    scheduler.next()
    scheduler.prefilled()
    scheduler.submit("b")
    scheduler.submit("c")
    seen = [scheduler.next() for _ in range(5)]  # "b" is never reported as prefilled
    assert seen == [Decode(), Prefill(1, "b"), Decode(), Prefill(1, "b"), Decode()]
    scheduler.prefilled()
    assert scheduler.next() == Prefill(2, "c")


def test_a_dropped_request_gives_back_its_slot_wherever_it_is():
    scheduler = Scheduler[str](2)
    for request in "abcd":
        scheduler.submit(request)
    scheduler.next()
    scheduler.prefilled()  # a is live
    scheduler.next()
    scheduler.next()  # b is being prefilled
    assert scheduler.drop("c") is None  # waiting: no slot
    assert scheduler.drop("b") == 1
    assert scheduler.drop("a") == 0
    assert scheduler.drop("a") is None
    assert scheduler.next() == Prefill(1, "d")


@given(st.integers(1, 4), st.lists(st.sampled_from(["submit", "step", "finish", "drop"]), max_size=60), st.data())
def test_promises_hold_for_every_sequence_of_events(slots: int, events: list[str], data: st.DataObject):
    scheduler = Scheduler[int](slots)
    waiting: list[int] = []
    started: list[int] = []
    live: dict[int, int] = {}
    number = 0
    prefilled_since_decode = False
    for event in events:
        if event == "submit":
            scheduler.submit(number)
            waiting.append(number)
            number += 1
        elif event == "finish" and live:
            slot = data.draw(st.sampled_from(sorted(live)))
            scheduler.finish(slot)
            del live[slot]
        elif event == "drop" and (live or waiting):
            request = data.draw(st.sampled_from(sorted([*live.values(), *waiting])))
            slot = scheduler.drop(request)
            assert (slot is None) == (request in waiting)
            if slot is None:
                waiting.remove(request)
            else:
                assert live.pop(slot) == request
        elif event == "step":
            match scheduler.next():
                case Prefill(slot, request):
                    assert request == waiting.pop(0), "first come, first served"
                    assert 0 <= slot < slots
                    assert slot not in live, "a live slot was given away"
                    assert not (prefilled_since_decode and live), "two prefills without a decode step between"
                    scheduler.prefilled()
                    live[slot] = request
                    started.append(request)
                    prefilled_since_decode = True
                case Decode():
                    assert live, "nobody to decode"
                    prefilled_since_decode = False
                case Idle():
                    assert not live
                    assert not waiting
    assert started == sorted(started)
    assert scheduler.live == live
