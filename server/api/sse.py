"""Server-sent events: one JSON object per event, as bytes ready for the socket.

`data: {json}` with a space after the colon and a blank line after it, no `id:`; `event:` only for our own timing event.
Source: WHATWG HTML, section 9.2; axum 0.7.9, which TGI's router uses.
"""

from __future__ import annotations

from typing import Any

import orjson

MEDIA_TYPE = "text/event-stream"
COMMENT = b":\n\n"
DONE = b"data: [DONE]\n\n"  # OpenAI's end of a stream


def event(payload: Any, name: str | None = None) -> bytes:
    body = b"data: " + orjson.dumps(payload) + b"\n\n"
    return body if name is None else b"event: " + name.encode() + b"\n" + body
