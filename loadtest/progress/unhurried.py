"""stderr, for a process in which nobody may wait for a terminal: one that was stopped by Ctrl-S, or is far away.

A write that blocks stops every stream of the process, and no request would be sent. What can't be written at once is
kept and written with the next; who draws again and again asks before whether it is `idle`.
"""

from __future__ import annotations

import io
import os
import select
import time
from contextlib import suppress
from typing import TextIO

import gevent

LAST_WORDS_S = 1.0  # for what is left at the end; the measurement is over then


class Unhurried(io.TextIOBase):
    """Writes to another text file's descriptor, or straight to the file where it has none."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._encoding = file.encoding or "utf-8"
        self._left = b""
        self._descriptor, self._anew = -1, False
        with suppress(OSError, ValueError):
            file.flush()
            self._descriptor = file.fileno()
            self._descriptor, self._anew = _opened_anew(self._descriptor), True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute of the base
        return self._encoding

    def write(self, text: str) -> int:
        if self._descriptor < 0:
            return self._file.write(text)
        self._left += text.encode(self._encoding, "backslashreplace")
        self._push()
        return len(text)

    def idle(self) -> bool:
        """Whether all that was written is gone, and more may come."""
        if self.closed:
            return False
        self._push()
        return not self._left

    def close(self) -> None:
        """Gives what is left a moment more."""
        if self.closed:
            return
        end_s = time.monotonic() + LAST_WORDS_S
        try:
            while not self.idle() and time.monotonic() < end_s:
                gevent.sleep(0.02)
        finally:
            if self._anew:
                os.close(self._descriptor)
            self._left = b""
            super().close()

    def _push(self) -> None:
        try:
            while self._left and (at_once := self._at_once()):
                self._left = self._left[os.write(self._descriptor, self._left[:at_once]) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more: a run isn't stopped by that
            self._left = b""

    def _at_once(self) -> int:
        """Bytes that can be written without waiting: all, where it wouldn't block; of a pipe with room PIPE_BUF."""
        if self._anew:
            return len(self._left)
        return select.PIPE_BUF if select.select([], [self._descriptor], [], 0)[1] else 0


def _opened_anew(terminal: int) -> int:
    """A descriptor of its own, since O_NONBLOCK belongs to what was opened, which is the shell's too, and stdout's.

    Raises: OSError where it is no terminal, or can't be opened.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(os.ttyname(terminal), flags)
    except OSError:  # after `su` it is another user's, in a container it may have no name
        os.tcgetpgrp(terminal)  # fails where it isn't what /dev/tty is
        return os.open("/dev/tty", flags)
