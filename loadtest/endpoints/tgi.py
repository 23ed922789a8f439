"""text-generation-inference's native protocol: `/generate_stream`, one event a token, and `/tokenize`.

`parameters.ignore_eos` is tokenclock's own addition and `x-tokenclock-timing` its own header; both ask a server of this
project for what TGI can't do. Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/server.rs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from loadtest.endpoints.base import (
    EVENTS,
    JSON,
    NOTHING_ELSE,
    WHOLE,
    Description,
    EndpointError,
    Piece,
    Prompt,
    Reading,
    excerpt,
    filled,
    whole_number,
    without_nulls,
)
from loadtest.endpoints.timing import told
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Connection, HttpRequest, fetch

INVOCATIONS = "/invocations"
STOPPED = ("eos_token", "stop_sequence")  # finish reasons of a model that ended its text by itself


@dataclass(frozen=True, slots=True)
class TgiEndpoint:
    """`extra_body` is laid over the request, `parameters` within it likewise; null leaves a field out."""

    route: str = "/generate_stream"
    protocol: str = "tgi"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    suppresses_eos: bool = True  # of the project's own server; TGI has no such parameter and ignores it
    needs_clean_end: bool = False  # an event with `generated_text` is TGI's own end
    has_other_routes: bool = True  # a SageMaker endpoint has none
    streams: bool = True

    truncates: ClassVar[bool] = True
    takes_token_ids: ClassVar[bool] = False

    @property
    def media_type(self) -> str:
        return EVENTS if self.streams else WHOLE

    def request(self, prompt: Prompt, new_tokens: int, request_id: str, input_tokens: int | None = None) -> HttpRequest:
        if not isinstance(prompt, str):
            raise EndpointError(
                "TGI's protocol takes a text for a prompt: use --endpoint-type openai-chat for messages"
            )
        parameters = {
            "max_new_tokens": new_tokens,
            "details": True,
            "ignore_eos": True,
            "truncate": input_tokens or None,
        }
        extra = filled(self.extra_body, new_tokens)
        body = {
            "inputs": prompt,
            **({"stream": self.streams} if self.route == INVOCATIONS else {}),
            **extra,
            "parameters": without_nulls({**parameters, **filled(extra.get("parameters") or {}, new_tokens)}),
        }
        return HttpRequest(
            "POST",
            self.route,
            (*JSON, ("accept", self.media_type), ("x-request-id", request_id), ("x-tokenclock-timing", "1")),
            orjson.dumps(without_nulls(body)),
        )

    def without(self, refusal: str) -> None:
        """TGI ignores what it doesn't know."""

    def read(self, event: ServerSentEvent) -> Reading:
        if not event.data:
            return Reading()
        try:
            said = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return Reading(error=f"an event is not JSON: {excerpt(event.data)}")
        if event.event == "tokenclock":
            return Reading(server=said if isinstance(said, dict) else None)
        if not isinstance(said, dict):
            return Reading(error=f"an event is not an object: {excerpt(event.data)}")
        if said.get("error") is not None:
            return Reading(error=f"{said.get('error_type', 'error')}: {said['error']}")
        token = said.get("token")
        if token is None and "token" in said and said.get("generated_text") is None:
            return Reading()  # an event without a token is no token event
        if not isinstance(token, dict) or "id" not in token:
            return Reading(error=f"an event carries no token: {excerpt(event.data)}")
        text = "" if token.get("special") else str(token.get("text", ""))
        if said.get("generated_text") is None:
            return tuple.__new__(Reading, (1, text, *NOTHING_ELSE))  # Reading(1, text) costs as much as the JSON
        details = said.get("details")
        if not isinstance(details, dict):
            details = {}
        return Reading(
            tokens=1,
            text=text,
            finished=True,
            input_tokens=whole_number(details.get("input_length")),
            new_tokens=whole_number(details.get("generated_tokens")),
            stopped=details.get("finish_reason") in STOPPED,
            full=details.get("finish_reason") == "length",
        )

    def read_whole(self, body: bytes, headers: Mapping[str, str]) -> Reading:
        """`/generate` answers with an object, `/invocations` with a list of one; the prompt's length is in a header."""
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Reading(error=f"the reply is not JSON: {excerpt(body)}")
        said = said[0] if isinstance(said, list) and said else said
        if not isinstance(said, dict) or not isinstance(said.get("generated_text"), str):
            return Reading(error=f"the reply has no generated_text: {excerpt(body)}")
        details = said.get("details")
        if not isinstance(details, dict):
            details = {}
        counted = headers.get("x-prompt-tokens", "")
        made = whole_number(details.get("generated_tokens"))
        return Reading(
            tokens=int(bool(said["generated_text"])) if made is None else made,
            text=said["generated_text"],
            finished=True,
            stopped=details.get("finish_reason") in STOPPED,
            full=details.get("finish_reason") == "length",
            input_tokens=int(counted) if counted.isdigit() else whole_number(details.get("input_length")),
            new_tokens=made,
            server=told(headers),
        )

    def error_of(self, body: bytes) -> str:
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return excerpt(body)
        return str(said["error"]) if isinstance(said, dict) and "error" in said else excerpt(body)

    def describe(self, connection: Connection) -> Description:
        if not self.has_other_routes:
            return Description(None, None)
        info = self._ask(connection, HttpRequest("GET", "/info"))
        if not isinstance(info, dict):
            raise EndpointError("/info does not answer with an object: is this a TGI endpoint?")
        return Description(whole_number(info.get("slots")) or None, whole_number(info.get("max_total_tokens")), info)

    def tokenize(self, connection: Connection, text: str) -> list[Piece] | None:
        if not self.has_other_routes:
            return None
        request = HttpRequest("POST", "/tokenize", JSON, orjson.dumps({"inputs": text}))
        pieces = self._ask(connection, request)
        try:
            return [Piece(int(piece["start"]), int(piece["stop"])) for piece in pieces]
        except (TypeError, KeyError, ValueError) as error:
            raise EndpointError(f"/tokenize does not answer with tokens and offsets ({error})") from error

    def _ask(self, connection: Connection, request: HttpRequest) -> Any:
        status, body = fetch(connection, request)
        if status != 200:
            raise EndpointError(f"{request.path} answers {status}: {self.error_of(body)}")
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise EndpointError(f"{request.path} does not answer with JSON: {excerpt(body)}") from error
