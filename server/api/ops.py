"""The routes for those who run the server: /health (and / as TGI has it), /info, /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from server import __version__
from server.api.replies import json_reply
from server.api.served import Served
from server.api.tgi.schemas import ErrorBody
from server.api.tokenizing import WORKERS
from server.api.validation import MAX_STOP_SEQUENCES

router = APIRouter(tags=["operations"])
UNHEALTHY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorBody, "content": {"application/json": {}}},
}


@router.head("/", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.get("/", responses=UNHEALTHY, response_class=Response, operation_id="health_at_the_root")
@router.get("/health", responses=UNHEALTHY, response_class=Response)
async def health(service: Served) -> Response:
    """200 when requests are taken; 503 and the reason while the model loads, during shutdown, and for good after the
    backend was lost.
    """
    service.require_ready()
    return Response()


@router.get("/info")
async def info(service: Served) -> Response:
    """TGI's description of the model and its limits, and every setting of this server."""
    settings = service.settings
    limits = service.engine.backend.limits if service.engine else None
    told: dict[str, Any] = {
        "model_id": service.model_name,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_best_of": settings.max_client_batch_size if limits and limits.tells_scores else 1,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_tokens": limits.max_input_tokens if limits else None,
        "max_total_tokens": limits.max_total_tokens if limits else None,
        "validation_workers": WORKERS,
        "max_client_batch_size": settings.max_client_batch_size,
        "router": "tokenclock",
        "version": __version__,
        "sha": None,
        "docker_label": None,
        # ours
        "phase": service.phase,
        "slots": limits.slots if limits else None,
        "sampling": sorted(limits.sampling) if limits else [],
        "backend": dict(service.engine.backend.about) if service.engine else {"name": settings.backend},
        "settings": settings.model_dump(mode="json"),  # hides the key
    }
    return json_reply(told)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Served) -> Response:
    """Prometheus text format."""
    return Response(service.metrics.render(), media_type=service.metrics.content_type)
