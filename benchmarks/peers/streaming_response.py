"""FastAPI, `StreamingResponse` and orjson: the usual way, written well.

python -m benchmarks.peers.streaming_response PORT SLOTS GAP_S GIL_S STAMPS
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from benchmarks.peers.mailboxes import Body, Mailboxes, arguments, event, serving

port, _, beat = arguments()
mailboxes = Mailboxes(beat)
app = FastAPI(lifespan=serving(mailboxes))


@app.post("/generate_stream")
async def generate_stream(body: Body) -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        async for index, token in mailboxes.tokens(body.parameters.max_new_tokens):
            yield b"data: " + orjson.dumps(event(index, token)) + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=port, log_level="warning", access_log=False)
