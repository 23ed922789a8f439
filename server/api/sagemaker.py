"""SageMaker's contract for hosting containers: GET /ping, POST /invocations.

A body is taken for what it holds: `inputs` is TGI's `/`, `messages` is OpenAI's chat, `prompt` its completions. Each is
answered, and refused, in its own protocol's shape.
Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/sagemaker.rs; docs.aws.amazon.com/sagemaker,
"Custom inference code with hosting services".
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from server.api import replies
from server.api.body import Body, read, request_body, typed
from server.api.openai import routes as openai
from server.api.openai.schemas import ChatCompletion, ChatRequest, Completion, CompletionRequest
from server.api.ops import UNHEALTHY
from server.api.refusals import BOTH_RESPONSES, speak_openai
from server.api.served import Called, Served, counted
from server.api.tgi import routes as tgi
from server.api.tgi.schemas import CompatGenerateRequest, GenerateResponse
from server.errors import ValidationError

router = APIRouter(tags=["SageMaker"])
probes = APIRouter(tags=["SageMaker"])  # open where there is an API key
#: In the order that TGI tries them.
BODIES: dict[str, type[Body]] = {
    "inputs": CompatGenerateRequest,
    "messages": ChatRequest,
    "prompt": CompletionRequest,
}


@probes.head("/ping", include_in_schema=False)
@probes.get("/ping", responses=UNHEALTHY, response_class=Response)
async def ping(service: Served) -> Response:
    """200 when requests are taken, as `/health`."""
    service.require_ready()
    return Response()


async def body_of(request: Request, service: Served) -> Body:
    def understood(said: Any) -> Body:
        held = [key for key in BODIES if isinstance(said, dict) and key in said]
        if not held:
            raise ValidationError("the body must be an object that holds `inputs`, `messages` or `prompt`")
        if held[0] != "inputs":
            speak_openai(request)
        return typed(BODIES[held[0]], said)

    with counted(service.metrics):
        return await read(request, service, understood)


@router.post(
    "/invocations",
    response_model=list[GenerateResponse] | ChatCompletion | Completion,
    responses={**replies.STREAMED, **BOTH_RESPONSES},
    openapi_extra=request_body(*BODIES.values()),
)
async def invocations(body: Annotated[Body, Depends(body_of)], call: Called) -> Response:
    """Generate, in the protocol of the body; `"stream": true` streams."""
    match body:
        case ChatRequest():
            return await openai.chat(body, call)
        case CompletionRequest():
            return await openai.complete(body, call)
        case CompatGenerateRequest():
            return await tgi.compat(body, call)
    raise AssertionError(f"no route for {type(body)}")
