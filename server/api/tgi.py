"""TGI's native routes: /generate, /generate_stream, /tokenize.

Shapes, messages and framing are those of text-generation-inference 3.3; docs/wire.md lists every difference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from server.api import sse
from server.api.schemas import ErrorBody, GenerateRequest, GenerateResponse, Parameters, SimpleToken, StreamResponse
from server.backends.base import Limits, Sampling
from server.engine.request import Token
from server.errors import STATUS, RequestError, ValidationError
from server.service import Service, Stream
from server.tokenizer import Tokenizer

MAX_STOP_SEQUENCES = 4
GENERATION_ROUTES = ("/generate", "/generate_stream")
#: TGI's parameters that this server doesn't have, with the value that asks for nothing.
NOT_SUPPORTED = {
    "best_of": 1,
    "typical_p": None,
    "frequency_penalty": None,
    "watermark": False,
    "decoder_input_details": False,
    "top_n_tokens": 0,
    "grammar": None,
    "adapter_id": None,
}
LONG_TEXT = 20_000  # characters; longer texts are tokenized off the event loop

router = APIRouter(
    tags=["TGI"],
    responses={status: {"model": ErrorBody} for status in sorted({status for status, _ in STATUS.values()})},
)


def service_of(request: Request) -> Service:
    return request.app.state.service  # type: ignore[no-any-return]


Served = Annotated[Service, Depends(service_of)]
RequestId = Annotated[str | None, Header(alias="x-request-id", description="echoed; made where absent")]
WantsTiming = Annotated[str | None, Header(alias="x-tokenclock-timing", description="1: say where the time went")]


@router.post("/generate", response_model=GenerateResponse)
async def generate(
    body: GenerateRequest, service: Served, x_request_id: RequestId = None, x_tokenclock_timing: WantsTiming = None
) -> JSONResponse:
    stream = await admit(service, body, x_request_id)
    with stream:
        tokens = [token async for token in stream]
    reply: dict[str, Any] = {"generated_text": full_text(body) + readable(tokens)}
    if body.parameters.details:
        reply["details"] = {
            "finish_reason": tokens[-1].finish,
            "generated_tokens": len(tokens),
            "seed": stream.request.sampling.seed,
            "prefill": [],
            "tokens": [rendered(token, service.tokenizer) for token in tokens],
        }
    headers = {
        "x-request-id": stream.request.id,
        "x-prompt-tokens": str(len(stream.request.token_ids)),
        "x-generated-tokens": str(len(tokens)),
    }
    if x_tokenclock_timing == "1":
        headers["x-tokenclock-timing"] = orjson.dumps(stream.request.timing()).decode()
    return JSONResponse(reply, headers=headers)


@router.post(
    "/generate_stream", responses={200: {"model": StreamResponse, "content": {sse.MEDIA_TYPE: {}}}}, response_model=None
)
async def generate_stream(
    body: GenerateRequest, service: Served, x_request_id: RequestId = None, x_tokenclock_timing: WantsTiming = None
) -> StreamingResponse:
    stream = await admit(service, body, x_request_id)
    return StreamingResponse(
        events(service, body, stream, timing=x_tokenclock_timing == "1"),
        media_type=sse.MEDIA_TYPE,
        headers={"x-request-id": stream.request.id, "x-accel-buffering": "no", "cache-control": "no-cache"},
    )


@router.post("/tokenize", response_model=list[SimpleToken])
async def tokenize(body: GenerateRequest, service: Served) -> Any:
    service.require_ready()
    if not body.inputs:
        raise ValidationError("Input validation error: `inputs` cannot be empty")
    if len(body.inputs) > LONG_TEXT:
        return await run_in_threadpool(service.tokenizer.pieces, body.inputs)
    return service.tokenizer.pieces(body.inputs)


async def events(service: Service, body: GenerateRequest, stream: Stream, timing: bool) -> AsyncIterator[bytes]:
    """The bytes of a stream. A failure after the first byte can only be an event: the status is sent already."""
    texts: list[str] = []
    with stream:
        try:
            async for token in stream:
                if not token.special:
                    texts.append(token.text)
                event: dict[str, Any] = {
                    "index": token.index,
                    "token": rendered(token, service.tokenizer),
                    "generated_text": None,
                    "details": None,
                }
                if token.finish is not None:
                    event["generated_text"] = full_text(body) + "".join(texts)
                    if body.parameters.details:
                        event["details"] = {
                            "finish_reason": token.finish,
                            "generated_tokens": token.index,
                            "seed": stream.request.sampling.seed,
                            "input_length": len(stream.request.token_ids),
                        }
                yield sse.event(event)
        except RequestError as error:
            yield sse.event({"error": str(error), "error_type": STATUS[type(error)][1]})
            return
    if timing:
        yield sse.event(stream.request.timing(), name="tokenclock")


async def admit(service: Service, body: GenerateRequest, request_id: str | None) -> Stream:
    """Validate a request and queue it.

    Raises: ValidationError with TGI's message; Overloaded; Unavailable.
    """
    arrived_s = time.monotonic()
    service.metrics.received()
    service.require_ready()
    limits = service.engine.backend.limits
    sampling = sampling_of(body.parameters, limits)
    if not body.inputs:
        raise ValidationError("Input validation error: `inputs` cannot be empty")
    encode = service.tokenizer.encode
    token_ids = await run_in_threadpool(encode, body.inputs) if len(body.inputs) > LONG_TEXT else encode(body.inputs)
    if body.parameters.truncate is not None:
        token_ids = token_ids[-body.parameters.truncate :]
    max_new_tokens = room(len(token_ids), body.parameters.max_new_tokens, limits)
    return service.open(
        request_id or secrets.token_hex(8),
        tuple(token_ids),
        max_new_tokens,
        sampling,
        tuple(body.parameters.stop),
        arrived_s,
    )


def sampling_of(asked: Parameters, limits: Limits) -> Sampling:
    """Raises: ValidationError where a value is out of TGI's range, or the backend can't do what is asked."""

    def refuse_unless(holds: bool, message: str) -> None:
        if not holds:
            raise ValidationError(f"Input validation error: {message}")

    for name, neutral in NOT_SUPPORTED.items():
        value = getattr(asked, name)
        refuse_unless(
            value is None or value == neutral, f"`{name}` is not supported by this server: leave it out. Given: {value}"
        )
    t, p, k, r = asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty
    refuse_unless(
        t is None or 0 < t < float("inf"),
        f"`temperature` must be strictly positive. Given: {t}; for greedy decoding leave it out",
    )
    refuse_unless(p is None or 0 < p < 1, f"`top_p` must be > 0.0 and < 1.0. Given: {p}; to switch it off leave it out")
    refuse_unless(k is None or k > 0, f"`top_k` must be strictly positive. Given: {k}; to switch it off leave it out")
    refuse_unless(
        r is None or 0 < r < float("inf"),
        f"`repetition_penalty` must be strictly positive. Given: {r}; 1.0 is no penalty",
    )
    refuse_unless(
        asked.max_new_tokens is None or asked.max_new_tokens > 0,
        f"`max_new_tokens` must be strictly positive. Given: {asked.max_new_tokens}",
    )
    refuse_unless(
        asked.truncate is None or 0 < asked.truncate <= limits.max_input_tokens,
        f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {asked.truncate}",
    )
    refuse_unless(
        len(asked.stop) <= MAX_STOP_SEQUENCES,
        f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(asked.stop)}",
    )
    refuse_unless(all(asked.stop), "`stop` cannot hold an empty string: it would end every text at once")
    refuse_unless(
        asked.seed is None or 0 <= asked.seed < 2**64, f"`seed` must be from 0 to 2^64 - 1. Given: {asked.seed}"
    )
    # As in TGI, a warper asks for sampling by itself, and a sampled text reports the seed it was drawn with.
    do_sample = asked.do_sample or any(value is not None for value in (t, p, k))
    seed = (asked.seed if asked.seed is not None else secrets.randbits(63)) if do_sample else None
    sampling = Sampling(do_sample, t, k, p, r, seed, asked.ignore_eos)
    neutral_sampling = Sampling()
    for name in Sampling.__dataclass_fields__:
        asked_for = getattr(sampling, name) != getattr(neutral_sampling, name)
        refuse_unless(
            not asked_for or name in limits.sampling, f"`{name}` is not supported by this backend: leave it out"
        )
    return sampling


def room(input_tokens: int, max_new_tokens: int | None, limits: Limits) -> int:
    """How many new tokens may follow a prompt; without a wish, all that fit.

    Raises: ValidationError where prompt and new tokens pass the compiled length.
    """
    if input_tokens > limits.max_input_tokens:
        raise ValidationError(
            f"Input validation error: `inputs` must have less than {limits.max_input_tokens + 1} tokens. "
            f"Given: {input_tokens}"
        )
    left = limits.max_total_tokens - input_tokens
    if max_new_tokens is not None and max_new_tokens > left:
        raise ValidationError(
            f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {max_new_tokens} `max_new_tokens`; "
            f"shorten the prompt or ask for at most {left}"
        )
    return left if max_new_tokens is None else max_new_tokens


def rendered(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token as TGI shows it: a special one by its name, which is not part of the generated text."""
    text = tokenizer.token(token.id) if token.special else token.text
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}


def readable(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens if not token.special)


def full_text(body: GenerateRequest) -> str:
    return body.inputs if body.parameters.return_full_text else ""
