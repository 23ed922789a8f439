"""Which protocol an endpoint speaks: said, or guessed from its URL and from what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loadtest import redaction
from loadtest.endpoints.base import JSON, Endpoint, EndpointError, ask, parse_url
from loadtest.endpoints.openai import HONOUR_IGNORE_EOS, ROUTES, OpenAiEndpoint, models
from loadtest.endpoints.tgi import INVOCATIONS, TgiEndpoint
from loadtest.sagemaker import runtime as aws
from loadtest.sagemaker.connection import SageMakerConnection
from loadtest.transport.base import Connect, Connection, HttpRequest, Target

TYPES = ("tgi", "openai-completions", "openai-chat", "sagemaker")
KINDS: dict[str, Literal["chat", "completions"]] = {"openai-completions": "completions", "openai-chat": "chat"}
ENDINGS = {  # of URLs that name a route instead of a base
    "/v1/chat/completions": "openai-chat",
    "/v1/completions": "openai-completions",
    "/generate_stream": "tgi",
    "/generate": "tgi",
    "/invocations": "sagemaker",
    "/v1": "openai",
}
HUGGING_FACE = (
    ".huggingface.cloud",
    ".huggingface.co",
)  # whose endpoints ask for $HF_TOKEN before they say what they are
KEYS = {"tgi": "HF_TOKEN", "sagemaker": "HF_TOKEN", "openai": "OPENAI_API_KEY"}  # whose variable holds a key


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is said of the endpoint besides its URL."""

    kind: str | None = None  # one of TYPES; None guesses
    model: str | None = None  # None takes the first that the endpoint lists
    api_key: str | None = field(default=None, repr=False)  # None takes the protocol's environment variable
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    transport: str = "gevent"  # of what is timed
    streams: bool = True


@dataclass(frozen=True, slots=True)
class Chosen:
    target: Target
    endpoint: Endpoint
    why: str  # one clause, for the user
    connect: Callable[[Connect], Connect] = field(default=lambda connect: connect)  # what requests are wrapped in
    control: Callable[[Connect], Connect] = field(default=lambda connect: connect)  # the same, for what isn't timed


def choose(url: str, wanted: Wanted, control: Connect) -> Chosen:
    """The endpoint behind a URL. `control` opens connections whose requests aren't timed.

    Raises: EndpointError with the remedy, TransportError.
    """
    if url.startswith(aws.SCHEME):
        return _behind_aws(url, wanted)
    if wanted.transport == "huggingface_hub" and not wanted.streams:
        raise EndpointError("--transport huggingface_hub only streams: leave out --no-stream, or the transport")
    if wanted.transport == "boto3":
        raise EndpointError("boto3 carries requests to sagemaker:// URLs only: leave --transport out")
    base = parse_url(url)
    ending, named = next(((end, kind) for end, kind in ENDINGS.items() if base.path.endswith(end)), ("", None))
    target = replace(base, path=base.path.removesuffix(ending))
    if wanted.kind and named and not wanted.kind.startswith(named):
        raise EndpointError(f"{url} names a route of {named}, and --endpoint-type {wanted.kind}: leave one of them out")
    if wanted.kind is not None:
        return _as(wanted.kind, target, wanted, control, "as --endpoint-type says")
    if named is not None and named != "openai":
        return _as(named, target, wanted, control, f"the URL ends in {ending}")
    # Nobody who isn't known to speak TGI's protocol gets its key.
    if named is None and _is_tgi(control, _keyed(target, "tgi", wanted, base.host.endswith(HUGGING_FACE))):
        return _as("tgi", target, wanted, control, "/info answers as TGI's does")
    with closing(control(_keyed(target, "openai", wanted))) as connection:
        completions = _has(connection, ROUTES["completions"])
        if not (completions or _has(connection, ROUTES["chat"])):
            raise EndpointError(
                f"{url} answers neither as TGI nor as an OpenAI endpoint does: is it the base URL? "
                f"If it is, say --endpoint-type {'|'.join(TYPES)}"
            )
    kind = "openai-completions" if completions else "openai-chat"
    return _as(kind, target, wanted, control, f"{ROUTES[KINDS[kind]]} is there")


def _as(kind: str, target: Target, wanted: Wanted, control: Connect, why: str) -> Chosen:
    """An endpoint of a kind, with what it says of itself taken into account."""
    target = _keyed(target, kind, wanted)
    if wanted.transport == "huggingface_hub":
        _sayable_by_the_hub(kind, wanted)
    if kind not in KINDS:
        _checked(wanted)
        route = INVOCATIONS if kind == "sagemaker" else "/generate_stream" if wanted.streams else "/generate"
        plain = TgiEndpoint(route, kind, wanted.extra_body, streams=wanted.streams)
        with closing(control(target)) as connection:
            status, info = ask(connection, HttpRequest("GET", "/info"))
        there = status == 200 and isinstance(info, dict)
        if kind == "tgi" and not there:
            raise EndpointError(f"{target.origin}{target.path}/info answers {status}: is this a TGI endpoint?")
        parameters = wanted.extra_body.get("parameters") or {}
        suppresses = there and info.get("router") == "tokenclock" and parameters.get("ignore_eos", True) is True
        return Chosen(target, replace(plain, suppresses_eos=suppresses, has_other_routes=there), why)
    model, owner = wanted.model, None
    with closing(control(target)) as connection:
        listed = models(connection)
    if model is None and not listed:
        raise EndpointError(f"{target.origin}{target.path}/v1/models lists no model: say --model")
    found = next((each for each in listed if model in (None, each.get("id"))), {})
    model, owner = model or str(found.get("id")), found.get("owned_by")
    suppresses = owner in HONOUR_IGNORE_EOS and wanted.extra_body.get("ignore_eos", True) is True
    endpoint = OpenAiEndpoint(KINDS[kind], model, wanted.extra_body, suppresses_eos=suppresses, streams=wanted.streams)
    return Chosen(target, endpoint, f"{why}; model {model}")


