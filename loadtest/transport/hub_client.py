"""huggingface_hub's InferenceClient as the transport: does TGI's own client get on with the endpoint?

For compatibility, not for figures. The client shows its outputs and nothing of the wire under them, so

- `started` is before the client's own work, and its connections are its own: the first request of a user includes
  the connect, and from version 1 on the 101st stream of a process waits, unseen, for a place in the client's pool;
- `sent` is unknown, and an output is stamped when the client hands it over: what was buffered on its way can't be told;
- `ignore_eos` can't be said (TGI has no such parameter): a model that ends its text early gives `stopped_early`;
- server timing isn't asked for: the client reads every `data:` line as a token;
- a broken event ends the stream, since the client stops there; broken chunked framing passes for a cut;
- one limit for silence instead of two, the longer of first byte and gap, and it covers the connect;
- proxies, certificate authorities and a saved token are the client's business: the environment's, not our options'.

What it raises becomes again what the wire had said, so that `measure` reads this transport like any other.
Source: huggingface_hub 0.36.2 and 2.4.0, inference/_client.py and inference/_common.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from typing import Any

import orjson

from loadtest import redaction
from loadtest.transport.authorities import untrusted
from loadtest.transport.base import (
    BodyCut,
    Clock,
    ConnectionBroken,
    HttpRequest,
    Read,
    Seen,
    Target,
    TimedOut,
    Timeouts,
    TransportError,
    causes,
    monotonic_ns,
)

# Read when the package is imported. Without it 2.x asks its hub about the caller before every request; HF_HUB_OFFLINE
# would refuse them all.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
from huggingface_hub import InferenceClient, __version__, errors, get_session, get_token

UNSAYABLE = {"ignore_eos"}  # parameters of ours that `text_generation` doesn't take
UNREADABLE = {"x-tokenclock-timing"}  # headers that ask for events which the client can't read
ERROR_TYPES = {  # the client's names for what TGI's `error_type` says
    errors.GenerationError: "generation",
    errors.IncompleteGenerationError: "incomplete_generation",
    errors.OverloadedError: "overloaded",
    errors.ValidationError: "validation",
}


def sayable() -> set[str]:
    """The parameters that the client's `text_generation` takes."""
    return set(signature(InferenceClient.text_generation).parameters) - {"self", "prompt", "model", "stream"}


def _wire_errors() -> tuple[type[Exception], ...]:
    """What the library under the client raises when the wire fails: each major version has another."""
    name, error = {"0": ("requests", "RequestException"), "1": ("httpx", "HTTPError")}.get(
        __version__.partition(".")[0], ("httpx2", "HTTPError")
    )
    return (getattr(import_module(name), error), OSError)


WIRE_ERRORS = _wire_errors()


class HubConnection:
    """The client of one user. There is nothing to open: connections are the client's own."""

    transport_name = "huggingface_hub"

    def __init__(self, target: Target, clock: Clock = monotonic_ns) -> None:
        self._target = target
        self._clock = clock
        redaction.keep(get_token())  # the login's, which the client sends where it is given none

    def ready(self, timeout_s: float) -> int | None:
        return None

    def close(self) -> None:
        pass

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        """Any request that isn't a generation goes through the client's session, which is public too."""
        silence_s = min(max(timeouts.first_byte_s, timeouts.gap_s), timeouts.total_s)
        said: Any = orjson.loads(request.body) if request.body else None
        seen.started_ns = self._clock()
        try:
            if isinstance(said, dict) and "parameters" in said:
                yield from self._generate(request, said, seen, timeouts, silence_s)
            else:
                yield self._ask(request, said, seen, silence_s)
            seen.body_ended, seen.ended_ns = True, self._clock()
        except WIRE_ERRORS as error:
            raise _told(error, seen, silence_s, f"{self._target.host}:{self._target.port}") from error

    def _ask(self, request: HttpRequest, said: Any, seen: Seen, silence_s: float) -> Read:
        session: Any = get_session()
        response = session.request(
            request.method,
            self._url(request),
            headers=dict(self._target.headers_with(request.headers)),
            json=said,
            timeout=silence_s,
        )
        seen.status = response.status_code
        return Read(self._clock(), 1, response.content)

    def _generate(
        self, request: HttpRequest, said: dict[str, Any], seen: Seen, timeouts: Timeouts, silence_s: float
    ) -> Iterator[Read]:
        headers = {name: value for name, value in self._target.headers_with(request.headers) if name not in UNREADABLE}
        client = InferenceClient(self._url(request), headers=headers, timeout=silence_s)
        parameters = {name: value for name, value in said["parameters"].items() if name not in UNSAYABLE}
        read_id = 0
        try:
            outputs = client.text_generation(said["inputs"], stream=True, **parameters)
            seen.headers_ns = self._clock()
            seen.status = 200
            for read_id, output in enumerate(outputs, 1):
                t_ns = self._clock()
                yield Read(t_ns, read_id, _event(orjson.dumps(output)))
                if t_ns - (seen.started_ns or t_ns) > timeouts.total_s * 1e9:
                    raise TimedOut(f"not finished after {timeouts.total_s:g} s")
        except errors.TextGenerationError as error:
            body = {"error": str(error), "error_type": ERROR_TYPES.get(type(error), "unknown")}
            if seen.status is None and (response := _response(error)) is not None:
                seen.status = response.status_code
                yield Read(self._clock(), read_id + 1, orjson.dumps(body))
            else:
                yield Read(self._clock(), read_id + 1, _event(orjson.dumps(body)))
        except json.JSONDecodeError as error:
            yield Read(self._clock(), read_id + 1, _event(error.doc.strip().encode()))
        except WIRE_ERRORS as error:
            response = _response(error)
            if seen.status is not None or response is None:
                raise
            seen.status = response.status_code
            yield Read(self._clock(), read_id + 1, orjson.dumps({"error": str(error)}))
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            if seen.status is None:
                raise  # ours: a request that the client doesn't take
            body = {"error": f"the client can't read an event: {error!r}", "error_type": "unknown"}
            yield Read(self._clock(), read_id + 1, _event(orjson.dumps(body)))
        finally:
            if hasattr(client, "close"):  # from 1.0 on; before, dropping the stream drops its connection
                client.close()

    def _url(self, request: HttpRequest) -> str:
        return f"{self._target.origin}{self._target.path}{request.path}"


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _response(error: Exception) -> Any | None:
    """The answer that an error is about, of whichever library; None where none came."""
    answers = (getattr(each, "response", None) for each in causes(error))
    return next((answer for answer in answers if answer is not None), None)


def _told(error: Exception, seen: Seen, silence_s: float, where: str) -> TransportError:
    """The transport's name for what went wrong under the client. Libraries wrap it: the first causes know best."""
    if (distrusted := untrusted("huggingface_hub", where, error)) is not None:
        return ConnectionBroken(distrusted)
    chain = list(causes(error))
    if any("Timeout" in type(each).__name__ for each in chain):
        return TimedOut(f"nothing arrived for {silence_s:g} s")
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return ConnectionBroken(each.strerror)
    if seen.status is not None:
        return BodyCut("the connection closed inside the body")
    return ConnectionBroken(str(chain[-1]) or type(chain[-1]).__name__)
