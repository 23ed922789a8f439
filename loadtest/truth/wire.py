"""What the truth server reads and writes, as bytes: HTTP/1.1 requests, replies, and the events of a stream.

A stream is a list with one HTTP chunk for each token, made once and shared by all requests; only the last is made for
its request, and all that ends the body is part of it. So a token costs its sender one list index and one send.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MOST_HEAD_BYTES = 16 * 1024
MOST_BODY_BYTES = 4 * 1024 * 1024
MOST_TOKENS = 1_000_000
TEXT = " token"  # of every token
MODEL = "truth"
INFO = {
    "model_id": MODEL,
    "router": "tokenclock",
    "max_input_tokens": MOST_TOKENS - 1,
    "max_total_tokens": MOST_TOKENS,
    "slots": None,
}
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1")
BODY_END = b"0\r\n\r\n"


class Refused(Exception):
    """The request gets an error; where its framing is lost, the connection closes behind it."""

    def __init__(self, status: int, reason: str, closes: bool = False) -> None:
        super().__init__(reason)
        self.status, self.closes = status, closes


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @classmethod
    def take(cls, buffer: bytearray) -> Request | None:
        """The first request of what was received, removed from it; None while it isn't whole.

        Raises: Refused.
        """
        end = buffer.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)
        if end < 0:
            if len(buffer) >= MOST_HEAD_BYTES:
                raise Refused(431, f"the head has more than {MOST_HEAD_BYTES} bytes", closes=True)
            if buffer and not buffer[:1].isupper():  # no method begins so: don't wait for the end of rubbish
                raise Refused(400, "not an HTTP/1.1 request", closes=True)
            return None
        first, *lines = bytes(buffer[:end]).split(b"\r\n")
        line = REQUEST_LINE.fullmatch(first)
        if line is None or not all(b":" in each for each in lines):
            raise Refused(400, "not an HTTP/1.1 request", closes=True)
        pairs = (each.decode("latin-1").partition(":") for each in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if "transfer-encoding" in headers:
            raise Refused(411, "a body needs a content-length; chunked requests are not read", closes=True)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, f"content-length is {length!r}, not a number", closes=True)
        if len(length) > 10 or int(length) > MOST_BODY_BYTES:
            raise Refused(413, f"the body has {length} bytes; the limit is {MOST_BODY_BYTES}", closes=True)
        whole = end + 4 + int(length)
        if len(buffer) < whole:
            return None
        body = bytes(buffer[end + 4 : whole])
        del buffer[:whole]
        return cls(line[1].decode(), line[2].decode(), headers, body)

    def json(self) -> dict[str, Any]:
        """Raises: Refused."""
        try:
            said = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        if not isinstance(said, dict):
            raise Refused(422, "the body is not a JSON object")
        return said


def reply(status: int, value: Any, closes: bool = False) -> bytes:
    """A whole JSON answer; without a body for None."""
    body = b"" if value is None else json.dumps(value, ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
    ending = "connection: close\r\n\r\n" if closes else "\r\n"
    return f"{head}content-length: {len(body)}\r\n{ending}".encode() + body


def stream_head(media_type: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncache-control: no-cache\r\n"
    return f"{head}transfer-encoding: chunked\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any, least_bytes: int = 0) -> bytes:
    """One server-sent event in one HTTP chunk, filled up to `least_bytes` by a field that means nothing."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    lacking = least_bytes - len(f"data: {text}\n\n")
    if lacking > 0:
        text = f'{text[:-1]},"padding":"{"." * max(0, lacking - 13)}"}}'
    return chunk(f"data: {text}\n\n".encode())


def words(text: str) -> list[dict[str, Any]]:
    """The tokens of a text: one per word, with character offsets."""
    return [
        {"id": zlib.crc32(m[0].encode()) % 32000, "text": m[0], "start": m.start(), "stop": m.end()}
        for m in re.finditer(r"\S+", text)
    ]


@dataclass(frozen=True, slots=True)
class Script:
    """What a stream sends: `opening` with the head, then one chunk for each token."""

    opening: bytes
    chunks: list[bytes]


class Scripts:
    """Streams in TGI's and OpenAI's shapes. `event_bytes` is the least size of an event; the last is larger anyway."""

    def __init__(self, tokens_default: int, event_bytes: int = 0) -> None:
        self.tokens_default, self.event_bytes = tokens_default, event_bytes
        self._tgi: list[bytes] = []  # grows to the longest stream asked for

    def tgi(self, asked: Mapping[str, Any]) -> Script:
        inputs, parameters = asked.get("inputs"), asked.get("parameters") or {}
        if not isinstance(inputs, str) or not isinstance(parameters, dict):
            raise Refused(422, "inputs must be a text and parameters an object")
        tokens = self._tokens(parameters.get("max_new_tokens"), "max_new_tokens")
        for index in range(len(self._tgi) + 1, tokens):
            self._tgi.append(event(self._tgi_event(index, None, None), self.event_bytes))
        counts = {"generated_tokens": tokens, "seed": None, "input_length": len(inputs.split())}
        details = {"finish_reason": "length", **counts}
        last = event(self._tgi_event(tokens, TEXT * tokens, details), self.event_bytes)
        return Script(b"", [*self._tgi[: tokens - 1], last + BODY_END])

    @staticmethod
    def _tgi_event(index: int, generated: str | None, details: Any) -> dict[str, Any]:
        token = {"id": 100, "text": TEXT, "logprob": -0.5, "special": False}
        return {"index": index, "token": token, "generated_text": generated, "details": details}

    def openai(self, asked: Mapping[str, Any], chat: bool) -> Script:
        if asked.get("stream") is not True:
            raise Refused(400, "only streams are served: set stream to true")
        tokens = self._tokens(asked.get("max_completion_tokens", asked.get("max_tokens")), "max_tokens")
        prompt = asked.get("prompt")
        if chat:
            prompt = " ".join(
                str(each.get("content")) for each in asked.get("messages") or [] if isinstance(each, dict)
            )
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        kind, name = ("chat.completion.chunk", "chatcmpl-truth") if chat else ("text_completion", "cmpl-truth")
        base = {"id": name, "object": kind, "created": 0, "model": str(asked.get("model", MODEL))}
        rest = {"usage": None} if with_usage else {}

        def said(delta: dict[str, str], finish_reason: str | None = None, least_bytes: int = 0) -> bytes:
            what = {"delta": delta} if chat else {"text": delta["content"]}
            choice = {"index": 0, **what, "logprobs": None, "finish_reason": finish_reason}
            return event({**base, "choices": [choice], **rest}, least_bytes)

        token = said({"content": TEXT}, None, self.event_bytes)
        end = said({"content": TEXT}, "length", self.event_bytes)
        if with_usage:
            read = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
            usage = {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
            end += event({**base, "choices": [], "usage": usage})
        opening = said({"role": "assistant", "content": ""}) if chat else b""
        return Script(opening, [token] * (tokens - 1) + [end + event("[DONE]") + BODY_END])

    def _tokens(self, asked: object, name: str) -> int:
        tokens = self.tokens_default if asked is None else asked
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= MOST_TOKENS:
            raise Refused(422, f"{name} is {tokens!r}; ask for 1 to {MOST_TOKENS:,}")
        return tokens
