"""A kernel stamp lands on the clock that `started` is read from, and one that can't be true is never taken.

Method: made-up clocks for the mapping, whose distance and steps are known; a real socket pair for what the kernel says,
compared with clock readings around the send and around a read that comes late on purpose.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

import pytest

from loadtest.transport import stamps

SECOND = 1_000_000_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="receive stamps are Linux's")


class Clocks:
    """Two clocks of one rate; each reading takes `cost` ns. The wall clock can be set."""

    def __init__(self, offset_ns: int, cost_ns: Callable[[], int] = lambda: 100) -> None:
        self.now_ns, self.offset_ns, self.cost_ns, self.readings = 50 * SECOND, offset_ns, cost_ns, 0

    def monotonic(self) -> int:
        self.now_ns += self.cost_ns()
        self.readings += 1
        return self.now_ns

    def realtime(self) -> int:
        self.now_ns += self.cost_ns()
        return self.now_ns + self.offset_ns


def test_a_stamp_is_carried_over_within_half_a_bracket():
    clocks = Clocks(offset_ns=1_700_000_000 * SECOND)
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    arrived = clocks.now_ns + 5_000_000
    found = mapped.arrival_ns(arrived + clocks.offset_ns, clocks.now_ns, arrived + 3_000_000)
    assert found is not None
    assert abs(found - arrived) <= 100


def test_the_narrowest_bracket_counts():
    costs = iter([1, 400_000, 400_000, 400_000, 50, 50, 50, *[90_000, 10_000, 90_000] * 99])
    clocks = Clocks(offset_ns=7 * SECOND, cost_ns=lambda: next(costs))
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    arrived = clocks.now_ns + 1_000_000
    assert mapped.arrival_ns(arrived + 7 * SECOND, 0, arrived + 1_000_000) == pytest.approx(arrived, abs=50)


def test_a_step_of_the_wall_clock_is_noticed_within_a_second():
    clocks = Clocks(offset_ns=0)
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    clocks.offset_ns = 3 * SECOND  # set forward
    clocks.now_ns += stamps.REFRESH_NS
    arrived = clocks.now_ns
    found = mapped.arrival_ns(arrived + 3 * SECOND, arrived - 1000, arrived + 1000)
    assert found == pytest.approx(arrived, abs=200)


@pytest.mark.parametrize("step_s", [-3, 3])
def test_a_stamp_from_the_other_side_of_a_step_is_refused_and_the_clocks_are_looked_at_again(step_s: int):
    clocks = Clocks(offset_ns=0)
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    clocks.offset_ns = step_s * SECOND
    arrived = clocks.now_ns + 1000
    assert mapped.arrival_ns(arrived + clocks.offset_ns, arrived - 500, arrived + 500) is None
    again = mapped.arrival_ns(arrived + clocks.offset_ns, arrived - 500, arrived + 5000)
    assert again == pytest.approx(arrived, abs=500)


def test_an_arrival_is_never_later_than_the_read_that_brought_it():
    clocks = Clocks(offset_ns=0)
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    now = clocks.now_ns
    assert mapped.arrival_ns(now + stamps.ROUNDING_NS // 2, now - 10, now) == now
    assert mapped.arrival_ns(now + 2 * stamps.ROUNDING_NS, now - 10, now) is None


def test_the_clocks_are_looked_at_once_a_second_and_not_for_every_read():
    clocks = Clocks(offset_ns=0)
    mapped = stamps.ClockMap(clocks.monotonic, clocks.realtime)
    readings = clocks.readings
    for _ in range(1000):
        mapped.arrival_ns(clocks.now_ns, 0, clocks.now_ns)
    assert clocks.readings == readings
    clocks.now_ns += stamps.REFRESH_NS
    mapped.arrival_ns(clocks.now_ns, 0, clocks.now_ns)
    assert clocks.readings == readings + 2 * stamps.BRACKETS


@pytest.mark.parametrize(
    "ancillary",
    [
        [],
        [(socket.SOL_SOCKET, 29, struct.pack("@qq", 5, 6))],
        [(socket.SOL_SOCKET, stamps.SO_TIMESTAMPING, b"short")],
        [(socket.SOL_SOCKET, stamps.SO_TIMESTAMPING, struct.pack("@qqqqqq", 0, 0, 0, 0, 7, 8))],
    ],
    ids=["none", "another kind", "cut", "hardware only"],
)
def test_what_is_no_software_stamp_is_none(ancillary: list[tuple[int, int, bytes]]):
    assert stamps.realtime_ns(ancillary) is None


@linux
def test_the_kernel_tells_when_bytes_came_however_late_they_are_read():
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = socket.create_connection(listener.getsockname())
    sender, _ = listener.accept()
    with listener, receiver, sender:
        assert stamps.enable(receiver)
        mapped = stamps.ClockMap()
        before = time.monotonic_ns()
        sender.sendall(b"token")
        after = time.monotonic_ns()
        time.sleep(0.2)  # the process is busy elsewhere
        data, ancillary, _, _ = receiver.recvmsg(100, stamps.CONTROL_BYTES)
        now = time.monotonic_ns()
        stamp = stamps.realtime_ns(ancillary)
        assert data == b"token"
        assert stamp is not None
        arrived = mapped.arrival_ns(stamp, before - 1_000_000, now)
        assert arrived is not None
        assert before - 1_000_000 <= arrived <= after + 100_000_000 < now


@linux
def test_a_stamp_is_of_the_last_segment_of_what_a_read_returns():
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = socket.create_connection(listener.getsockname())
    sender, _ = listener.accept()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener, receiver, sender:
        assert stamps.enable(receiver)
        sender.sendall(b"first")
        time.sleep(0.2)
        between = time.time_ns()
        time.sleep(0.2)
        sender.sendall(b"last")
        time.sleep(0.05)
        data, ancillary, _, _ = receiver.recvmsg(100, stamps.CONTROL_BYTES)
        assert data == b"firstlast"
        assert (stamps.realtime_ns(ancillary) or 0) > between


def test_a_socket_without_stamps_is_no_error():
    class Refuses:
        def setsockopt(self, *_: object) -> None:
            raise OSError(92, "Protocol not available")

    assert not stamps.enable(Refuses())
