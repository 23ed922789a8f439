"""Between two pieces of work that nobody waits for, streams go first: what is read late is stamped late."""

from __future__ import annotations

import gevent

LONGEST_BREATH_S = 0.05  # the next piece is done then, however busy the streams are


def breathe(longest_s: float | None = LONGEST_BREATH_S) -> None:
    """Let every stream that has something to read go first. longest_s: None: however long that takes."""
    with gevent.Timeout(longest_s, False):
        gevent.idle()
