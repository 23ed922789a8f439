"""Arrivals gather before a poll, and nothing is lost by it: every stamp is the kernel's, and idle work isn't held up.

Method: made-up clocks and sleeps for the rule; for what it does to arrivals a real loop over real sockets, whose peers
send while the loop sleeps. Instants are compared with clock readings around the sends.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import pytest

from loadtest.transport import gathering as module
from loadtest.transport import stamps
from loadtest.transport.gathering import GATHER_S, Gathering
from loadtest.transport.wire import Wire

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="receive stamps are Linux's")


class Time:
    """A clock that only sleeping and `work_s` move on."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def polls(work_s: list[float]) -> list[float]:
    """What a loop slept before each poll, if it was busy (or blocked) for `work_s` after each one before it."""
    made_up = Time()
    gathering = Gathering(made_up.clock, made_up.sleep)
    gathering.gather()  # nothing came before the first
    assert made_up.slept_s == []
    slept = []
    for each in work_s:
        made_up.now_s += each
        before = len(made_up.slept_s)
        gathering.gather()
        slept.append(sum(made_up.slept_s[before:]))
    return slept


def test_a_loop_sleeps_what_is_left_of_half_a_millisecond_since_its_last_poll():
    assert polls([0.0001, 0.0004, 0.0]) == pytest.approx([GATHER_S - 0.0001, GATHER_S - 0.0004, GATHER_S])


def test_a_loop_that_was_idle_or_has_enough_to_do_never_sleeps():
    assert polls([GATHER_S, 0.02, 1.0]) == [0, 0, 0]


def turns_of(loop_turns: int) -> None:
    for _ in range(loop_turns):
        gevent.sleep(0.0001)


def test_nothing_gathers_while_somebody_waits_for_an_idle_loop():
    slept: list[float] = []
    gathering = Gathering(lambda: 0.0, slept.append)  # time stands still: every poll comes too soon after the last one
    gathering.join()
    turns_of(3)
    assert slept == [GATHER_S] * len(slept)
    assert len(slept) >= 3
    seen: list[int] = []

    def work() -> None:
        for _ in range(3):
            gathering.idle()
            seen.append(len(slept))

    worker = gevent.spawn(work)
    worker.join(5)
    assert worker.successful()
    assert seen[0] == seen[-1]  # three turns at leisure, and no sleep between them
    turns_of(3)
    assert len(slept) >= seen[-1] + 3
    gathering.leave()


@contextmanager
def wires(count: int, stamped: bool = True) -> Iterator[tuple[list[Wire], list[socket.socket]]]:
    """Open wires and their peers."""
    clock_map = stamps.ClockMap() if stamped else None
    made, peers = [], []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(count):
            ours = socket.create_connection(server.getsockname())
            peers.append(server.accept()[0])
            stamps.enable(ours)
            made.append(Wire(ours, time.monotonic_ns, clock_map))
    try:
        yield made, peers
    finally:
        for each in (*made, *peers):
            each.close()


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """What is done the next time that the present loop sleeps before a poll; it sleeps as long as that takes."""
    to_do: list[Callable[[], None]] = []

    def sleep(seconds: float) -> None:
        while to_do:
            to_do.pop()()

    made = Gathering(lambda: 0.0, sleep)  # time stands still: every poll comes too soon after the last one
    monkeypatch.setattr(module, "gathering", lambda: made)
    monkeypatch.setattr("loadtest.transport.wire.gathering", lambda: made)
    yield to_do
    assert not to_do, "the loop never slept"


@linux
def test_what_came_while_the_loop_slept_is_read_in_one_look_with_its_own_instant_each(
    asleep: list[Callable[[], None]],
):
    with wires(5) as (ours, peers):
        arrivals: list[tuple[int, int, bool, bytes]] = []
        looks = 0
        sent: list[tuple[int, int]] = []

        def one_after_the_other() -> None:
            for peer in peers:
                before_ns = time.monotonic_ns()
                peer.sendall(b"token")
                sent.append((before_ns, time.monotonic_ns()))
                end_ns = time.monotonic_ns() + 200_000
                while time.monotonic_ns() < end_ns:
                    pass

        def expect(number: int, wire: Wire) -> None:
            wire.expect(0, lambda t_ns, by_kernel, data: bool(arrivals.append((number, t_ns, by_kernel, data))))

        for number, wire in enumerate(ours):
            expect(number, wire)
        asleep.append(one_after_the_other)
        while not arrivals and looks < 1000:
            turns_of(1)
            looks += 1
        assert [(number, by_kernel, data) for number, _, by_kernel, data in sorted(arrivals)] == [
            (number, True, b"token") for number in range(5)
        ]  # all by the first look that had any
        for number, t_ns, _, _ in sorted(arrivals):
            before_ns, after_ns = sent[number]
            assert before_ns - stamps.ROUNDING_NS <= t_ns <= after_ns + stamps.ROUNDING_NS


@linux
def test_a_loop_gathers_while_a_wire_with_stamps_is_open_and_not_for_others(
    asleep: list[Callable[[], None]],
):
    slept: list[int] = []

    def turns() -> int:
        asleep.append(lambda: slept.append(1))
        turns_of(5)
        if asleep:
            asleep.clear()
            return 0
        return slept.pop()

    with wires(2, stamped=False):
        assert turns() == 0
    with wires(2) as (ours, _):
        assert turns() == 1
        ours[0].close()
        ours[0].close()  # once more takes nothing from the other
        assert turns() == 1
    assert turns() == 0
