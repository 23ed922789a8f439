"""What every route is given: the service, and the call to it; and the one door to the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request

from server.api.access import LONGEST_ID, Access, is_id
from server.engine.engine import Engine
from server.engine.request import Task
from server.errors import TOLD, RequestError, ValidationError
from server.metrics import Metrics
from server.service import Service, Stream

WORD: dict[str, Any] = {"minLength": 1, "maxLength": LONGEST_ID, "pattern": "^[ -~]+$"}


async def service_of(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


Served = Annotated[Service, Depends(service_of)]


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request that wants texts generated."""

    service: Service
    request: Request
    id: str  # `x-request-id`
    arrived_s: float  # monotonic seconds, before the body was read
    wants_timing: bool


def access_of(request: Request) -> Access:
    return request.scope["access"]  # type: ignore[no-any-return]


def request_id_of(request: Request) -> str:
    """The caller's `x-request-id`, or one made for this request: the same at every call.

    Raises: ValidationError where it is no short word that can be echoed.
    """
    given = request.headers.get("x-request-id")
    if given is None or is_id(given):
        return access_of(request).id
    raise ValidationError(
        f"`x-request-id` must be 1 to {LONGEST_ID} printable ASCII characters. Given: {given[:LONGEST_ID]!r}",
        param="x-request-id",
    )


async def call_of(
    request: Request,
    service: Served,
    x_request_id: Annotated[str | None, Header(description="echoed; made where absent", json_schema_extra=WORD)] = None,  # noqa: ARG001
    x_tokenclock_timing: Annotated[str | None, Header(description="1: say where the time went")] = None,
) -> Call:
    with counted(service.metrics):
        request_id = request_id_of(request)
    return Call(service, request, request_id, access_of(request).arrived_s, x_tokenclock_timing == "1")


Called = Annotated[Call, Depends(call_of)]


@contextmanager
def counted(metrics: Metrics) -> Iterator[None]:
    """Counts a generation request that is refused before the engine knows of it."""
    try:
        yield
    except RequestError as error:
        metrics.refused(TOLD[type(error)].error_type)
        raise


async def admit(call: Call, prepare: Callable[[Engine], Awaitable[Sequence[Task]]]) -> Stream:
    """Queue the texts that `prepare` makes of a request.

    Raises: what `prepare` raises; Overloaded; Unavailable. Each is counted.
    """
    access = access_of(call.request)
    with counted(call.service.metrics):
        tasks = await prepare(call.service.require_ready())
        call.service.leave(access)  # its texts take the place that it was read in
        stream = call.service.open(call.id, tasks, call.arrived_s)
    access.texts = stream.requests
    return stream
