"""Lines on their way from a worker to its master: each arrives exactly once, whatever becomes of the messages.

The worker numbers its lines. A parcel is some of them in a row, and the number of the first; one is under way at a
time, and goes again and again until the master has it. The master writes down what it hasn't yet, and then says how
many it has: the whole acknowledgement is that number. So a message that is lost is made up for, and one that comes
twice, late or out of turn changes nothing.

What isn't acknowledged waits in a file: a worker's memory holds one parcel, however long its master is away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

MOST_BYTES = 2**18  # a parcel ends with the line that passes this: copying it keeps streams waiting for 0.1 ms
MOST_LINES = 1000


class Parcel(NamedTuple):
    first: int  # number of its first line, from 0
    lines: list[bytes]  # without newlines


class Outbox:
    """The worker's end. Nothing is forgotten before it is acknowledged."""

    def __init__(self, file: BinaryIO, most_bytes: int = MOST_BYTES, most_lines: int = MOST_LINES) -> None:
        """file: empty, to be read and written; it holds what isn't acknowledged, and is emptied when all is."""
        self._file = file
        self._most_bytes, self._most_lines = most_bytes, most_lines
        self._begin = self._end = 0  # bytes of the file: what isn't acknowledged
        self._under_way: Parcel | None = None
        self.put = 0  # lines
        self.acknowledged = 0  # of them

    def add(self, line: bytes) -> None:
        """line: without a newline in it. Raises: OSError where there is no room; nothing was added then."""
        self._file.seek(self._end)
        self._file.write(line + b"\n")
        self._file.flush()
        self._end += len(line) + 1
        self.put += 1

    def parcel(self) -> Parcel | None:
        """The oldest lines, the same ones until they are acknowledged; None where all are."""
        if self._under_way is None and self.acknowledged < self.put:
            self._file.seek(self._begin)
            lines: list[bytes] = []
            size = 0
            while size < self._most_bytes and len(lines) < min(self._most_lines, self.put - self.acknowledged):
                lines.append(self._file.readline()[:-1])
                size += len(lines[-1]) + 1
            self._under_way = Parcel(self.acknowledged, lines)
        return self._under_way

    def acknowledge(self, has: int) -> bool:
        """Whether the master now has the parcel under way. has: lines that it says it has."""
        parcel = self._under_way
        if parcel is None or has != parcel.first + len(parcel.lines):
            return False  # an earlier one's, late
        self._under_way = None
        self.acknowledged = has
        self._begin += sum(map(len, parcel.lines)) + len(parcel.lines)
        if self.acknowledged == self.put:
            self._file.seek(0)
            self._file.truncate()
            self._begin = self._end = 0
        return True

    def rest(self) -> bytes:
        """Every line that isn't acknowledged, with newlines."""
        self._file.seek(self._begin)
        return self._file.read(self._end - self._begin)


class Inbox:
    """The master's end, for all its workers."""

    def __init__(self, write: Callable[[Sequence[bytes]], None]) -> None:
        """write: keeps lines for good. Where it raises, nothing of the parcel may be taken again."""
        self._write = write
        self._has: dict[str, int] = {}

    def has(self, worker: str) -> int:
        return self._has.get(worker, 0)

    def take(self, worker: str, first: int, lines: Sequence[bytes]) -> int:
        """Write down what is new of a parcel; returns how many lines of this worker there are now: acknowledge that."""
        has = self.has(worker)
        if first <= has and (new := lines[has - first :]):
            self._write(new)
            self._has[worker] = has + len(new)
        return self.has(worker)
