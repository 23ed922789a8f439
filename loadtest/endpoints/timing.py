"""What a reply's headers tell of the server's own times: this project's header, or TGI's.

A stream's headers leave before there is anything to tell: this project's server sends an event instead, TGI nothing.
Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/server.rs (`generate`: `x-validation-time`,
`x-queue-time`, `x-inference-time`, whole milliseconds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

OURS = "x-tokenclock-timing"
TGIS = {"validation_s": "x-validation-time", "queue_s": "x-queue-time", "inference_s": "x-inference-time"}


def told(headers: Mapping[str, str]) -> dict[str, Any] | None:
    """A sample's `server`, times in seconds; None where nothing is told, or of several texts at once. Names of headers
    are in lower case.
    """
    if (text := headers.get(OURS)) is not None:
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        return said if isinstance(said, dict) else None
    times = {name: int(text) / 1e3 for name, header in TGIS.items() if _whole(text := headers.get(header, ""))}
    return times or None


def _whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10  # digits of milliseconds: eleven days
