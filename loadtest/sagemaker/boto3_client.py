"""boto3 itself as the transport of a SageMaker endpoint: what most programs use, and what ours is held against.

Its pool, its sockets and its event stream are its own, so

- `started` is before the client's own work, signing included, and a first request includes the connect;
- `sent` is unknown, and a part is stamped when the client hands it over;
- one limit for silence instead of two, the longer of first byte and gap.

Source: botocore 1.44, eventstream.py, httpsession.py and exceptions.py.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

from loadtest.sagemaker.connection import EVENT_STREAM, refusal, region_doubted, said_in
from loadtest.sagemaker.runtime import ANSWERED, Runtime
from loadtest.transport.authorities import untrusted
from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    HttpRequest,
    Read,
    Seen,
    StreamFailed,
    TimedOut,
    Timeouts,
    TransportError,
    causes,
    monotonic_ns,
)


class Boto3Connection:
    """One user's share of the process's client."""

    transport_name = "boto3"

    def __init__(self, runtime: Runtime, clock: Clock = monotonic_ns) -> None:
        self._runtime = runtime
        self._clock = clock

    def ready(self, timeout_s: float) -> int | None:
        return None

    def close(self) -> None:
        pass

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        from botocore.eventstream import ParserError
        from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EventStreamError
        from urllib3.exceptions import HTTPError

        place = self._runtime.place
        named = dict(request.headers)
        streamed = "event-stream" in named.get("accept", "")
        optional = {"TargetVariant": place.variant, "InferenceComponentName": place.component}
        asked: dict[str, Any] = {
            "EndpointName": place.name,
            "Body": request.body,
            "ContentType": "application/json",
            "Accept": "text/event-stream" if streamed else "application/json",
            "InferenceId": named["x-request-id"],
            **{name: value for name, value in optional.items() if value is not None},
        }
        silence_s = min(max(timeouts.first_byte_s, timeouts.gap_s), timeouts.total_s)
        client = self._runtime.client_waiting(silence_s, timeouts.connect_s)
        seen.started_ns = self._clock()
        try:
            call = client.invoke_endpoint_with_response_stream if streamed else client.invoke_endpoint
            reply = call(**asked)
            seen.headers_ns = self._clock()
            seen.status = reply["ResponseMetadata"]["HTTPStatusCode"]
            headers = reply["ResponseMetadata"]["HTTPHeaders"]
            if streamed and headers.get("content-type", EVENT_STREAM) != EVENT_STREAM:
                seen.headers["content-type"] = headers["content-type"]  # a gateway's page: no stream to be read
                reply["Body"].close()
            elif streamed:
                seen.headers["content-type"] = headers.get("x-amzn-sagemaker-content-type", "text/event-stream")
                yield from self._parts(reply["Body"], seen, timeouts)
            else:
                seen.headers["content-type"] = reply.get("ContentType") or "application/json"
                whole = reply["Body"].read()
                yield Read(self._clock(), 1, whole)
            seen.body_ended, seen.ended_ns = True, self._clock()
        except EventStreamError as error:
            told = error.response.get("Error", {})
            code = error.response.get("ErrorCode")
            raise StreamFailed(
                f"{told.get('Code')}: {told.get('Message') or 'no message'}" + (f" ({code})" if code else "")
            ) from error
        except ParserError as error:
            raise StreamFailed(f"no event stream: {error}") from error
        except ClientError as error:
            seen.status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            seen.headers.update(error.response["ResponseMetadata"]["HTTPHeaders"])
            answered = said_in(error.response.get(ANSWERED, b""))
            sentence, seen.overloaded = refusal(seen.headers.get("x-amzn-errortype", ""), answered)
            yield Read(self._clock(), 1, json.dumps({"error": sentence}).encode())
        except ConnectTimeoutError as error:
            to = self._runtime.target
            raise TimedOut(f"no connection to {to.host}:{to.port} in {timeouts.connect_s:g} s") from error
        except (BotoCoreError, HTTPError) as error:  # what breaks inside a stream comes as urllib3 says it
            to = self._runtime.target
            told = _told(error, seen, silence_s, f"{to.host}:{to.port}")
            doubt = region_doubted(error, self._runtime.region)
            raise (ConnectionBroken(f"{told}{doubt}") if doubt else told) from error

    def _parts(self, body: Any, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        assert seen.started_ns is not None
        try:
            for number, event in enumerate(body, 1):
                t_ns = self._clock()
                if (part := event.get("PayloadPart")) is not None:
                    yield Read(t_ns, number, part["Bytes"])
                if t_ns - seen.started_ns > timeouts.total_s * 1e9:
                    raise TimedOut(f"not finished after {timeouts.total_s:g} s")
        finally:
            body.close()


def _told(error: Exception, seen: Seen, silence_s: float, where: str) -> TransportError:
    """The transport's name for what went wrong under the client. The first cause knows best."""
    if (distrusted := untrusted("boto3", where, error)) is not None:
        return ConnectionBroken(distrusted)
    chain = list(causes(error))
    if (no_tls := next((each for each in chain if isinstance(each, ssl.SSLError)), None)) is not None:
        return ConnectionBroken(f"no TLS with {where} ({no_tls.reason}): is it https?")
    if any("Timeout" in type(each).__name__ for each in chain):
        return TimedOut(f"nothing arrived for {silence_s:g} s")
    broken = next((each for each in reversed(chain) if isinstance(each, OSError) and each.strerror), None)
    if broken is not None:
        opened = not any(type(each).__name__ == "EndpointConnectionError" for each in chain)
        return ConnectionBroken(str(broken.strerror) if opened else f"no connection to {where}: {broken.strerror}")
    if seen.status is not None:
        return BodyCut("the connection closed inside the body")
    return ConnectionBroken(str(error))