def _checked(wanted: Wanted) -> None:
    """Raises: EndpointError where TGI's protocol can't say what is wanted."""
    if wanted.model is not None:
        raise EndpointError(
            f"TGI's protocol names no model, an endpoint has one: leave --model {wanted.model} out, or say "
            "--endpoint-type openai-chat or openai-completions"
        )
    if not isinstance(wanted.extra_body.get("parameters") or {}, Mapping):
        raise EndpointError('--extra-body\'s `parameters` is no object: write it as {"parameters": {"seed": 1}}')


def _sayable_by_the_hub(kind: str, wanted: Wanted) -> None:
    """Raises: EndpointError where huggingface_hub would ask for something else than the other transports do."""
    if kind != "tgi":
        raise EndpointError(f"huggingface_hub streams TGI's protocol only, not {kind}: use --transport gevent or httpx")
    if stray := sorted(wanted.extra_body.keys() - {"parameters"}):
        raise EndpointError(f"huggingface_hub can't send {stray[0]} of --extra-body: use --transport gevent or httpx")
    from loadtest.transport.hub_client import sayable

    said = {name for name, value in (wanted.extra_body.get("parameters") or {}).items() if value is not None}
    if stray := sorted(said - sayable()):
        raise EndpointError(f"huggingface_hub has no parameter {stray[0]}: use --transport gevent or httpx")


def _behind_aws(url: str, wanted: Wanted) -> Chosen:
    """A container that only `/invocations` leads to."""
    if wanted.transport == "huggingface_hub":
        raise EndpointError("huggingface_hub does not sign AWS's requests: use --transport gevent, httpx or boto3")
    if wanted.api_key:
        raise EndpointError("AWS takes no --api-key: its credentials come from boto3's chain; leave it out")
    for name, value in wanted.headers:
        redaction.keep_header(name, value)
    runtime = aws.Runtime(aws.parse(url), wanted.headers)  # which signs them
    endpoint: Endpoint
    if wanted.kind in KINDS:
        endpoint = OpenAiEndpoint(
            KINDS[wanted.kind],
            wanted.model,
            wanted.extra_body,
            streams=wanted.streams,
            suppresses_eos=False,
            invocations=True,
            has_other_routes=False,
        )
    else:
        _checked(wanted)
        endpoint = TgiEndpoint(
            INVOCATIONS,
            "sagemaker",
            wanted.extra_body,
            streams=wanted.streams,
            suppresses_eos=False,
            needs_clean_end=True,
            has_other_routes=False,
        )
    speaks = f"its container is taken for {'TGI' if wanted.kind not in KINDS else wanted.kind}"

    def wrapped(connect: Connect) -> Connect:
        return lambda to: SageMakerConnection(connect(to), runtime)

    def by_boto3(_: Connect) -> Connect:
        from loadtest.sagemaker.boto3_client import Boto3Connection

        return lambda _: Boto3Connection(runtime)

    timed = by_boto3 if wanted.transport == "boto3" else wrapped
    return Chosen(runtime.target, endpoint, f"{speaks}, region {runtime.region}", timed, wrapped)


def _keyed(target: Target, kind: str, wanted: Wanted, from_environment: bool = True) -> Target:
    """The target with the headers that every request carries. A key is told to `redaction` before anything is sent."""
    variable = KEYS[kind.partition("-")[0]]
    set_there = os.environ.get(variable) if from_environment else None
    key = (wanted.api_key or set_there or "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise EndpointError(f"${variable} holds a line's end, or what isn't ASCII: a header can't carry it")
    named = {name.lower() for name, _ in wanted.headers}
    redaction.keep(key)
    for name, value in wanted.headers:
        redaction.keep_header(name, value)
    if wanted.api_key and "authorization" in named:
        raise EndpointError("--api-key and --header Authorization both say who asks: leave one of them out")
    bearer = () if key is None or "authorization" in named else (("authorization", f"Bearer {key}"),)
    return replace(target, headers=(*bearer, *wanted.headers))


def _is_tgi(control: Connect, target: Target) -> bool:
    with closing(control(target)) as connection:
        status, info = ask(connection, HttpRequest("GET", "/info"))
    return status == 200 and isinstance(info, dict) and "max_total_tokens" in info


def _has(connection: Connection, route: str) -> bool:
    """Whether a route is there: an empty request is refused for what it lacks, not for where it went."""
    status, _ = ask(connection, HttpRequest("POST", route, JSON, b"{}"))
    return status not in (404, 405, 501)
