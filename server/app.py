"""Wiring: settings and a loader become an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from server import __version__
from server.api import ops, tgi
from server.backends.base import Backend
from server.errors import STATUS, MalformedBody, RequestError, ValidationError
from server.model import locate
from server.service import Service
from server.settings import Settings
from server.tokenizer import Tokenizer


def load(settings: Settings) -> tuple[Backend, Tokenizer]:
    """The backend and tokenizer the settings name. Blocks while weights load.

    Raises: ModelError.
    """
    model = locate(settings.model) if settings.model else None
    from server.backends.transformers_cpu import TransformersBackend
    from server.demo import ensure_demo_model

    model = model or str(ensure_demo_model())
    tokenizer = Tokenizer.load(model)
    return TransformersBackend.load(model, settings.slots, settings.max_total_tokens, settings.threads), tokenizer


def create_app(settings: Settings, loader: Callable[[Settings], tuple[Backend, Tokenizer]] = load) -> FastAPI:
    service = Service(settings, loader)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.start())  # /health answers 503 meanwhile
        yield
        loading.cancel()
        await service.stop()

    app = FastAPI(title="tokenclock", version=__version__, lifespan=lifespan)
    app.state.service = service
    app.include_router(tgi.router)
    app.include_router(ops.router)

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        status, error_type = STATUS[type(error)]
        if request.url.path in tgi.GENERATION_ROUTES:  # a health check that says no is no failed request
            service.metrics.refused(error_type)
        return JSONResponse({"error": str(error), "error_type": error_type}, status)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        if request.url.path in tgi.GENERATION_ROUTES:
            service.metrics.received()
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return await refuse(request, MalformedBody(f"the body is not JSON: {first['ctx']['error']}"))
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return await refuse(request, ValidationError(f"Input validation error: `{where}`: {first['msg']}"))

    return app
