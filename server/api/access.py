"""The outermost layer: stamps a request's arrival, gives it its id, and writes one log line about it when it is over.

The line says how it ended and what it cost, in counts and seconds; nothing of what was sent or answered.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from server.engine.request import Request
from server.service import Service

logger = logging.getLogger(__name__)

LONGEST_ID = 128
LONGEST_PATH = 200
QUIET = ("/health", "/ping", "/metrics", "/info")  # asked every few seconds by machines: told at level debug


@dataclass(eq=False, slots=True)
class Access:
    """What becomes known about a request on its way; `scope["access"]`."""

    id: str
    arrived_s: float  # monotonic seconds, before the body was read
    status: int = 500  # of a request that ends without an answer
    outcome: str | None = None  # where it was refused: the error's `error_type`
    texts: Sequence[Request] = ()  # once it is with the engine


class AccessLog:
    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        access = scope["access"] = Access(id_of(scope), self._service.clock())
        bind_contextvars(request_id=access.id)

        def noting(message: Message) -> Awaitable[None]:  # no coroutine of its own: it is on every token's way
            if message["type"] == "http.response.start":
                access.status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._service.leave(access)
            route = getattr(scope.get("route"), "path", None)
            quiet = route in QUIET or (route == "/" and scope["method"] != "POST")
            level = logging.DEBUG if quiet else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "request", extra=self._told(scope, access, route))

    def _told(self, scope: Scope, access: Access, route: str | None) -> dict[str, Any]:
        told: dict[str, Any] = {"request_id": access.id, "method": scope["method"], "route": route}
        if route is None:
            told["path"] = scope["path"][:LONGEST_PATH]
        told |= {"status": access.status, "outcome": outcome_of(access)}
        if access.texts:
            told |= spent(access.texts, access.arrived_s)
        return told | {"took_s": round(self._service.clock() - access.arrived_s, 6)}


def id_of(scope: Scope) -> str:
    """The caller's `x-request-id` where it can be echoed, else one that is made."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and is_id(given := value.decode("latin-1")):
            return str(given)
    return secrets.token_hex(8)


def is_id(given: str) -> bool:
    return 0 < len(given) <= LONGEST_ID and given.isascii() and given.isprintable()


def outcome_of(access: Access) -> str:
    """The word that the metrics have for it. A text that the engine hasn't ended yet was left by its client."""
    if access.texts:
        outcomes = [request.outcome or "dropped" for request in access.texts]
        return next((outcome for outcome in outcomes if outcome != "success"), "success")
    if access.outcome is not None:
        return access.outcome
    return "success" if access.status < 400 else "generation" if access.status >= 500 else "validation"


def spent(texts: Sequence[Request], arrived_s: float) -> dict[str, Any]:
    """Tokens and seconds of a request's texts, taken for one piece of work: it waits until the first of them is begun,
    is encoded until the first token of any, and decodes until the last one of all. None: it didn't get that far.
    """
    started = min((text.prefill_started_s for text in texts if text.prefill_started_s is not None), default=None)
    first = min((text.first_token_s for text in texts if text.first_token_s is not None), default=None)
    last = max((text.last_token_s for text in texts if text.last_token_s is not None), default=None)
    marks = (arrived_s, started, first, last)
    seconds = [None if begin is None or end is None else round(end - begin, 6) for begin, end in pairwise(marks)]
    return {
        "texts": len(texts),
        "prompt_tokens": sum(len(text.task.token_ids) for text in texts),
        "new_tokens": sum(text.new_tokens for text in texts),
        **dict(zip(("queue_s", "prefill_s", "decode_s"), seconds, strict=True)),
    }
