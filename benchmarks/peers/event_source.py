"""FastAPI and sse-starlette's `EventSourceResponse`, the data rendered by orjson.

python -m benchmarks.peers.event_source PORT SLOTS GAP_S GIL_S STAMPS
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from fastapi import FastAPI
from sse_starlette.sse import EventSourceResponse, ServerSentEvent

from benchmarks.peers.mailboxes import Body, Mailboxes, arguments, event, serving

port, _, beat = arguments()
mailboxes = Mailboxes(beat)
app = FastAPI(lifespan=serving(mailboxes))


@app.post("/generate_stream")
async def generate_stream(body: Body) -> EventSourceResponse:
    async def events() -> AsyncIterator[ServerSentEvent]:
        async for index, token in mailboxes.tokens(body.parameters.max_new_tokens):
            yield ServerSentEvent(orjson.dumps(event(index, token)).decode(), sep="\n")

    return EventSourceResponse(events(), sep="\n")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=port, log_level="warning", access_log=False)
