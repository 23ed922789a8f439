"""TGI's native routes: /generate, /generate_stream, /tokenize.

Shapes, messages and framing are those of text-generation-inference 3.3; docs/wire.md lists every difference.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api import sse
from server.api.schemas import ErrorBody, GenerateRequest, GenerateResponse, SimpleToken, StreamResponse
from server.api.validation import checked_id, room, sampling_of
from server.engine.request import Token
from server.errors import STATUS, RequestError, ValidationError
from server.service import Service, Stream
from server.tokenizer import Tokenizer

GENERATION_ROUTES = ("/generate", "/generate_stream")
LONG_TEXT = 2_000  # characters; longer texts are tokenized off the event loop
CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody reads it
T = TypeVar("T")

router = APIRouter(
    tags=["TGI"],
    responses={status: {"model": ErrorBody} for status in sorted({status for status, _ in STATUS.values()})},
)


async def service_of(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


Served = Annotated[Service, Depends(service_of)]
RequestId = Annotated[str | None, Header(alias="x-request-id", description="echoed; made where absent")]
WantsTiming = Annotated[str | None, Header(alias="x-tokenclock-timing", description="1: say where the time went")]


@router.post("/generate", response_model=GenerateResponse)
async def generate(
    body: GenerateRequest,
    service: Served,
    request: Request,
    x_request_id: RequestId = None,
    x_tokenclock_timing: WantsTiming = None,
) -> Response:
    with await admit(service, body, request, x_request_id) as stream:
        tokens = await unless_gone(request, collect(stream))
    if tokens is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    reply: dict[str, Any] = {"generated_text": full_text(body) + readable(tokens)}
    if body.parameters.details:
        reply["details"] = {
            "finish_reason": tokens[-1].finish,
            "generated_tokens": len(tokens),
            "seed": stream.request.sampling.seed,
            "prefill": [],
            "tokens": [rendered(token, stream.tokenizer) for token in tokens],
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
    body: GenerateRequest,
    service: Served,
    request: Request,
    x_request_id: RequestId = None,
    x_tokenclock_timing: WantsTiming = None,
) -> StreamingResponse:
    stream = await admit(service, body, request, x_request_id)
    return StreamReply(stream, events(body, stream, timing=x_tokenclock_timing == "1"))


class StreamReply(StreamingResponse):
    """Leaves the stream however the response ends, even if its first byte was never asked for."""

    def __init__(self, stream: Stream, content: AsyncIterator[bytes]) -> None:
        headers = {"x-request-id": stream.request.id, "x-accel-buffering": "no", "cache-control": "no-cache"}
        super().__init__(content, media_type=sse.MEDIA_TYPE, headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream:
            await super().__call__(scope, receive, send)


async def collect(stream: Stream) -> list[Token]:
    return [token async for token in stream]


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None where the client hung up first; `work` is cancelled then."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


@router.post("/tokenize", response_model=list[SimpleToken])
async def tokenize(body: GenerateRequest, service: Served) -> Response:
    tokenizer = service.require_ready().tokenizer
    if not body.inputs:
        raise ValidationError("Input validation error: `inputs` cannot be empty")
    pieces = await off_the_loop(tokenizer.pieces, body.inputs)
    return Response(orjson.dumps(pieces), media_type="application/json")


async def events(body: GenerateRequest, stream: Stream, timing: bool) -> AsyncIterator[bytes]:
    """The bytes of a stream. A failure after the first byte can only be an event: the status is sent already."""
    texts: list[str] = []
    try:
        async for token in stream:
            if not token.special:
                texts.append(token.text)
            event: dict[str, Any] = {
                "index": token.index,
                "token": rendered(token, stream.tokenizer),
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


async def admit(service: Service, body: GenerateRequest, request: Request, request_id: str | None) -> Stream:
    """Validate a request and queue it.

    Raises: ValidationError with TGI's message; Overloaded; Unavailable. Each is counted.
    """
    service.metrics.received()
    try:
        engine = service.require_ready()
        limits, tokenizer = engine.backend.limits, engine.tokenizer
        sampling = sampling_of(body.parameters, limits)
        request_id = checked_id(request_id)
        if not body.inputs:
            raise ValidationError("Input validation error: `inputs` cannot be empty")
        token_ids = await off_the_loop(tokenizer.encode, body.inputs)
        if body.parameters.truncate is not None:
            token_ids = token_ids[-body.parameters.truncate :]
        max_new_tokens = room(len(token_ids), body.parameters.max_new_tokens, limits)
        return service.open(
            request_id or secrets.token_hex(8),
            tuple(token_ids),
            max_new_tokens,
            sampling,
            tuple(body.parameters.stop),
            arrived_s=request.scope["arrived_s"],
        )
    except RequestError as error:
        service.metrics.refused(STATUS[type(error)][1])
        raise


async def off_the_loop(tokenizes: Callable[[str], T], text: str) -> T:
    """Tokenize in a thread where the text is long enough to keep running streams waiting."""
    return await run_in_threadpool(tokenizes, text) if len(text) > LONG_TEXT else tokenizes(text)


def rendered(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as TGI shows it: a special one by its name, which is not part of the generated text."""
    text = tokenizer.token(token.id) if token.special else token.text
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}


def readable(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens if not token.special)


def full_text(body: GenerateRequest) -> str:
    return body.inputs if body.parameters.return_full_text else ""
