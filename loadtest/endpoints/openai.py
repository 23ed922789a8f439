"""OpenAI's chat and completions streams, as OpenAI, vLLM, SGLang, TGI and this project's server write them.

A chunk is a token event if it lists tokens (`token_ids`, `logprobs`) or has text, reasoning included: a role alone is
none. `finish_reason` ends a stream together with a clean end of the body; `usage` may come after it, or never, and so
may `[DONE]`. The request asks for what any server takes, and for `ignore_eos`, which is vLLM's.
Source: openai/openai-openapi (CreateChatCompletionStreamResponse, CreateCompletionResponse);
vllm-project/vllm, vllm/entrypoints/openai/protocol.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import orjson

from loadtest.endpoints.base import JSON, Description, EndpointError, Piece, Reading, excerpt, whole_number
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Connection, HttpRequest

ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
NEW_TOKENS = "{new_tokens}"  # as a value of `extra_body`: the number that the request asks for
SAID_TO_KEEP_ALIVE = {"ping", "heartbeat", "keep-alive", "keepalive"}  # names of events that carry nothing
NOT_THE_END = {"error", "abort"}  # finish reasons of vLLM and OpenRouter: the generation failed
HIDDEN = ("reasoning_content", "reasoning", "tool_calls", "function_call")  # generated, and not the answer's text
REFUSED = re.compile(r"unrecogni[sz]ed|unsupported|not supported|not permitted|unknown|unexpected", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OpenAiEndpoint:
    """`extra_body` is laid over the request; null leaves a field out. OpenAI's own reasoning models need
    `{"max_tokens": null, "max_completion_tokens": "{new_tokens}", "ignore_eos": null, "temperature": null}`,
    which no longer suppresses EOS; a server without `ignore_eos` may have `{"min_tokens": "{new_tokens}"}`.
    """

    kind: Literal["chat", "completions"]
    model: str
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    media_type: ClassVar[str] = "text/event-stream"
    needs_clean_end: ClassVar[bool] = True  # the finish is no last event: usage, an error or a cut may follow

    @property
    def protocol(self) -> str:
        return f"openai-{self.kind}"

    @property
    def route(self) -> str:
        return ROUTES[self.kind]

    def request(self, prompt: str, new_tokens: int, request_id: str) -> HttpRequest:
        said: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        body = {
            "model": self.model,
            **(said if self.kind == "chat" else {"prompt": prompt}),
            "max_tokens": new_tokens,  # TGI and Ollama know no `max_completion_tokens`; OpenAI refuses both at once
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "ignore_eos": True,
            **{name: new_tokens if value == NEW_TOKENS else value for name, value in self.extra_body.items()},
        }
        return HttpRequest(
            "POST",
            self.route,
            (*JSON, ("accept", self.media_type), ("x-request-id", request_id), ("x-tokenclock-timing", "1")),
            orjson.dumps({name: value for name, value in body.items() if value is not None}),
        )

    def read(self, event: ServerSentEvent) -> Reading:
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
        asked, made = whole_number(counts.get("prompt_tokens")), whole_number(counts.get("completion_tokens"))
        if choices == [] or (choices is None and counts):
            return Reading(input_tokens=asked, new_tokens=made)
        choice = choices[0] if isinstance(choices, list) else None
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
        )

    def error_of(self, body: bytes) -> str:
        message = message_of(body)
        if not REFUSED.search(message):
            return message
        for name in ("ignore_eos", "stream_options", "temperature", "max_tokens", *self.extra_body):
            if re.search(rf"\b{re.escape(name)}\b", message):
                remedy = {name: None} | ({"max_completion_tokens": NEW_TOKENS} if name == "max_tokens" else {})
                return f"{message} (leave it out: extra_body {orjson.dumps(remedy).decode()})"
        return message

    def describe(self, connection: Connection) -> Description:
        raise EndpointError("what an OpenAI endpoint serves can't be asked in this version: measure its TGI routes")

    def tokenize(self, connection: Connection, text: str) -> list[Piece]:
        raise EndpointError("OpenAI's protocol counts no tokens of a prompt: measure the endpoint's TGI routes")


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
