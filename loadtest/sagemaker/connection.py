"""A SageMaker endpoint as a way to its container: requests are signed, replies unwrapped, on any transport.

What an endpoint's protocol sees is the container's own reply to `/invocations`. AWS's part stays here: the event stream
around the container's bytes, and refusals that come from AWS, not from the container. botocore signs and parses;
sockets and clocks are the transport's that is underneath.
Source: botocore 1.44, eventstream.py; docs.aws.amazon.com, InvokeEndpointWithResponseStream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from socket import gaierror
from typing import Any

from loadtest.endpoints.base import excerpt
from loadtest.sagemaker.runtime import Runtime
from loadtest.transport.base import (
    Connection,
    ConnectionBroken,
    HttpRequest,
    Read,
    Seen,
    StreamFailed,
    Timeouts,
    causes,
)

EVENT_STREAM = "application/vnd.amazon.eventstream"
THROTTLED = {"ThrottlingException", "ServiceUnavailable", "ModelNotReadyException"}
REMEDIES = {
    "ExpiredTokenException": "the credentials have expired: fetch new ones",
    "UnrecognizedClientException": "AWS doesn't know the access key: check the credentials and the region",
    "InvalidSignatureException": "the secret key doesn't fit, or this machine's clock is off",
    "AccessDeniedException": "the policy needs sagemaker:InvokeEndpoint on this endpoint",
    "ValidationError": "check the endpoint's name and the region",
}


class SageMakerConnection:
    """A transport's connection to AWS, as one to the container behind it."""

    def __init__(self, wire: Connection, runtime: Runtime) -> None:
        self._wire = wire
        self._runtime = runtime
        self.transport_name = wire.transport_name

    def ready(self, timeout_s: float) -> int | None:
        return self._wire.ready(timeout_s)

    def close(self) -> None:
        self._wire.close()

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        """The container's reply. What AWS refuses is told as an `error` that any protocol reads."""
        named = dict(request.headers)
        streamed = "event-stream" in named.get("accept", "")
        try:
            signed = self._runtime.signed(request.body, streamed, named["x-request-id"])
        except Exception as error:  # boto3's chain: a role or an SSO session that can't be refreshed, of many kinds
            raise ConnectionBroken(f"the request can't be signed: {error}") from error
        events = _Events()
        refused = bytearray()
        read: Read | None = None
        try:
            for read in self._exchanged(signed, seen, timeouts):
                if seen.status != 200:
                    refused += read.data
                    continue
                if not (_unwrapped(seen) or events.begun):
                    yield read  # a whole reply, or nothing that AWS would send
                    continue
                payload, failure = events.take(read.data)
                if payload:
                    yield Read(read.t_ns, read.read_id, payload)
                if failure is not None:
                    raise StreamFailed(failure)
        finally:
            _unwrapped(seen)  # also a stream that ended before its first frame is the container's
        if read is not None and refused:
            sentence, seen.overloaded = refusal(seen.headers.get("x-amzn-errortype", ""), said_in(refused))
            yield Read(read.t_ns, read.read_id, json.dumps({"error": sentence}).encode())
        seen.body_ended = seen.body_ended and events.whole

    def _exchanged(self, signed: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        try:
            yield from self._wire.exchange(signed, seen, timeouts)
        except ConnectionBroken as error:
            if doubt := region_doubted(error, self._runtime.region):
                raise ConnectionBroken(f"{error}{doubt}") from error
            raise


def region_doubted(error: BaseException, region: str) -> str:
    """What is to be added where a name has no address: each region has a host of its own."""
    nameless = any(isinstance(each, gaierror) for each in causes(error))
    return f"; is {region} the region, and spelt so?" if nameless else ""


def _unwrapped(seen: Seen) -> bool:
    """Whether an event stream was around the container's bytes, whose own type stands in its place from now on."""
    if seen.headers.get("content-type") != EVENT_STREAM:
        return False
    seen.headers["content-type"] = seen.headers.get("x-amzn-sagemaker-content-type", "text/event-stream")
    return True


class _Events:
    """The frames of an event stream, as they come in pieces."""

    def __init__(self) -> None:
        from botocore.eventstream import EventStreamBuffer, ParserError

        self._buffer, self._error = EventStreamBuffer(), ParserError
        self._open_bytes = 0
        self.begun = False

    @property
    def whole(self) -> bool:
        """Nothing of a frame has come without its rest."""
        return self._open_bytes == 0

    def take(self, data: bytes) -> tuple[bytes, str | None]:
        """The payload that became whole, and what AWS says went wrong after it."""
        self.begun = True
        self._open_bytes += len(data)
        parts: list[bytes] = []
        try:
            self._buffer.add_data(data)
            for frame in self._buffer:
                self._open_bytes -= frame.prelude.total_length
                if frame.headers.get(":message-type") == "event":
                    parts.append(frame.payload if frame.headers.get(":event-type") == "PayloadPart" else b"")
                else:
                    return b"".join(parts), _failure(frame.headers, frame.payload)
        except self._error as error:
            return b"".join(parts), f"no event stream: {error}"
        return b"".join(parts), None


def _failure(headers: Any, payload: bytes) -> str:
    """What an exception's frame says, or an error's."""
    said = said_in(payload)
    kind = headers.get(":exception-type") or headers.get(":error-code") or "error"
    message = said.get("Message") or said.get("message") or headers.get(":error-message") or "no message"
    return f"{kind}: {message}" + (f" ({said['ErrorCode']})" if said.get("ErrorCode") else "")


def refusal(kind: str, said: dict[str, Any]) -> tuple[str, bool]:
    """A sentence on what AWS answered instead of a stream, and whether it means: too much at once.

    kind: `x-amzn-errortype`, which may have a URL behind a colon; a gateway in between has none.
    """
    name = (kind or str(said.get("__type", ""))).partition(":")[0].rpartition("#")[2]
    message = said.get("message") or said.get("Message") or said.get("error") or "no message"
    original = said.get("OriginalStatusCode")
    if original is not None:
        return f"{name}: the container answered {original}: {said.get('OriginalMessage') or message}", original in (
            429,
            503,
        )
    remedy = REMEDIES.get(name)
    if name == "ValidationError" and "stream" in str(message).lower():
        remedy = "ask for whole replies with --no-stream"
    return f"{name}: {message}{f' ({remedy})' if remedy else ''}" if name else str(message), name in THROTTLED


def said_in(data: bytes | bytearray) -> dict[str, Any]:
    """An object of AWS's, or whatever else answered, as its `message`."""
    try:
        said = json.loads(data)
    except ValueError:
        said = {"message": excerpt(bytes(data))}
    return said if isinstance(said, dict) else {}
