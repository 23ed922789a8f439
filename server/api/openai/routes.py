"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.

Shapes are those of OpenAI's API reference; docs/wire.md says what is taken, what refused, and what TGI does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from server.api import replies
from server.api.body import json_body, request_body
from server.api.openai.parameters import chat_tasks, completion_tasks
from server.api.openai.render import Answer, ChatChoice, Choice, CompletionChoice
from server.api.openai.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Model,
    Models,
    OpenAiRequest,
)
from server.api.refusals import OPENAI_RESPONSES
from server.api.served import Call, Called, Served, admit
from server.errors import NotServed
from server.service import Service, Stream

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OPENAI_RESPONSES)


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=replies.STREAMED,
    openapi_extra=request_body(ChatRequest),
)
async def chat_completions(body: Annotated[ChatRequest, Depends(json_body(ChatRequest))], call: Called) -> Response:
    """The next message of a conversation, as the model's chat template has it."""
    return await chat(body, call)


@router.post(
    "/completions", response_model=Completion, responses=replies.STREAMED, openapi_extra=request_body(CompletionRequest)
)
async def completions(
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))], call: Called
) -> Response:
    """What follows a prompt, or each of several."""
    return await complete(body, call)


async def chat(body: ChatRequest, call: Call) -> Response:
    served, most = call.service.model_name, call.service.settings.max_client_batch_size
    stream = await admit(call, lambda engine: chat_tasks(body, engine, served, most))
    choices = [ChatChoice(index, body, request, stream.tokenizer) for index, request in enumerate(stream.requests)]
    return await replied("chat.completion", body, call, stream, choices)


async def complete(body: CompletionRequest, call: Call) -> Response:
    served, most = call.service.model_name, call.service.settings.max_client_batch_size
    stream = await admit(call, lambda engine: completion_tasks(body, engine, served, most))
    choices = [
        CompletionChoice(index, body, request, stream.tokenizer) for index, request in enumerate(stream.requests)
    ]
    return await replied("text_completion", body, call, stream, choices)


async def replied(kind: str, body: OpenAiRequest, call: Call, stream: Stream, choices: Sequence[Choice]) -> Response:
    prompted = [request.task for request in stream.requests[:: body.n or 1]]  # every prompt once
    prompts = [task.prompt for task in prompted]
    prompt_tokens = sum(len(task.token_ids) for task in prompted)
    answer = Answer(kind, body, stream, choices, call.service.model_name, prompt_tokens, call.wants_timing)
    if body.stream:
        return replies.StreamReply(call, stream, prompts, answer)
    texts = await replies.whole(call, stream)
    if texts is None:
        return Response(status_code=replies.CLIENT_CLOSED_REQUEST)
    headers = replies.plain_headers(call, stream, prompts, prompt_tokens, sum(map(len, texts)))
    return replies.json_reply(await replies.rendered(stream, texts, lambda: answer.whole(texts)), headers)


@router.get("/models", response_model=Models)
async def models(service: Served) -> Response:
    """The one model that is served."""
    return replies.json_reply({"object": "list", "data": [described(service)]})


@router.get("/models/{model:path}", response_model=Model)
async def model_by_name(model: str, service: Served) -> Response:
    """The served model, by its name."""
    if model != service.model_name:
        raise NotServed(f"The model {model!r} does not exist here: ask for {service.model_name!r}", param="model")
    return replies.json_reply(described(service))


def described(service: Service) -> dict[str, Any]:
    limits = service.engine.backend.limits if service.engine else None
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "tokenclock",
        "max_model_len": limits.max_total_tokens if limits else None,
    }
