"""OpenAI's chat and completions, as OpenAI, vLLM, SGLang, TGI, llama.cpp and this project's server take them.

The request asks for what any server takes, and for `ignore_eos`, which is vLLM's; a server that refuses a field is
asked without it. What comes back: `openai_reply.py`.
Source: openai/openai-openapi; vllm-project/vllm, vllm/entrypoints/openai/protocol.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import orjson

from loadtest.endpoints.base import (
    EVENTS,
    JSON,
    NEW_TOKENS,
    WHOLE,
    Description,
    EndpointError,
    Piece,
    Prompt,
    Reading,
    ask,
    filled,
    whole_number,
    without_nulls,
)
from loadtest.endpoints.openai_reply import message_of, read_event, read_whole
from loadtest.endpoints.timing import told
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Connection, HttpRequest

ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
OPTIONAL = ("ignore_eos", "stream_options", "temperature")  # asked for where they are taken
HONOUR_IGNORE_EOS = {"vllm", "sglang", "tokenclock"}  # `owned_by` of the models of servers that know the parameter
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
    streams: bool = True

    truncates: ClassVar[bool] = False
    needs_clean_end: ClassVar[bool] = True  # the finish is no last event: usage, an error or a cut may follow

    @property
    def takes_token_ids(self) -> bool:
        return self.kind == "completions"

    @property
    def media_type(self) -> str:
        return EVENTS if self.streams else WHOLE

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
            "stream": self.streams,
            "stream_options": {"include_usage": True} if self.streams else None,
            "temperature": 0,
            "ignore_eos": True,
            **filled(self.extra_body, new_tokens),
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
        return read_event(event)

    def read_whole(self, body: bytes, headers: Mapping[str, str]) -> Reading:
        reading = read_whole(body)
        return reading._replace(server=told(headers) or reading.server)

    def error_of(self, body: bytes) -> str:
        message = message_of(body)
        remedy = self._remedy(message)
        return f"{message} (leave it out: extra_body {orjson.dumps(remedy).decode()})" if remedy else message

    def without(self, refusal: str) -> tuple[OpenAiEndpoint, str] | None:
        """A field of ours is left out, or called by its newer name; one of the user's isn't."""
        remedy = self._remedy(refusal)
        if remedy is None or remedy.keys() & self.extra_body.keys():
            return None
        suppresses_eos = self.suppresses_eos and "ignore_eos" not in remedy
        return replace(self, extra_body={**self.extra_body, **remedy}, suppresses_eos=suppresses_eos), next(
            iter(remedy)
        )

    def _remedy(self, message: str) -> dict[str, Any] | None:
        """What `extra_body` has to say so that the field which a message refuses isn't sent."""
        if not REFUSED.search(message):
            return None
        for name in (*OPTIONAL, "max_tokens", *self.extra_body):
            if re.search(rf"\b{re.escape(name)}\b", message):
                return {name: None} | ({"max_completion_tokens": NEW_TOKENS} if name == "max_tokens" else {})
        return None

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
