"""TGI's parameters become tasks: its ranges in its words, and what the backend can do.

Each message begins as TGI's and goes on with the value or the remedy.
Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/validation.rs.
"""

from __future__ import annotations

from server.api.tgi.schemas import GenerateRequest, Parameters
from server.api.tokenizing import off_the_loop
from server.api.validation import (
    TEMPERATURES,
    able,
    bounded,
    checked_ids,
    checked_penalties,
    checked_seed,
    checked_stop,
    drawn,
    refuse,
    room,
    unsupported,
)
from server.backends.base import Limits, Sampling
from server.engine.engine import Engine
from server.engine.request import Task
from server.errors import ValidationError

MAX_TOP_N_TOKENS = 5
#: TGI's parameters that this server doesn't have, with the values that ask for nothing.
NOT_SUPPORTED: dict[str, tuple[object, ...]] = {"watermark": (False,), "grammar": (), "adapter_id": ()}
#: TGI's names of what a `Sampling` calls otherwise.
CALLED = {"prompt_logprobs": "decoder_input_details"}


async def tasks_of(body: GenerateRequest, engine: Engine, streamed: bool, most_texts: int) -> list[Task]:
    """One task, or `best_of` of them.

    Raises: ValidationError with TGI's message.
    """
    asked, limits, tokenizer = body.parameters, engine.backend.limits, engine.tokenizer
    best_of = checked_best_of(asked, limits, streamed, most_texts)
    sampling = sampling_of(asked, limits)
    if not body.inputs:
        refuse("inputs", "cannot be empty")
    if asked.truncate is not None and not 0 < asked.truncate <= limits.max_input_tokens:
        refuse(
            "truncate",
            f"must be strictly positive and less than {limits.max_input_tokens + 1}. Given: {asked.truncate}",
        )
    token_ids = await off_the_loop(lambda: tokenizer.encode(body.inputs), len(body.inputs))
    token_ids = token_ids[-asked.truncate :] if asked.truncate else token_ids
    if not token_ids:
        refuse("inputs", "cannot be empty: the tokenizer finds no tokens in it")
    new_tokens = room(len(token_ids), asked.max_new_tokens, limits, "inputs", "max_new_tokens")
    checked_ids(token_ids, limits, "inputs")
    return [
        Task(body.inputs, tuple(token_ids), new_tokens, drawn(sampling, limits), tuple(asked.stop))
        for _ in range(best_of)
    ]


def checked_best_of(asked: Parameters, limits: Limits, streamed: bool, most: int) -> int:
    best_of = 1 if asked.best_of is None else asked.best_of
    if streamed and best_of != 1:
        refuse("best_of", f"!= 1 is not supported when streaming tokens. Given: {best_of}")
    if streamed and asked.decoder_input_details:
        refuse("decoder_input_details", "== true is not supported when streaming tokens")
    if not 0 < best_of <= most:
        refuse("best_of", f"must be > 0 and <= {most}. Given: {best_of}")
    if best_of > 1:
        if not samples(asked):
            raise ValidationError("you must use sampling when `best_of` is > 1: set `do_sample`", param="best_of")
        if asked.seed is not None:
            refuse("seed", "must not be set when `best_of` > 1")
        if not limits.tells_scores:
            refuse("best_of", "is not supported by this backend: leave it out")
    return best_of


def samples(asked: Parameters) -> bool:
    """As in TGI, a warper asks for sampling by itself."""
    return asked.do_sample or any(
        value is not None for value in (asked.temperature, asked.top_k, asked.top_p, asked.typical_p)
    )


def sampling_of(asked: Parameters, limits: Limits) -> Sampling:
    """Raises: ValidationError where a value is out of TGI's range, or the backend can't do what is asked."""
    unsupported(asked, NOT_SUPPORTED)
    if asked.temperature is not None and asked.temperature <= 0:
        refuse(
            "temperature", f"must be strictly positive. Given: {asked.temperature}; for greedy decoding leave it out"
        )
    bounded("temperature", asked.temperature, TEMPERATURES)
    checked_penalties(asked.repetition_penalty, {"frequency_penalty": asked.frequency_penalty})
    for name, share in (("top_p", asked.top_p), ("typical_p", asked.typical_p)):
        if share is not None and not 0 < share < 1:
            refuse(name, f"must be > 0.0 and < 1.0. Given: {share}; to switch it off leave it out")
    if asked.top_k is not None and asked.top_k <= 0:
        refuse("top_k", f"must be strictly positive. Given: {asked.top_k}; to switch it off leave it out")
    if asked.max_new_tokens is not None and asked.max_new_tokens <= 0:
        refuse("max_new_tokens", f"must be strictly positive. Given: {asked.max_new_tokens}")
    checked_stop(asked.stop)
    checked_seed(asked.seed)
    if asked.top_n_tokens is not None and not 0 <= asked.top_n_tokens <= MAX_TOP_N_TOKENS:
        refuse("top_n_tokens", f"must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {asked.top_n_tokens}")
    sampling = Sampling(
        do_sample=samples(asked),
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        typical_p=asked.typical_p,
        repetition_penalty=asked.repetition_penalty if asked.repetition_penalty != 1 else None,
        frequency_penalty=asked.frequency_penalty or None,
        seed=asked.seed,
        ignore_eos=asked.ignore_eos,
        top_n_tokens=asked.top_n_tokens or None,
        prompt_logprobs=asked.decoder_input_details,
    )
    return able(sampling, limits, CALLED)
