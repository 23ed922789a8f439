"""What a reply tells of the server's own times: in headers, this project's or TGI's, or in llama.cpp's `timings`.

A stream's headers leave before there is anything to tell: this project's server sends an event instead, TGI nothing.
Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/server.rs (`generate`: `x-validation-time`,
`x-queue-time`, `x-inference-time`, whole milliseconds); ggml-org/llama.cpp, tools/server/server-task.cpp
(`result_timings::to_json`, in the last chunk or the whole reply; how long a request waited for a slot isn't in it).
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


def told_by_llama_cpp(said: object) -> dict[str, Any] | None:
    """A sample's `server` from a `timings` object, times in seconds; None of anything else."""
    if not isinstance(said, dict):
        return None
    times = {name: said.get(of) for name, of in (("prefill_s", "prompt_ms"), ("decode_s", "predicted_ms"))}
    found = {name: ms / 1e3 for name, ms in times.items() if isinstance(ms, int | float) and not isinstance(ms, bool)}
    return found or None


def _whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10  # digits of milliseconds: eleven days
