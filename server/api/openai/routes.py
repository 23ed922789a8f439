"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions.

Shapes are those of OpenAI's API reference; docs/wire.md says what is taken, what refused, and what TGI does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from server.api import replies, sse
from server.api.body import json_body, request_body
from server.api.openai.parameters import Prompt, chat_tasks, completion_tasks
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
from server.api.served import Called, Caller, Served, admit
from server.engine.engine import Engine
from server.engine.request import Task
from server.errors import NotServed
from server.service import Service, Stream

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OPENAI_RESPONSES)
STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {sse.MEDIA_TYPE: {}}}}


@router.post(
    "/chat/completions", response_model=ChatCompletion, responses=STREAMS, openapi_extra=request_body(ChatRequest)
)
async def chat_completions(
    body: Annotated[ChatRequest, Depends(json_body(ChatRequest))], service: Served, request: Request, caller: Called
) -> Response:
    """The next message of a conversation, as the model's chat template has it."""
    return await chat(body, service, request, caller)


@router.post(
    "/completions", response_model=Completion, responses=STREAMS, openapi_extra=request_body(CompletionRequest)
)
async def completions(
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    service: Served,
    request: Request,
    caller: Called,
) -> Response:
    """What follows a prompt, or each of several."""
    return await complete(body, service, request, caller)


async def chat(body: ChatRequest, service: Service, request: Request, caller: Caller) -> Response:
    prompts: list[Prompt] = []

    async def prepare(engine: Engine) -> Sequence[Task]:
        found, tasks = await chat_tasks(body, engine, service.model_name, service.settings.max_client_batch_size)
        prompts.extend(found)
        return tasks

    stream = await admit(service, caller, prepare)
    choices = [ChatChoice(index, body, each, stream.tokenizer) for index, each in enumerate(stream.requests)]
    return await replied("chat.completion", body, service, request, caller, stream, choices, prompts)


async def complete(body: CompletionRequest, service: Service, request: Request, caller: Caller) -> Response:
    prompts: list[Prompt] = []

    async def prepare(engine: Engine) -> Sequence[Task]:
        found, tasks = await completion_tasks(body, engine, service.model_name, service.settings.max_client_batch_size)
        prompts.extend(found)
        return tasks

    stream = await admit(service, caller, prepare)
    n = len(stream.requests) // len(prompts)
    choices = [
        CompletionChoice(index, body, prompts[index // n].text, each, stream.tokenizer)
        for index, each in enumerate(stream.requests)
    ]
    return await replied("text_completion", body, service, request, caller, stream, choices, prompts)


async def replied(
    kind: str,
    body: OpenAiRequest,
    service: Service,
    request: Request,
    caller: Caller,
    stream: Stream,
    choices: Sequence[Choice],
    prompts: Sequence[Prompt],
) -> Response:
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    inputs = [prompt.text for prompt in prompts]
    answer = Answer(kind, body, stream, choices, service.model_name, prompt_tokens)
    if body.stream:
        headers = replies.stream_headers(service, caller, inputs)
        return replies.StreamReply(stream, answer.events(caller.wants_timing), headers)
    texts = await replies.whole(request, stream)
    if texts is None:
        return Response(status_code=replies.CLIENT_CLOSED_REQUEST)
    headers = replies.plain_headers(service, caller, stream, inputs, prompt_tokens, sum(map(len, texts)))
    return replies.json_reply(answer.whole(texts), headers)


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
