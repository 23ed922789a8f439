"""Every line of every worker comes to the master's file exactly once, in its worker's order, whatever the network does.

Method: workers' and master's ends joined by a network that loses, doubles, delays and reorders messages and
acknowledgements as hypothesis wants it; then the network heals, and what is in the file is compared with what was put.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.distributed.shipping import Inbox, Outbox

WORKERS = ("a", "b")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(WORKERS), st.integers(0, 30)),  # a line of so many bytes
        st.tuples(st.just("send"), st.sampled_from(WORKERS), st.integers(0, 1)),  # the parcel, so many times
        st.tuples(st.just("deliver"), st.integers(0, 5), st.booleans()),  # any message under way; and keep it there
        st.tuples(st.just("answer"), st.integers(0, 5), st.booleans()),  # the same of an acknowledgement
    ),
    min_size=20,
    max_size=80,
)


class Wire:
    """Two ends and what is between them."""

    def __init__(self, most_bytes: int, most_lines: int) -> None:
        self.files = {worker: BytesIO() for worker in WORKERS}
        self.outboxes = {worker: Outbox(file, most_bytes, most_lines) for worker, file in self.files.items()}
        self.written: list[bytes] = []
        self.inbox = Inbox(self.written.extend)
        self.messages: list[tuple[str, int, Sequence[bytes]]] = []
        self.answers: list[tuple[str, int]] = []
        self.put: dict[str, list[bytes]] = {worker: [] for worker in WORKERS}

    def step(self, what: str, *how: Any) -> None:
        if what == "put":
            worker, size = how
            line = f"{worker}{len(self.put[worker])}".encode() + b"." * size
            self.outboxes[worker].add(line)
            self.put[worker].append(line)
        elif what == "send":
            worker, times = how
            if (parcel := self.outboxes[worker].parcel()) is not None:
                self.messages += [(worker, *parcel)] * times  # none: lost
        elif what == "deliver" and self.messages:
            worker, first, lines = self.messages[how[0] % len(self.messages)]
            if not how[1]:
                del self.messages[how[0] % len(self.messages)]
            self.answers.append((worker, self.inbox.take(worker, first, lines)))
        elif what == "answer" and self.answers:
            worker, has = self.answers[how[0] % len(self.answers)]
            if not how[1]:
                del self.answers[how[0] % len(self.answers)]
            self.outboxes[worker].acknowledge(has)

    def heal(self) -> None:
        for worker, outbox in self.outboxes.items():
            while (parcel := outbox.parcel()) is not None:
                assert outbox.acknowledge(self.inbox.take(worker, *parcel)), "a whole network gets a parcel through"


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 40), st.integers(1, 4))
def test_every_line_arrives_exactly_once_and_in_order(steps: Any, most_bytes: int, most_lines: int):
    wire = Wire(most_bytes, most_lines)
    for step in steps:
        wire.step(*step)
        for worker in WORKERS:  # also on the way: nothing doubled, and nothing said that isn't so
            there = [line for line in wire.written if line.startswith(worker.encode())]
            assert there == wire.put[worker][: len(there)]
            assert wire.outboxes[worker].acknowledged <= len(there) == wire.inbox.has(worker)
    wire.heal()
    for worker, outbox in wire.outboxes.items():
        there = [line for line in wire.written if line.startswith(worker.encode())]
        assert there == wire.put[worker]
        assert outbox.acknowledged == outbox.put == len(there)
        assert wire.files[worker].getvalue() == b"", "a file that is done with holds nothing"


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60), st.integers(1, 5))
def test_a_parcel_is_bounded_and_never_empty(sizes: list[int], most_bytes: int, most_lines: int):
    outbox = Outbox(BytesIO(), most_bytes, most_lines)
    for size in sizes:
        outbox.add(b"x" * size)
    while (parcel := outbox.parcel()) is not None:
        assert 1 <= len(parcel.lines) <= most_lines
        assert sum(len(line) + 1 for line in parcel.lines[:-1]) < most_bytes
        assert outbox.acknowledge(parcel.first + len(parcel.lines))
    assert outbox.acknowledged == len(sizes)


def test_an_acknowledgement_that_comes_late_is_not_that_of_the_next_parcel():
    outbox, written = Outbox(BytesIO(), most_lines=1), []
    inbox = Inbox(written.extend)
    for line in (b"0", b"1", b"2"):
        outbox.add(line)
    first = outbox.parcel()
    assert first is not None
    has = inbox.take("a", *first)
    assert outbox.acknowledge(has)
    assert not outbox.acknowledge(has), "nothing is under way"
    second = outbox.parcel()
    assert second is not None
    assert not outbox.acknowledge(has), "the same once more"
    assert outbox.parcel() == second
    assert outbox.acknowledge(inbox.take("a", *second))
    assert written == [b"0", b"1"]


def test_what_is_before_a_gap_is_asked_for_before_anything_is_taken():
    written: list[bytes] = []
    assert Inbox(written.extend).take("a", 2, [b"2", b"3"]) == 0
    assert written == []


def test_what_is_not_acknowledged_can_be_saved():
    outbox = Outbox(BytesIO(), most_lines=2)
    for number in range(5):
        outbox.add(b"%d" % number)
    assert outbox.parcel() is not None
    assert outbox.acknowledge(2)
    assert outbox.parcel() is not None  # under way, and nobody knows whether it arrived
    assert outbox.rest() == b"2\n3\n4\n"


def test_a_disk_without_room_loses_nothing_of_what_was_there():
    class Full(BytesIO):
        full = False

        def write(self, data: Any) -> int:
            if self.full:
                super().write(data[:2])
                raise OSError(28, "No space left on device")
            return super().write(data)

    file = Full()
    outbox = Outbox(file)
    outbox.add(b"first")
    file.full = True
    with pytest.raises(OSError, match="No space"):
        outbox.add(b"second")
    file.full = False
    outbox.add(b"third")
    parcel = outbox.parcel()
    assert parcel is not None
    assert parcel.lines == [b"first", b"third"]
