"""Wiring: settings and a loader become an ASGI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from server import __version__
from server.api import ops, refusals, sagemaker
from server.api.access import AccessLog
from server.api.body import components
from server.api.keys import authorized
from server.api.openai import routes as openai
from server.api.openai.schemas import ChatRequest, CompletionRequest
from server.api.tgi import routes as tgi
from server.api.tgi.schemas import CompatGenerateRequest, GenerateRequest
from server.backends.base import Backend
from server.loading import load
from server.service import Service
from server.settings import Settings
from server.tokenizer import Tokenizer


def create_app(
    settings: Settings,
    loader: Callable[[Settings], tuple[Backend, Tokenizer]] = load,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The app; its lifespan loads the model. `clock` is what every time of a request is read from, in seconds."""
    service = Service(settings, loader, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.start())  # /health answers 503 meanwhile
        yield
        loading.cancel()
        await service.stop()

    app = FastAPI(title="tokenclock", version=__version__, lifespan=lifespan)
    app.state.service = service
    for room in (tgi, openai, sagemaker):
        app.include_router(room.router, dependencies=[Depends(authorized)])
    for open_room in (sagemaker.probes, ops.router):
        app.include_router(open_room)
    describe(app)
    refusals.install(app)
    # As TGI: pages of any origin may ask, and read what our own headers say.
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=["*"]
    )
    app.add_middleware(AccessLog, service=service)
    return app


def describe(app: FastAPI) -> None:
    """Let the OpenAPI description know the bodies that FastAPI doesn't read; TGI's address of it is an alias."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = told["components"]["schemas"]
            read = (GenerateRequest, CompatGenerateRequest, ChatRequest, CompletionRequest)
            for name, schema in components(*read).items():
                schemas.setdefault(name, schema)
            schemas.pop("HTTPValidationError"), schemas.pop("ValidationError")
            for operation in (each for methods in told["paths"].values() for each in methods.values()):
                if "HTTPValidationError" in str(operation["responses"].get("422")):  # FastAPI's own: never sent
                    del operation["responses"]["422"]
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.add_api_route("/api-doc/openapi.json", lambda: openapi(), include_in_schema=False)
