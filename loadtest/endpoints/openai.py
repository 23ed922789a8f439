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

from loadtest.endpoints.base import (
    JSON,
    Description,
    EndpointError,
    Piece,
    Prompt,
    Reading,
    ask,
    excerpt,
    whole_number,
    without_nulls,
)
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Connection, HttpRequest

ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
HONOUR_IGNORE_EOS = {"vllm", "sglang", "tokenclock"}  # `owned_by` of the models of servers that know the parameter
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
    model: str | None  # None where the endpoint needs no name
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    suppresses_eos: bool = True
    invocations: bool = False  # SageMaker's route instead of OpenAI's own
    has_other_routes: bool = True  # a SageMaker endpoint has none

    truncates: ClassVar[bool] = False
    media_type: ClassVar[str] = "text/event-stream"
    needs_clean_end: ClassVar[bool] = True  # the finish is no last event: usage, an error or a cut may follow

    @property
    def protocol(self) -> str:
        return f"sagemaker, openai-{self.kind}" if self.invocations else f"openai-{self.kind}"

    @property
    def route(self) -> str:
        return "/invocations" if self.invocations else ROUTES[self.kind]

    def request(self, prompt: Prompt, new_tokens: int, request_id: str, input_tokens: int | None = None) -> HttpRequest:
        body = {
            "model": self.model,
            **self._prompt(prompt),
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
            orjson.dumps(without_nulls(body)),
        )

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        messages = not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], Mapping)
        if self.kind == "completions":
            if messages:
                raise EndpointError("completions take no messages: use --endpoint-type openai-chat")
            return {"prompt": prompt}
        if not messages and not isinstance(prompt, str):
            raise EndpointError("a chat takes no token ids: use --endpoint-type openai-completions")
        return {"messages": prompt if messages else [{"role": "user", "content": prompt}]}

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
            stopped=finish == "stop",
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
        """What the list of models says of ours, and what `/info` says where there is one."""
        if not self.has_other_routes:
            return Description(None, None)
        found = next((each for each in models(connection) if each.get("id") == self.model), {})
        status, said = ask(connection, HttpRequest("GET", "/info"))
        info = said if status == 200 and isinstance(said, dict) else {}
        most = whole_number(found.get("max_model_len")) or whole_number(info.get("max_total_tokens"))
        return Description(whole_number(info.get("slots")) or None, most, info or found or None)

    def tokenize(self, connection: Connection, text: str) -> list[Piece] | None:
        """OpenAI's protocol has no such route; a reply's `usage` counts a prompt."""
        return None


def models(connection: Connection) -> list[dict[str, Any]]:
    """What `/v1/models` lists; nothing where there is no such route. The first is what most servers serve.

    Raises: TransportError; EndpointError where it is refused.
    """
    status, said = ask(connection, HttpRequest("GET", "/v1/models"))
    if status in (401, 403):
        raise EndpointError(f"/v1/models answers {status}: {message_of(orjson.dumps(said))}; is --api-key right?")
    listed = said.get("data") if status == 200 and isinstance(said, dict) else None
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


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
