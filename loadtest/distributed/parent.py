"""The process that started this one as its child: where that is killed outright, nobody else ends the child."""

from __future__ import annotations

import os
import signal

import gevent

from loadtest.distributed.link import PATIENCE_S

POLL_S = 0.2
ORPHAN_S = 1.0  # patience with a master whose process is known to be gone


def end_with(parent: int) -> None:
    """Ends this process in order, once its parent is another. A greenlet's work."""
    while os.getppid() == parent:
        gevent.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def patience_s(parent: int | None) -> float:
    """How long a silent master is waited for. parent: None where it is none of this process's."""
    return PATIENCE_S if parent in (None, os.getppid()) else ORPHAN_S
