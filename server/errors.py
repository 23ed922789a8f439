"""What can go wrong, and what the client is told.

    ServerError
    ├── SettingsError        a setting or a model that cannot be served: printed, exit code 2
    │   └── ModelError       the model folder is missing, broken, or of the wrong kind
    └── RequestError         ends one request; `STATUS` says with which status and error_type
        ├── ValidationError  the request cannot be served as it stands
        ├── MalformedBody    the body is not JSON
        ├── Overloaded       too many requests are waiting
        ├── Unavailable      loading, draining, or broken for good
        └── GenerationError  the backend failed while the request ran

`error_type` is text-generation-inference's word, which its clients switch on.
Source: huggingface/text-generation-inference, router/src/infer/mod.rs and server.rs (3.3.6-dev0).
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of everything this package raises on purpose."""


class SettingsError(ServerError):
    """The server cannot start like this. The message names the value and the remedy."""


class ModelError(SettingsError):
    """The model cannot be loaded or served."""


class RequestError(ServerError):
    """Ends one request; nothing else is lost."""


class ValidationError(RequestError):
    """The request asks for what cannot be done."""


class MalformedBody(RequestError):
    """The body is not JSON."""


class Overloaded(RequestError):
    """As many requests as the server takes are in it already."""


class Unavailable(RequestError):
    """The server is loading, draining, or broken."""


class GenerationError(RequestError):
    """The backend failed."""


#: error -> (HTTP status, error_type)
STATUS: dict[type[RequestError], tuple[int, str]] = {
    ValidationError: (422, "validation"),
    MalformedBody: (400, "validation"),
    Overloaded: (429, "overloaded"),
    Unavailable: (503, "healthcheck"),
    GenerationError: (424, "generation"),
}
