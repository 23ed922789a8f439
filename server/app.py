"""Wiring: settings and a loader become an ASGI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from server import __version__
from server.api import ops, refusals, tgi
from server.backends.base import Backend
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


class Arrival:
    """Stamps a request before its body is read: queue time and TTFT count from here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["arrived_s"] = time.monotonic()
        await self._app(scope, receive, send)


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

    refusals.install(app, service.metrics)
    app.add_middleware(Arrival)
    return app
