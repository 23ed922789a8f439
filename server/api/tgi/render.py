"""Tokens in TGI's shapes: the events of a stream, the details of a plain answer.

Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/lib.rs and server.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from server.api import refusals, replies, sse
from server.api.tgi.schemas import GenerateRequest
from server.engine.request import Request, Token
from server.errors import RequestError
from server.service import Stream
from server.tokenizer import Tokenizer

#: The event of a token that is neither special nor the last, of a text whose likeliest tokens aren't asked for.
PLAIN = (
    b'data: {"index":%d,"token":{"id":%d,"text":%b,"logprob":%b,"special":false},'
    b'"generated_text":null,"details":null}\n\n'
)


class TgiEvents:
    """The bytes of a stream: one event a token."""

    def __init__(self, body: GenerateRequest, stream: Stream, timing: bool) -> None:
        (self._request,) = stream.requests
        self._body = body
        self._stream = stream
        self._timing = timing
        self._texts: list[str] = []

    def token(self, index: int, token: Token) -> bytes:
        if not token.special:
            self._texts.append(token.text)
        score = token.score
        if token.special or token.finish is not None or (score is not None and score.top):
            return sse.event(self._event(token))
        logprob = b"null" if score is None else orjson.dumps(score.logprob)
        return PLAIN % (token.index, token.id, orjson.dumps(token.text), logprob)

    def _event(self, token: Token) -> dict[str, Any]:
        event: dict[str, Any] = {"index": token.index, "token": shown(token, self._stream.tokenizer)}
        if top := top_tokens(token, self._stream.tokenizer):
            event["top_tokens"] = top
        event["generated_text"] = event["details"] = None
        if token.finish is not None:
            event["generated_text"] = prefix(self._body) + "".join(self._texts)
            if self._body.parameters.details:
                event["details"] = {
                    "finish_reason": token.finish,
                    "generated_tokens": token.index,
                    "seed": self._request.task.sampling.seed,
                    "input_length": len(self._request.task.token_ids),
                }
        return event

    def end(self) -> bytes:
        return replies.timing_event(self._stream) if self._timing else b""

    def failure(self, error: RequestError) -> bytes:
        return sse.event(refusals.tgi_error(error)[1])


def likeliest(texts: Sequence[Sequence[Token]]) -> int:
    """Which text has the highest mean log probability; of one alone, whatever its backend tells, that one."""
    return max(range(len(texts)), key=lambda index: mean_logprob(texts[index]))


def answer(body: GenerateRequest, stream: Stream, texts: Sequence[Sequence[Token]], best: int) -> dict[str, Any]:
    """A plain answer: text number `best`, the others in its details."""
    reply: dict[str, Any] = {"generated_text": prefix(body) + readable(texts[best])}
    if body.parameters.details or body.parameters.decoder_input_details:
        reply["details"] = details(stream.requests[best], texts[best], stream.tokenizer)
        if len(texts) > 1:
            reply["details"]["best_of_sequences"] = [
                {"generated_text": prefix(body) + readable(text), **details(request, text, stream.tokenizer)}
                for index, (request, text) in enumerate(zip(stream.requests, texts, strict=True))
                if index != best
            ]
    return reply


def details(request: Request, tokens: Sequence[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    told: dict[str, Any] = {
        "finish_reason": tokens[-1].finish,
        "generated_tokens": len(tokens),
        "seed": request.task.sampling.seed,
        "prefill": prefill(request, tokenizer),
        "tokens": [shown(token, tokenizer) for token in tokens],
    }
    if request.task.sampling.top_n_tokens:
        told["top_tokens"] = [top_tokens(token, tokenizer) for token in tokens]
    return told


def prefill(request: Request, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The prompt's tokens; what comes before the first one is nothing, so it has no probability."""
    if not request.task.sampling.prompt_logprobs:
        return []
    logprobs = [None, *(score.logprob for score in request.prompt_scores)]
    return [
        {"id": token_id, "text": tokenizer.text(token_id), "logprob": logprob}
        for token_id, logprob in zip(request.task.token_ids, logprobs, strict=True)
    ]


def shown(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as TGI shows it: a special one by its name, which is not part of the generated text."""
    text = tokenizer.token(token.id) if token.special else token.text
    logprob = None if token.score is None else token.score.logprob
    return {"id": token.id, "text": text, "logprob": logprob, "special": token.special}


def top_tokens(token: Token, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if token.score is None:
        return []
    return [
        {
            "id": token_id,
            "text": tokenizer.text(token_id),
            "logprob": logprob,
            "special": token_id in tokenizer.special_ids,
        }
        for token_id, logprob in token.score.top
    ]


def mean_logprob(tokens: Sequence[Token]) -> float:
    return sum(token.score.logprob for token in tokens if token.score is not None) / len(tokens)


def readable(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens if not token.special)


def prefix(body: GenerateRequest) -> str:
    return body.inputs if body.parameters.return_full_text else ""
