"""TGI's native routes: /generate, /generate_stream, /tokenize.

Shapes, messages and framing are those of text-generation-inference 3.3; docs/wire.md lists every difference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from server.api import sse
from server.api.schemas import ErrorBody, GenerateRequest, GenerateResponse, SimpleToken, StreamResponse
from server.api.validation import room, sampling_of
from server.engine.request import Token
from server.errors import STATUS, RequestError, ValidationError
from server.service import Service, Stream
from server.tokenizer import Tokenizer

GENERATION_ROUTES = ("/generate", "/generate_stream")
LONG_TEXT = 20_000  # characters; longer texts are tokenized off the event loop

router = APIRouter(
    tags=["TGI"],
    responses={status: {"model": ErrorBody} for status in sorted({status for status, _ in STATUS.values()})},
)


def service_of(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


Served = Annotated[Service, Depends(service_of)]
RequestId = Annotated[str | None, Header(alias="x-request-id", description="echoed; made where absent")]
WantsTiming = Annotated[str | None, Header(alias="x-tokenclock-timing", description="1: say where the time went")]


@router.post("/generate", response_model=GenerateResponse)
async def generate(
    body: GenerateRequest, service: Served, x_request_id: RequestId = None, x_tokenclock_timing: WantsTiming = None
) -> JSONResponse:
    stream = await admit(service, body, x_request_id)
    with stream:
        tokens = [token async for token in stream]
    reply: dict[str, Any] = {"generated_text": full_text(body) + readable(tokens)}
    if body.parameters.details:
        reply["details"] = {
            "finish_reason": tokens[-1].finish,
            "generated_tokens": len(tokens),
            "seed": stream.request.sampling.seed,
            "prefill": [],
            "tokens": [rendered(token, service.tokenizer) for token in tokens],
        }
    headers = {
        "x-request-id": stream.request.id,
        "x-prompt-tokens": str(len(stream.request.token_ids)),
        "x-generated-tokens": str(len(tokens)),
    }
    if x_tokenclock_timing == "1":
        headers["x-tokenclock-timing"] = orjson.dumps(stream.request.timing()).decode()
    return JSONResponse(reply, headers=headers)


@router.post(
    "/generate_stream", responses={200: {"model": StreamResponse, "content": {sse.MEDIA_TYPE: {}}}}, response_model=None
)
async def generate_stream(
    body: GenerateRequest, service: Served, x_request_id: RequestId = None, x_tokenclock_timing: WantsTiming = None
) -> StreamingResponse:
    stream = await admit(service, body, x_request_id)
    return StreamingResponse(
        events(service, body, stream, timing=x_tokenclock_timing == "1"),
        media_type=sse.MEDIA_TYPE,
        headers={"x-request-id": stream.request.id, "x-accel-buffering": "no", "cache-control": "no-cache"},
    )


@router.post("/tokenize", response_model=list[SimpleToken])
async def tokenize(body: GenerateRequest, service: Served) -> Any:
    service.require_ready()
    if not body.inputs:
        raise ValidationError("Input validation error: `inputs` cannot be empty")
    if len(body.inputs) > LONG_TEXT:
        return await run_in_threadpool(service.tokenizer.pieces, body.inputs)
    return service.tokenizer.pieces(body.inputs)


async def events(service: Service, body: GenerateRequest, stream: Stream, timing: bool) -> AsyncIterator[bytes]:
    """The bytes of a stream. A failure after the first byte can only be an event: the status is sent already."""
    texts: list[str] = []
    with stream:
        try:
            async for token in stream:
                if not token.special:
                    texts.append(token.text)
                event: dict[str, Any] = {
                    "index": token.index,
                    "token": rendered(token, service.tokenizer),
                    "generated_text": None,
                    "details": None,
                }
                if token.finish is not None:
                    event["generated_text"] = full_text(body) + "".join(texts)
                    if body.parameters.details:
                        event["details"] = {
                            "finish_reason": token.finish,
                            "generated_tokens": token.index,
                            "seed": stream.request.sampling.seed,
                            "input_length": len(stream.request.token_ids),
                        }
                yield sse.event(event)
        except RequestError as error:
            yield sse.event({"error": str(error), "error_type": STATUS[type(error)][1]})
            return
    if timing:
        yield sse.event(stream.request.timing(), name="tokenclock")


async def admit(service: Service, body: GenerateRequest, request_id: str | None) -> Stream:
    """Validate a request and queue it.

    Raises: ValidationError with TGI's message; Overloaded; Unavailable.
    """
    arrived_s = time.monotonic()
    service.metrics.received()
    service.require_ready()
    limits = service.engine.backend.limits
    sampling = sampling_of(body.parameters, limits)
    if not body.inputs:
        raise ValidationError("Input validation error: `inputs` cannot be empty")
    encode = service.tokenizer.encode
    token_ids = await run_in_threadpool(encode, body.inputs) if len(body.inputs) > LONG_TEXT else encode(body.inputs)
    if body.parameters.truncate is not None:
        token_ids = token_ids[-body.parameters.truncate :]
    max_new_tokens = room(len(token_ids), body.parameters.max_new_tokens, limits)
    return service.open(
        request_id or secrets.token_hex(8),
        tuple(token_ids),
        max_new_tokens,
        sampling,
        tuple(body.parameters.stop),
        arrived_s,
    )


def rendered(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as TGI shows it: a special one by its name, which is not part of the generated text."""
    text = tokenizer.token(token.id) if token.special else token.text
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}


def readable(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens if not token.special)


def full_text(body: GenerateRequest) -> str:
    return body.inputs if body.parameters.return_full_text else ""
