"""Tokens on their way from the engine's thread to the event loop, where they are written.

Where the loop is behind by some steps it takes all of them in one turn, and a request hears at once of all that has
come for it. So one write carries several tokens, and the loop catches up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

from server.engine.engine import Batch
from server.engine.request import Delivery, Request

logger = logging.getLogger(__name__)


class Relay:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Batch] = deque()

    def hand_over(self, batch: Batch) -> None:
        """For the engine's thread. A closed loop has nobody who listens."""
        self._waiting.append(batch)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Runs on the event loop, once a step; an earlier call may have taken the step along."""
        together: dict[Request, list[Delivery]] = {}
        for _ in range(len(self._waiting)):
            for request, delivery in self._waiting.popleft():
                together.setdefault(request, []).append(delivery)
        for request, deliveries in together.items():
            try:
                request.deliver(deliveries)
            except Exception:  # a fault with one stream is not the others'
                logger.exception("%s: a token could not be delivered", request.id)
