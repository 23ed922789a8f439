"""What a reply over OpenAI's protocol says: a chunk of a stream, a whole reply, or a refusal, whoever wrote it.

A chunk is a token event if it lists tokens (`token_ids`, `logprobs`) or has text, reasoning included: a role alone is
none. `finish_reason` ends a stream together with a clean end of the body; `usage` may come after it, or never, and so
may `[DONE]`.
Source: openai/openai-openapi (CreateChatCompletionStreamResponse, CreateCompletionResponse);
vllm-project/vllm, vllm/entrypoints/openai/protocol.py; litellm 1.106 for usage events with an empty choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from loadtest.endpoints.base import Reading, excerpt, whole_number
from loadtest.endpoints.timing import told_by_llama_cpp
from loadtest.sse import ServerSentEvent

SAID_TO_KEEP_ALIVE = {"ping", "heartbeat", "keep-alive", "keepalive"}  # names of events that carry nothing
NOT_THE_END = {"error", "abort"}  # finish reasons of vLLM and OpenRouter: the generation failed
HIDDEN = ("reasoning_content", "reasoning", "tool_calls", "function_call")  # generated, and not the answer's text


def read_event(event: ServerSentEvent) -> Reading:
    data = event.data.strip()
    if event.event == "error":
        return Reading(error=message_of(data))
    if not data or data == b"[DONE]" or event.event in SAID_TO_KEEP_ALIVE:
        return Reading()
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Reading(error=f"an event is not JSON: {excerpt(data)}")
    if event.event == "tokenclock":
        return Reading(server=said if isinstance(said, dict) else None)
    if not isinstance(said, dict):
        return Reading(error=f"an event is not an object: {excerpt(data)}")
    if (failure := failure_of(said)) is not None:
        return Reading(error=failure)
    choices, usage = said.get("choices"), said.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    asked = whole_number(counts.get("prompt_tokens")) or None  # litellm writes zeros until it knows
    made = whole_number(counts.get("completion_tokens")) or None
    if choices == [] or (choices is None and counts):
        return Reading(input_tokens=asked, new_tokens=made, server=told_by_llama_cpp(said.get("timings")))
    choice = choices[0] if isinstance(choices, list) else None
    if counts and isinstance(choice, dict) and choice.keys() <= {"index", "logprobs"}:  # litellm's usage event
        return Reading(input_tokens=asked, new_tokens=made)
    if isinstance(choice, dict) and choice.get("message"):
        return Reading(error=f"the reply came whole, as if `stream` had not been asked for: {excerpt(data)}")
    if not isinstance(choice, dict) or not choice.keys() & {"delta", "text", "finish_reason"}:
        return Reading(error=f"an event is no chunk of a reply: {excerpt(data)}")
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        return Reading(error=f"a chunk's delta is no object: {excerpt(data)}")
    text = delta.get("content") or choice.get("text") or delta.get("refusal") or ""
    if not isinstance(text, str):
        return Reading(error=f"a chunk's text is no string: {excerpt(data)}")
    finish = choice.get("finish_reason")
    return Reading(
        tokens=listed_tokens(choice) or int(bool(text) or any(delta.get(name) for name in HIDDEN)),
        text=text,
        finished=bool(finish),  # TGI writes "" until the end
        error=f"the generation ended with finish_reason {finish!r}" if str(finish) in NOT_THE_END else None,
        input_tokens=asked,
        new_tokens=made,
        stopped=finish == "stop",
        full=finish == "length",
        server=told_by_llama_cpp(said.get("timings")) if finish else None,
    )


def read_whole(body: bytes) -> Reading:
    """A reply that did not stream."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Reading(error=f"the reply is not JSON: {excerpt(body)}")
    if isinstance(said, dict) and (failure := failure_of(said)) is not None:
        return Reading(error=failure)
    choices = said.get("choices") if isinstance(said, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return Reading(error=f"the reply has no choice: {excerpt(body)}")
    usage, message = said.get("usage"), choice.get("message")
    counts = usage if isinstance(usage, dict) else {}
    whole = message if isinstance(message, dict) else {"content": choice.get("text")}
    made, finish = whole_number(counts.get("completion_tokens")) or None, choice.get("finish_reason")
    text = whole.get("content") or whole.get("refusal") or ""
    return Reading(
        tokens=made or listed_tokens(choice) or int(bool(text) or any(whole.get(name) for name in HIDDEN)),
        text=text if isinstance(text, str) else "",
        finished=bool(finish),
        stopped=finish == "stop",
        full=finish == "length",
        error=f"the generation ended with finish_reason {finish!r}" if str(finish) in NOT_THE_END else None,
        input_tokens=whole_number(counts.get("prompt_tokens")) or None,
        new_tokens=made,
        server=told_by_llama_cpp(said.get("timings")),
    )


def listed_tokens(choice: Mapping[str, Any]) -> int:
    """How many tokens a choice lists; 0 where it lists none."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        logprobs = {}
    for listed in (choice.get("token_ids"), logprobs.get("content"), logprobs.get("tokens")):  # vLLM, chat, completions
        if isinstance(listed, list) and listed:
            return len(listed)
    return 0


def failure_of(said: Mapping[str, Any]) -> str | None:
    """The message of an error object in OpenAI's shape, in TGI's, or in vLLM's older one; None where it is none."""
    error = said if said.get("object") == "error" else said.get("error")
    if not error:
        return None
    if not isinstance(error, dict):
        kind, message = said.get("error_type"), error
    else:
        kind, message = error.get("type") or error.get("code"), error.get("message") or excerpt(orjson.dumps(error))
    return f"{kind}: {message}" if kind else str(message)


def message_of(body: bytes) -> str:
    """What an error's bytes say, whoever wrote them: the server, its framework (`detail`) or a gateway (`message`)."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return excerpt(body)
    if not isinstance(said, dict):
        return excerpt(body)
    told = (said[name] for name in ("message", "detail") if said.get(name) and isinstance(said[name], str))
    return failure_of(said) or next(told, excerpt(body))
