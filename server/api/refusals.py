"""Every error leaves in its protocol's shape with one status: ours, the framework's, and what nobody expected.

TGI: `{"error", "error_type"}`. OpenAI: `{"error": {"message", "type", "param", "code"}}`, on every route under /v1.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from server.api.openai.schemas import ProblemBody
from server.api.replies import json_reply
from server.api.served import access_of, request_id_of
from server.api.tgi.schemas import ErrorBody
from server.errors import TOLD, GenerationError, Gone, RequestError, TooSlow, Unauthorized, ValidationError

UNSEEN = {TOLD[Gone].status}  # nobody is left to read it
TGI_STATUSES = sorted({told.status for told in TOLD.values()} - UNSEEN - {404})
OPENAI_STATUSES = sorted({told.openai_status for told in TOLD.values()} - UNSEEN)
TGI_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in TGI_STATUSES}
OPENAI_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ProblemBody} for status in OPENAI_STATUSES}
BOTH_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody | ProblemBody} for status in sorted({*TGI_STATUSES, *OPENAI_STATUSES})
}


MORE_HEADERS: dict[type[RequestError], dict[str, str]] = {
    Unauthorized: {"www-authenticate": "Bearer"},  # RFC 6750
    TooSlow: {"connection": "close"},  # what still comes of the body is not waited for
}


def speak_openai(request: Request) -> None:
    """Errors of this request take OpenAI's shape, wherever it was sent to."""
    request.state.speaks_openai = True


def tgi_error(error: RequestError) -> tuple[int, dict[str, Any]]:
    told = TOLD[type(error)]
    prefix = "Input validation error: " if isinstance(error, ValidationError) else ""
    return told.status, {"error": prefix + str(error), "error_type": told.error_type}


def openai_error(error: RequestError) -> tuple[int, dict[str, Any]]:
    told = TOLD[type(error)]
    return told.openai_status, problem(str(error), told.openai_type, error.param, told.openai_code)


def problem(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def plain_problem(request: Request, sentence: str, error_type: str, openai_type: str) -> dict[str, Any]:
    """An error that is none of ours, in the shape of the request's protocol."""
    return problem(sentence, openai_type) if is_openai(request) else {"error": sentence, "error_type": error_type}


def is_openai(request: Request) -> bool:
    return request.url.path.startswith("/v1/") or getattr(request.state, "speaks_openai", False)


def install(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        status, body = openai_error(error) if is_openai(request) else tgi_error(error)
        try:
            headers = {"x-request-id": request_id_of(request)}
        except ValidationError:
            headers = {}
        access_of(request).outcome = TOLD[type(error)].error_type
        return json_reply(body, headers | MORE_HEADERS.get(type(error), {}), status)

    @app.exception_handler(RequestValidationError)  # of headers and paths: bodies are read by server.api.body
    async def refuse_framework(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return await refuse(request, ValidationError(f"`{where}`: {first['msg']}", param=where))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> Response:
        sentence = f"{error.detail}: {request.method} {request.url.path}"
        body = plain_problem(request, sentence, "validation", "invalid_request_error")
        return json_reply(body, dict(error.headers or {}), error.status_code)

    @app.exception_handler(Exception)
    async def refuse_unexpected(request: Request, error: Exception) -> Response:  # the server logs the traceback
        sentence, told = f"internal error: {type(error).__name__}", TOLD[GenerationError]
        return json_reply(plain_problem(request, sentence, told.error_type, told.openai_type), status=500)
