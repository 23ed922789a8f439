"""A JSON body becomes one of our types, or one sentence: too long, no JSON, or which field is wrong and why.

Types are read strictly, as TGI and OpenAI read them: "2" is no number. NaN and infinity are no values.
"""

from __future__ import annotations

import asyncio
import contextlib
import reprlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pydantic
import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect

from server.api.served import Served, access_of, counted
from server.api.tokenizing import off_the_loop
from server.errors import Gone, MalformedBody, NotJson, TooLarge, TooSlow, ValidationError
from server.service import Service

M = TypeVar("M", bound="Body")
LONGEST_NAME = 100  # in a message
BYTES_OF_WORK = 50  # reading so many costs what a character costs to tokenize
COMPONENT = "#/components/schemas/{model}"


class FirstError(FailFast):
    """Ends the reading of a list at its first error: a long one, wrong everywhere, must not keep others waiting."""

    def __hash__(self) -> int:  # to stand in a union
        return hash(FirstError)


FIRST_ERROR = FirstError()


class Body(BaseModel):
    """Unknown names are refused, so that no option is silently ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_name(cls, said: Any) -> Any:
        """The first unknown name is enough: pydantic would make an error for each of a hundred thousand. With null it
        asks for nothing: clients send back what other servers gave them.
        """
        if not isinstance(said, dict) or said.keys() <= cls.model_fields.keys():
            return said
        for name, value in said.items():
            if name not in cls.model_fields and value is not None:
                shown = name if len(name) <= LONGEST_NAME and name.isprintable() else ascii(name[:LONGEST_NAME])
                raise PydanticCustomError("unknown_name", "{name}", {"name": shown})
        return {name: value for name, value in said.items() if name in cls.model_fields}


def limited(description: str, **bounds: Any) -> Any:
    """An optional field whose bounds the OpenAPI description tells; they are checked in the protocol's own words."""
    return Field(None, description=description, json_schema_extra=bounds)


def described(sentence: str) -> WrapValidator:
    """One sentence where a union of types would list what each of its branches had against the value."""

    def check(value: Any, read: pydantic.ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except pydantic.ValidationError as error:
            raise ValueError(sentence) from error

    return WrapValidator(check)


def json_body(model: type[M], generates: bool = True) -> Callable[..., Awaitable[M]]:
    """A dependency that gives the body of a request.

    Raises: what `read` and `typed` raise; counted where the request was to generate.
    """

    async def body(request: Request, service: Served) -> M:
        with counted(service.metrics) if generates else contextlib.nullcontext():
            return await read(request, service, lambda said: typed(model, said))

    return body


async def read(request: Request, service: Service, understood: Callable[[Any], M]) -> M:
    """A body, as `understood` takes the value that it spells. From its last byte on the request holds one of the
    server's places, until its texts take theirs or it ends.

    Raises: Unavailable and Overloaded, before anything is read; TooLarge, before more than the limit is kept; NotJson;
    TooSlow; Gone; MalformedBody; what `understood` raises.
    """
    service.require_room()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"it says {kind[:80]!r}" if kind else "it says nothing"
        raise NotJson(f"the body must be sent with `content-type: application/json`; {given}")
    content = await received(request, service.settings.payload_limit, service.settings.read_timeout_s)
    service.enter(access_of(request))
    return await off_the_loop(lambda: understood(spelled(content)), len(content) // BYTES_OF_WORK)


async def received(request: Request, limit: int, timeout_s: float) -> bytes:
    """Raises: TooLarge, TooSlow, Gone."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {int(declared):,} bytes; at most {limit:,} are read: shorten the prompt")
    content = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                content += part
                if len(content) > limit:
                    raise TooLarge(
                        f"the body has more than {limit:,} bytes, which is all that is read: shorten the prompt"
                    )
    except TimeoutError:
        raise TooSlow(
            f"{len(content):,} bytes of the body came in {timeout_s:g} s, and not its end: send it faster"
        ) from None
    except ClientDisconnect:
        raise Gone("the client left before its request was there") from None
    return bytes(content)


def spelled(content: bytes) -> Any:
    """Raises: MalformedBody."""
    try:
        return pydantic_core.from_json(content)
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error


def typed(model: type[M], said: Any) -> M:
    """Raises: ValidationError naming the first field that is wrong."""
    if not isinstance(said, dict):
        raise ValidationError(f"the body must be an object. Given: {reprlib.repr(said)}")
    try:
        return model.model_validate(said)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
    unknown = [first["ctx"]["name"]] if first["type"] == "unknown_name" else []
    where = ".".join(str(part) for part in [*first["loc"], *unknown])
    if unknown:
        raise ValidationError(f"`{where}` is not a parameter of this server: leave it out", param=where)
    raise ValidationError(f"`{where}`: {first['msg'].removeprefix('Value error, ')}", param=where)


def request_body(*models: type[Body]) -> dict[str, Any]:
    """What OpenAPI says of a body that `json_body` reads. `components` must know the models."""
    schemas = [{"$ref": COMPONENT.format(model=model.__name__)} for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def components(*models: type[Body]) -> dict[str, Any]:
    """The schemas of `models` and of what they are made of, by name."""
    _, found = pydantic.json_schema.models_json_schema(
        [(model, "validation") for model in models], ref_template=COMPONENT
    )
    return dict(found["$defs"])
