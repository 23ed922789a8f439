"""How an answer leaves: a plain one with TGI's headers, or a stream that is kept alive and given up with its reader.

Source of the headers: huggingface/text-generation-inference 3.3.6-dev0, router/src/server.rs (generate_internal).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api import sse
from server.api.served import Call
from server.api.tokenizing import off_the_loop
from server.engine.request import Token
from server.service import Stream

CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody reads it
SILENCE_S = 15.0  # then a comment keeps proxies from giving the stream up; axum's interval
SLICE = 4_096  # of a long list
#: What OpenAPI says of a route that answers or streams.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {sse.MEDIA_TYPE: {}}}}
T = TypeVar("T")


def json_reply(payload: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Floats that JSON can't spell become null."""
    return Response(orjson.dumps(payload), status, headers, media_type="application/json")


async def rendered(stream: Stream, texts: Sequence[Sequence[Token]], answer: Callable[[], Any]) -> orjson.Fragment:
    """The JSON of a plain answer, made off the event loop where it tells of many tokens."""
    tokens = sum(map(len, texts)) + sum(len(request.prompt_scores) for request in stream.requests)
    each = 1 + (stream.requests[0].task.sampling.top_n_tokens or 0)
    return orjson.Fragment(await off_the_loop(lambda: orjson.dumps(answer()), tokens * each))


def json_list(items: Iterable[Any]) -> bytes:
    """A JSON list of many small things, in slices, so that another thread's turn is never far."""
    items, slices = iter(items), []
    while part := list(islice(items, SLICE)):
        slices.append(orjson.dumps(part)[1:-1])
    return b"[" + b",".join(slices) + b"]"


class StreamReply(StreamingResponse):
    """Leaves the stream however the response ends, even if its first byte was never asked for."""

    def __init__(self, call: Call, stream: Stream, prompts: Sequence[str], content: AsyncIterator[bytes]) -> None:
        unbuffered = {"x-accel-buffering": "no", "cache-control": "no-cache"}
        kind = {"content-type": sse.MEDIA_TYPE}  # bare, as TGI's
        super().__init__(content, headers=common_headers(call, prompts) | unbuffered | kind)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        clock = asyncio.get_running_loop().time
        last_sent = clock()

        async def keep_alive() -> None:
            nonlocal last_sent
            while True:
                await asyncio.sleep(last_sent + SILENCE_S - clock())
                if clock() - last_sent >= SILENCE_S:
                    last_sent = clock()
                    await send({"type": "http.response.body", "body": sse.COMMENT, "more_body": True})

        keeper = asyncio.create_task(keep_alive())
        try:
            async for chunk in self.body_iterator:
                last_sent = clock()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            keeper.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole(call: Call, stream: Stream) -> list[list[Token]] | None:
    """The tokens of every text, or None where the client hung up first.

    Raises: what iterating over the stream raises.
    """

    async def collect() -> list[list[Token]]:
        texts: list[list[Token]] = [[] for _ in stream.requests]
        async for index, token in stream:
            texts[index].append(token)
        return texts

    with stream:
        return await unless_gone(call.request, collect())


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None where the client hung up first; `work` is cancelled then."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()


def common_headers(call: Call, prompts: Sequence[str]) -> dict[str, str]:
    return {
        "x-request-id": call.id,
        "x-compute-type": call.service.settings.backend,
        "x-compute-characters": str(sum(map(len, prompts))),
    }


def plain_headers(
    call: Call, stream: Stream, prompts: Sequence[str], prompt_tokens: int, new_tokens: int
) -> dict[str, str]:
    """TGI's headers, and our timing where it is asked for; the counts are those of the answer. Several texts are told
    as one piece of work.
    """
    now = call.service.clock()
    requests = stream.requests
    queued = requests[0].queued_s
    started = min(queued if request.prefill_started_s is None else request.prefill_started_s for request in requests)
    ended = max(started if request.last_token_s is None else request.last_token_s for request in requests)
    until_queued, until_started, until_ended = (int((at - call.arrived_s) * 1000) for at in (queued, started, ended))
    headers = {
        **common_headers(call, prompts),
        "x-compute-time": f"{now - call.arrived_s:.6f}",
        "x-total-time": milliseconds(now - call.arrived_s),
        # Cut to whole milliseconds where they meet, so that they add up to what the whole is cut to.
        "x-validation-time": str(until_queued),
        "x-queue-time": str(until_started - until_queued),
        "x-inference-time": str(until_ended - until_started),
        "x-time-per-token": milliseconds((ended - started) / new_tokens),
        "x-prompt-tokens": str(prompt_tokens),
        "x-generated-tokens": str(new_tokens),
    }
    if call.wants_timing:
        headers["x-tokenclock-timing"] = orjson.dumps(timing(stream)).decode()
    return headers


def timing(stream: Stream) -> Any:
    """Where the time of one text went; of several, a list."""
    each = [request.timing() for request in stream.requests]
    return each[0] if len(each) == 1 else each


def timing_event(stream: Stream) -> bytes:
    return sse.event(timing(stream), name="tokenclock")


def milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
