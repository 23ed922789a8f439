"""Tokens in OpenAI's shapes: the choices and chunks of chats and completions.

A chat's first token brings the chunk with the role, its last one a chunk with nothing but the finish reason, as in
OpenAI's reference; in between every token has its chunk. A completion has exactly one chunk a token.
Source: openai/openai-openapi (CreateChatCompletionStreamResponse, CreateCompletionResponse).
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from server import __version__
from server.api import refusals, replies, sse
from server.api.openai.schemas import ChatRequest, CompletionRequest, OpenAiRequest
from server.api.openai.stops import Visible
from server.backends.base import Score
from server.engine.request import FinishReason, Request, Token
from server.errors import RequestError
from server.service import Stream
from server.tokenizer import Tokenizer

REASONS = {FinishReason.LENGTH: "length", FinishReason.EOS: "stop", FinishReason.STOP: "stop"}
FINGERPRINT = f"tokenclock-{__version__}"
Row = tuple[int, int, Score | None]  # token id, character it begins at, score


class Choice(Protocol):
    """One text on its way, in one route's shapes."""

    def deltas(self, token: Token) -> list[bytes]:
        """The choices of the chunks that a token brings, as JSON."""

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The choice of a plain answer."""


def visible_text(visible: Visible, token: Token) -> str:
    text = "" if token.special else token.text
    if token.finish is None:
        return visible.push(text)
    return visible.last(text, token.finish is FinishReason.STOP)


class ChatChoice:
    def __init__(self, index: int, body: ChatRequest, request: Request, tokenizer: Tokenizer) -> None:
        self._index = index
        self._logprobs = bool(body.logprobs)
        self._visible = Visible(request.task.stop)
        self._tokenizer = tokenizer
        self._plain = b'{"index":%d,"delta":{"content":%%b},"logprobs":null,"finish_reason":null}' % index

    def deltas(self, token: Token) -> list[bytes]:
        content = visible_text(self._visible, token)
        if token.index > 1 and token.finish is None and not self._logprobs:
            return [self._plain % orjson.dumps(content)]
        made = [self._delta({"role": "assistant", "content": ""})] if token.index == 1 else []
        if content or not ends_silently(token):
            made.append(self._delta({"content": content}, self._told([token])))
        if token.finish is not None:
            made.append(self._delta({}, finish=REASONS[token.finish]))
        return [orjson.dumps(choice) for choice in made]

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = "".join(visible_text(self._visible, token) for token in tokens)
        finish = tokens[-1].finish
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._told(tokens),
            "finish_reason": None if finish is None else REASONS[finish],
        }

    def _delta(self, delta: dict[str, str], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        scored = [(token.id, token.score) for token in tokens if token.score is not None and not ends_silently(token)]
        content = [
            {
                **self._token(token_id, score.logprob),
                "top_logprobs": [self._token(top_id, logprob) for top_id, logprob in score.top],
            }
            for token_id, score in scored
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        utf8 = self._tokenizer.utf8(token_id)
        return {"token": utf8.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(utf8)}


class CompletionChoice:
    def __init__(self, index: int, body: CompletionRequest, request: Request, tokenizer: Tokenizer) -> None:
        self._index = index
        self._logprobs = body.logprobs is not None
        self._echoes = bool(body.echo)
        self._echoed = request.task.prompt if body.echo else ""
        self._request = request
        self._visible = Visible(request.task.stop)
        self._tokenizer = tokenizer
        self._offset = len(self._echoed)  # characters of the text so far
        self._plain = b'{"index":%d,"text":%%b,"logprobs":null,"finish_reason":null}' % index

    def deltas(self, token: Token) -> list[bytes]:
        if token.index > 1 and token.finish is None and not self._logprobs:
            return [self._plain % orjson.dumps(visible_text(self._visible, token))]
        return [orjson.dumps(self._choice([token], first=token.index == 1))]

    def whole(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return self._choice(tokens, first=True)

    def _choice(self, tokens: Sequence[Token], first: bool) -> dict[str, Any]:
        text = "".join(visible_text(self._visible, token) for token in tokens)
        finish = tokens[-1].finish
        return {
            "index": self._index,
            "text": (self._echoed if first else "") + text,
            "logprobs": self._told(tokens, first),
            "finish_reason": None if finish is None else REASONS[finish],
        }

    def _told(self, tokens: Sequence[Token], first: bool) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        rows = self._prompt_rows() if first and self._echoes else []
        for token in tokens:
            if not ends_silently(token):
                rows.append((token.id, self._offset, token.score))
            self._offset += 0 if token.special else len(token.text)
        name = self._tokenizer.text
        return {
            "text_offset": [offset for _, offset, _ in rows],
            "token_logprobs": [None if score is None else score.logprob for *_, score in rows],
            "tokens": [name(token_id) for token_id, *_ in rows],
            "top_logprobs": [
                None
                if score is None
                else {name(top_id): logprob for top_id, logprob in (*score.top, (token_id, score.logprob))}
                for token_id, _, score in rows
            ],
        }

    def _prompt_rows(self) -> list[Row]:
        """Of the tokens of an echoed prompt; nothing comes before the first one, so it has no score."""
        rows: list[Row] = []
        offset = 0
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id, score in zip(self._request.task.token_ids, [None, *self._request.prompt_scores], strict=True):
            rows.append((token_id, offset, score))
            if token_id in self._tokenizer.special_ids:
                name = self._tokenizer.token(token_id)
                offset += len(name) if self._echoed.startswith(name, offset) else 0  # written out, or put before it
                continue
            spelled = characters.decode(self._tokenizer.utf8(token_id))
            if offset == 0 and not self._echoed.startswith(" "):  # SentencePiece puts a space before a text
                spelled = spelled.removeprefix(" ")
            offset = min(offset + len(spelled), len(self._echoed))
        return rows


def ends_silently(token: Token) -> bool:
    """An end-of-sequence token is counted, and is no part of the text."""
    return token.special and token.finish is not None


class Answer:
    """All choices of one request, as one plain answer or as chunks."""

    def __init__(
        self,
        kind: str,
        body: OpenAiRequest,
        stream: Stream,
        choices: Sequence[Choice],
        model: str,
        prompt_tokens: int,
        timing: bool,
    ) -> None:
        """`kind` is `chat.completion` or `text_completion`; `prompt_tokens` counts every prompt once; with `timing`, a
        stream ends with where the time went.
        """
        self._stream = stream
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._timing = timing
        self._tokens = 0  # streamed so far
        chat = kind == "chat.completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{stream.request_id}",
            "object": f"{kind}.chunk" if chat and body.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        options = body.stream_options
        self._counts_always = options is not None and bool(options.continuous_usage_stats)
        self._counts = options is not None and bool(options.include_usage)
        # A chunk is the same but for its choice: what stands before it, and after it.
        self._lead = b"data: " + orjson.dumps({**self._head, "choices": []}).removesuffix(b"]}")
        self._tail = b'],"usage":null}\n\n' if self._counts else b"]}\n\n"

    def whole(self, texts: Sequence[Sequence[Token]]) -> dict[str, Any]:
        choices = [choice.whole(tokens) for choice, tokens in zip(self._choices, texts, strict=True)]
        return {**self._head, "choices": choices, "usage": self._usage(sum(map(len, texts)))}

    # server.api.replies.Events

    def token(self, index: int, token: Token) -> bytes:
        self._tokens += 1
        tail = self._tail
        if self._counts_always:
            tail = b'],"usage":%b}\n\n' % orjson.dumps(self._usage(self._tokens))
        return b"".join([self._lead + choice + tail for choice in self._choices[index].deltas(token)])

    def end(self) -> bytes:
        usage = sse.event({**self._head, "choices": [], "usage": self._usage(self._tokens)}) if self._counts else b""
        return usage + (replies.timing_event(self._stream) if self._timing else b"") + sse.DONE

    def failure(self, error: RequestError) -> bytes:
        return sse.event(refusals.openai_error(error)[1]) + sse.DONE

    def _usage(self, new_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": self._prompt_tokens + new_tokens,
        }
