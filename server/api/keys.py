"""The API key: `authorization: Bearer KEY` on every route that works for a client, compared in constant time.

Open stay /health, /ping, /metrics and /info, which probes, scrapers and balancers ask without a key and which tell
nothing that a client has sent, and the pages of the description. TGI draws the line there, too, but that it leaves out
/chat_tokenize, which does a client's work; /v1/models is guarded as OpenAI's and vLLM's is.
"""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.api.served import Served
from server.errors import TOLD, Unauthorized

UNCOUNTED = {"/tokenize", "/chat_tokenize"}  # they generate nothing
bearer = HTTPBearer(auto_error=False, description="the server's --api-key, where it has one")


async def authorized(
    request: Request, service: Served, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Comes before every other dependency of a route: nothing of the body has been read.

    Raises: Unauthorized.
    """
    key = service.settings.api_key
    if key is None:
        return
    expected = key.get_secret_value().encode()
    if given is not None and hmac.compare_digest(given.credentials.encode(), expected):
        return
    if request.method == "POST" and request.url.path not in UNCOUNTED:
        service.metrics.refused(TOLD[Unauthorized].error_type)
    wrong = "is missing" if given is None else "is wrong"
    raise Unauthorized(f"the API key {wrong}: send it as `authorization: Bearer KEY`")
