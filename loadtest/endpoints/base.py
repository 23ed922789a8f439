"""An endpoint knows one protocol: how to ask for exactly M tokens, and how to read the events that come back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import orjson

from loadtest.redaction import hide
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Connection, HttpRequest, Target, fetch

#: A text, token ids, or the messages of a conversation: what a request's prompt may be.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
EVENTS, WHOLE = "text/event-stream", "application/json"  # media types of replies
JSON = (("content-type", "application/json"),)
NEW_TOKENS = "{new_tokens}"  # as a value of `extra_body`: the number that the request asks for
LONGEST_EXCERPT = 200  # characters of a stranger's bytes in a message


class EndpointError(Exception):
    """The endpoint can't be measured; the message names what it said and the remedy."""


class Reading(NamedTuple):  # one is made for every token: a tuple costs a third of a frozen dataclass
    """What one event says."""

    tokens: int = 0  # generated tokens it carries
    text: str = ""  # visible text
    finished: bool = False  # the protocol's own end
    error: str | None = None  # an error, or why this is no event of the protocol
    input_tokens: int | None = None  # the server's count of the prompt
    new_tokens: int | None = None  # the server's count of what it generated
    server: dict[str, Any] | None = None  # the server's own timing
    stopped: bool = False  # at the end: the model ended its text by itself
    full: bool = False  # at the end: by the server's word it has the length that was asked for


NOTHING_ELSE = Reading()[2:]  # what nearly every event says beside its tokens and text


@dataclass(frozen=True, slots=True)
class Description:
    """What an endpoint says of itself, before anything is measured."""

    slots: int | None  # None where it does not say
    max_total_tokens: int | None
    info: dict[str, Any] | None = field(default=None)  # verbatim, for run.json


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a text; `start` and `stop` count its UTF-8 bytes."""

    start: int
    stop: int


class Endpoint(Protocol):
    @property
    def protocol(self) -> str:
        """`tgi`, for run.json."""

    @property
    def streams(self) -> bool:
        """A reply comes as events; else it comes whole, and has a latency only."""

    @property
    def media_type(self) -> str:
        """What a reply's content-type begins with."""

    @property
    def route(self) -> str:
        """What locust's table calls it."""

    @property
    def needs_clean_end(self) -> bool:
        """A stream is complete only if its body, too, ended as its framing said."""

    @property
    def suppresses_eos(self) -> bool:
        """It is known to generate on past the end of a text when asked to: fewer tokens are then a fault of its own."""

    @property
    def truncates(self) -> bool:
        """A request says how many tokens of its prompt are kept, so one that is too long comes out exact."""

    @property
    def takes_token_ids(self) -> bool:
        """A prompt may be said in token ids."""

    def without(self, refusal: str) -> tuple[Endpoint, str] | None:
        """The endpoint asked without the field that a refusal names, and its name; None where it must stay."""

    def request(self, prompt: Prompt, new_tokens: int, request_id: str, input_tokens: int | None = None) -> HttpRequest:
        """Ask for `new_tokens`, EOS suppressed, streamed; and to keep `input_tokens` of the prompt, where one can.

        Raises: EndpointError where the protocol can't say such a prompt.
        """

    def read(self, event: ServerSentEvent) -> Reading: ...

    def read_whole(self, body: bytes, headers: Mapping[str, str]) -> Reading:
        """What a reply says that did not stream. header names are in lower case."""

    def error_of(self, body: bytes) -> str:
        """The message in a body whose status is not 200."""

    def describe(self, connection: Connection) -> Description:
        """Raises: EndpointError, TransportError."""

    def tokenize(self, connection: Connection, text: str) -> list[Piece] | None:
        """The tokens of a text as the server counts them, special ones included; None where it can't be asked.

        Raises: EndpointError, TransportError.
        """


def parse_url(url: str) -> Target:
    """The target of a base URL.

    Raises: EndpointError where it isn't http or https, or names no host.
    """
    if re.match(r"[\w-]+:\s", url):  # curl's -H
        raise EndpointError("that is a header, not a URL: say it as --header 'Name: value'")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError as error:
        raise EndpointError(f"{url} is no URL ({error}): write it as http://127.0.0.1:8080") from error
    if "@" in parts.netloc:
        shown = url.replace(parts.netloc, f"…@{parts.netloc.rpartition('@')[2]}")
        raise EndpointError(f"{shown} holds a name or password: say --header 'Authorization: Basic …' instead")
    try:
        port = parts.port
    except ValueError as error:
        raise EndpointError(f"{url} has no valid port: use 1 to 65535") from error
    if parts.scheme not in ("http", "https"):
        raise EndpointError(f"{url} asks for {parts.scheme}: only http:// and https:// can be measured")
    if not parts.hostname:
        raise EndpointError(f"{url} names no host: write it as http://127.0.0.1:8080")
    if parts.query or parts.fragment:  # which may hold a key
        shown = url.partition("?")[0].partition("#")[0]
        raise EndpointError(f"{shown}… is more than a base URL: leave out ? and # and what follows")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise EndpointError(f"{url!r} has characters that a URL can't have: percent-encode its path")
    if port == 0:
        raise EndpointError(f"{url} has no valid port: use 1 to 65535")
    tls = parts.scheme == "https"
    return Target(parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"), tls)


def ask(connection: Connection, request: HttpRequest) -> tuple[int, Any]:
    """Status and JSON of an answer that nobody times; what isn't JSON is None. Raises: TransportError."""
    status, body = fetch(connection, request)
    try:
        return status, orjson.loads(body)
    except orjson.JSONDecodeError:
        return status, None


def without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields; null leaves one out."""
    return {name: value for name, value in body.items() if value is not None}


def filled(extra_body: Mapping[str, Any], new_tokens: int) -> dict[str, Any]:
    """The user's fields, the number of new tokens in its place."""
    return {name: new_tokens if value == NEW_TOKENS else value for name, value in extra_body.items()}


def whole_number(said: object) -> int | None:
    """A count as a server should give it; anything else is no count."""
    return said if isinstance(said, int) and not isinstance(said, bool) and said >= 0 else None


def excerpt(data: bytes) -> str:
    text = hide(data[: 8 * LONGEST_EXCERPT].decode("utf-8", "replace"))  # before the cut, which may leave half a secret
    return repr(text[:LONGEST_EXCERPT])
