"""Every error leaves as `{"error", "error_type"}` with one status: ours, the framework's, and what nobody expected."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.tgi import GENERATION_ROUTES
from server.errors import STATUS, GenerationError, MalformedBody, RequestError, ValidationError
from server.metrics import Metrics


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer errors in TGI's shape. Those of admitted requests are counted by the engine, those of bodies here."""

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        status, error_type = STATUS[type(error)]
        # A message may quote the client, who can spell what UTF-8 can't.
        sentence = str(error).encode("utf-8", "replace").decode()
        return JSONResponse({"error": sentence, "error_type": error_type}, status)

    async def refuse_unread(request: Request, error: RequestError) -> JSONResponse:
        if request.url.path in GENERATION_ROUTES:
            metrics.received()
            metrics.refused(STATUS[type(error)][1])
        return await refuse(request, error)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return await refuse_unread(request, MalformedBody(f"the body is not JSON: {first['ctx']['error']}"))
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        message = first["msg"].removeprefix("Value error, ")
        return await refuse_unread(request, ValidationError(f"Input validation error: `{where}`: {message}"))

    @app.exception_handler(HTTPException)
    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # the framework could not read the body: no UTF-8, too deep, numbers too long
            return await refuse_unread(request, MalformedBody(f"the body is not JSON: {error.detail}"))
        body = {"error": f"{error.detail}: {request.method} {request.url.path}", "error_type": "validation"}
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def refuse_unexpected(_: Request, error: Exception) -> JSONResponse:  # the traceback is logged by the server
        error_type = STATUS[GenerationError][1]
        return JSONResponse({"error": f"internal error: {type(error).__name__}", "error_type": error_type}, 500)
