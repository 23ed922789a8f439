"""TGI's native routes: /generate, /generate_stream, /, /tokenize, /chat_tokenize.

Shapes, messages and framing are those of text-generation-inference 3.3; docs/wire.md lists every difference.
"""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Response

from server.api import replies, sse
from server.api.body import json_body, request_body
from server.api.openai.messages import written
from server.api.openai.schemas import ChatRequest
from server.api.refusals import TGI_RESPONSES
from server.api.served import Call, Called, Served, admit
from server.api.tgi.parameters import tasks_of
from server.api.tgi.render import TgiEvents, answer, likeliest
from server.api.tgi.schemas import (
    ChatTokenizeResponse,
    CompatGenerateRequest,
    GenerateRequest,
    GenerateResponse,
    SimpleToken,
    StreamResponse,
)
from server.api.tokenizing import off_the_loop
from server.api.validation import refuse

router = APIRouter(tags=["TGI"], responses=TGI_RESPONSES)


@router.post("/generate", response_model=GenerateResponse, openapi_extra=request_body(GenerateRequest))
async def generate(body: Annotated[GenerateRequest, Depends(json_body(GenerateRequest))], call: Called) -> Response:
    """The whole answer."""
    return await plainly(body, call)


@router.post(
    "/generate_stream",
    responses={200: {"model": StreamResponse, "content": {sse.MEDIA_TYPE: {}}}},
    response_model=None,
    openapi_extra=request_body(GenerateRequest),
)
async def generate_stream(
    body: Annotated[GenerateRequest, Depends(json_body(GenerateRequest))], call: Called
) -> Response:
    """One event a token."""
    return await streamed(body, call)


@router.post(
    "/",
    response_model=list[GenerateResponse],
    responses=replies.STREAMED,
    openapi_extra=request_body(CompatGenerateRequest),
)
async def compat_generate(
    body: Annotated[CompatGenerateRequest, Depends(json_body(CompatGenerateRequest))], call: Called
) -> Response:
    """`/generate_stream` with `"stream": true`; without it `/generate` in a list, as the hub's own API has it."""
    return await compat(body, call)


async def compat(body: CompatGenerateRequest, call: Call) -> Response:
    if body.parameters.return_full_text is None:  # TGI's default of this route, for a text-generation model
        parameters = body.parameters.model_copy(update={"return_full_text": True})
        body = body.model_copy(update={"parameters": parameters})
    return await streamed(body, call) if body.stream else await plainly(body, call, in_a_list=True)


async def plainly(body: GenerateRequest, call: Call, in_a_list: bool = False) -> Response:
    most = call.service.settings.max_client_batch_size
    stream = await admit(call, lambda engine: tasks_of(body, engine, False, most))
    texts = await replies.whole(call, stream)
    if texts is None:
        return Response(status_code=replies.CLIENT_CLOSED_REQUEST)
    best = likeliest(texts)
    reply = await replies.rendered(stream, texts, lambda: answer(body, stream, texts, best))
    prompt_tokens = len(stream.requests[0].task.token_ids)
    headers = replies.plain_headers(call, stream, [body.inputs], prompt_tokens, len(texts[best]))
    return replies.json_reply([reply] if in_a_list else reply, headers)


async def streamed(body: GenerateRequest, call: Call) -> Response:
    most = call.service.settings.max_client_batch_size
    stream = await admit(call, lambda engine: tasks_of(body, engine, True, most))
    return replies.StreamReply(call, stream, [body.inputs], TgiEvents(body, stream, call.wants_timing))


@router.post("/tokenize", response_model=list[SimpleToken], openapi_extra=request_body(GenerateRequest))
async def tokenize(
    body: Annotated[GenerateRequest, Depends(json_body(GenerateRequest, generates=False))], service: Served
) -> Response:
    """The tokens of a text, and the bytes each one covers."""
    tokenizer = service.require_ready().tokenizer
    if not body.inputs:
        refuse("inputs", "cannot be empty")
    content = await off_the_loop(lambda: replies.json_list(tokenizer.pieces(body.inputs)), len(body.inputs))
    return Response(content, media_type="application/json")


@router.post("/chat_tokenize", response_model=ChatTokenizeResponse, openapi_extra=request_body(ChatRequest))
async def chat_tokenize(
    body: Annotated[ChatRequest, Depends(json_body(ChatRequest, generates=False))], service: Served
) -> Response:
    """A conversation as the chat template writes it, and its tokens."""
    tokenizer = service.require_ready().tokenizer
    text = await written(body.messages, tokenizer)
    pieces = await off_the_loop(lambda: replies.json_list(tokenizer.pieces(text, templated=True)), len(text))
    return replies.json_reply({"tokenize_response": orjson.Fragment(pieces), "templated_text": text})
