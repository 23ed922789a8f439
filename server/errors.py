"""What can go wrong, and what the client is told.

    ServerError
    ├── SettingsError        a setting or a model that cannot be served: printed, exit code 2
    │   └── ModelError       the model folder is missing, broken, or of the wrong kind
    ├── BackendLost          the backend cannot go on: every request fails, /health is 503 for good
    └── RequestError         ends one request; `TOLD` says with which status and words
        ├── Unauthorized     the API key is missing or wrong
        ├── ValidationError  the request cannot be served as it stands
        ├── TemplateError    the model's chat template cannot write the messages
        ├── MalformedBody    the body is not JSON
        ├── TooLarge         the body is longer than the server reads
        ├── TooSlow          the body takes longer to arrive than the server waits
        ├── Gone             the client left before its request was there
        ├── NotJson          the body says that it is something else
        ├── NotServed        another model than the one that is served
        ├── Overloaded       too many requests are waiting
        ├── Unavailable      loading, draining, or broken for good
        └── GenerationError  the backend failed while the request ran

TGI's clients switch on `error_type`, OpenAI's on the status and `type`.
Source: huggingface/text-generation-inference, router/src/infer/mod.rs and server.rs (3.3.6-dev0); OpenAI's API
reference, error codes.
"""

from __future__ import annotations

from typing import NamedTuple


class ServerError(Exception):
    """Base of everything this package raises on purpose."""


class SettingsError(ServerError):
    """The server cannot start like this. The message names the value and the remedy."""


class ModelError(SettingsError):
    """The model cannot be loaded or served."""


class BackendLost(ServerError):
    """No further call to the backend can succeed. A backend may raise it itself."""


class RequestError(ServerError):
    """Ends one request; nothing else is lost. `param` is the parameter to blame, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Unauthorized(RequestError):
    """The request doesn't carry the server's API key."""


class ValidationError(RequestError):
    """The request asks for what cannot be done."""


class TemplateError(RequestError):
    """The conversation cannot be written as a prompt."""


class MalformedBody(RequestError):
    """The body is not JSON."""


class TooLarge(RequestError):
    """The body is longer than the server reads."""


class TooSlow(RequestError):
    """The body takes longer than the server waits for it."""


class Gone(RequestError):
    """The client left before its request was there. Nobody reads the answer."""


class NotJson(RequestError):
    """The body is not sent as application/json."""


class NotServed(RequestError):
    """The model that is asked for is not here."""


class Overloaded(RequestError):
    """As many requests as the server takes are in it already."""


class Unavailable(RequestError):
    """The server is loading, draining, or broken."""


class GenerationError(RequestError):
    """The backend failed."""


class Told(NamedTuple):
    """What a client hears: TGI's status and `error_type`; OpenAI's status, `type` and `code`."""

    status: int
    error_type: str
    openai_status: int
    openai_type: str
    openai_code: str | None = None


TOLD: dict[type[RequestError], Told] = {
    Unauthorized: Told(401, "unauthorized", 401, "invalid_request_error", "invalid_api_key"),
    ValidationError: Told(422, "validation", 400, "invalid_request_error"),
    TemplateError: Told(422, "template_error", 400, "invalid_request_error"),
    MalformedBody: Told(400, "validation", 400, "invalid_request_error"),
    TooLarge: Told(413, "validation", 413, "invalid_request_error"),
    TooSlow: Told(408, "validation", 408, "invalid_request_error"),
    Gone: Told(499, "dropped", 499, "invalid_request_error"),  # nginx's status
    NotJson: Told(415, "validation", 415, "invalid_request_error"),
    NotServed: Told(404, "validation", 404, "invalid_request_error", "model_not_found"),
    Overloaded: Told(429, "overloaded", 429, "rate_limit_error", "overloaded"),
    Unavailable: Told(503, "healthcheck", 503, "server_error", "unavailable"),
    GenerationError: Told(424, "generation", 424, "server_error", "generation"),
}
