"""OpenAI's parameters become tasks: the reference's ranges, and what the backend can do.

Source: OpenAI's API reference (openai/openai-openapi); vLLM's for the parameters it added.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from server.api.openai.messages import written
from server.api.openai.schemas import ChatRequest, CompletionRequest, OpenAiRequest
from server.api.tokenizing import off_the_loop
from server.api.validation import (
    TEMPERATURES,
    able,
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
from server.errors import NotServed
from server.tokenizer import Tokenizer

HOTTEST = 2.0
MOST_CHAT_LOGPROBS = 20
MOST_COMPLETION_LOGPROBS = 5
COMPLETION_TOKENS = 16  # OpenAI's default of the older route
#: What huggingface_hub and TGI's own examples call a model they know only by its address.
ANY_MODEL = ("tgi", "dummy")
#: OpenAI's parameters that this server doesn't have, with the values that ask for nothing.
NOT_SUPPORTED: dict[str, tuple[object, ...]] = {
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "tool_prompt": ("",),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
    "suffix": ("",),
    "best_of": (1,),
}


def checked(body: OpenAiRequest, served: str, most_texts: int, prompts: int) -> None:
    """Raises: NotServed, ValidationError, where that needs no model to be seen."""
    if body.model is not None and body.model not in (served, *ANY_MODEL):
        raise NotServed(
            f"The model {reprlib.repr(body.model)} does not exist here: ask for {served!r}, or leave `model` out",
            param="model",
        )
    unsupported(body, {name: neutral for name, neutral in NOT_SUPPORTED.items() if hasattr(body, name)})
    if body.stream_options is not None:
        if not body.stream:
            refuse("stream_options", "is only allowed when `stream` is true")
        if body.stream_options.include_obfuscation:
            refuse("stream_options.include_obfuscation", "is not supported by this server: set it to false")
    n = 1 if body.n is None else body.n
    if n < 1 or n * prompts > most_texts:
        given = f"{n}" if prompts == 1 else f"{n}, with {prompts} prompts"
        refuse("n", f"must be at least 1, and at most {most_texts} texts come of one request. Given: {given}")


async def chat_tasks(body: ChatRequest, engine: Engine, served: str, most_texts: int) -> list[Task]:
    """A task for each choice.

    Raises: RequestError.
    """
    limits, tokenizer = engine.backend.limits, engine.tokenizer
    checked(body, served, most_texts, 1)
    if body.top_logprobs and not body.logprobs:
        refuse("top_logprobs", "needs `logprobs`: set it to true")
    if body.logprobs:
        needs_scores(limits)
    top_n = top_n_of("top_logprobs", body.top_logprobs, MOST_CHAT_LOGPROBS)
    sampling = sampling_of(body, limits, top_n, "top_logprobs")
    text = await written(body.messages, tokenizer)
    token_ids = await off_the_loop(lambda: tokenizer.encode(text, templated=True), len(text))
    return tasks(body, "messages", [(text, token_ids)], sampling, limits)


async def completion_tasks(body: CompletionRequest, engine: Engine, served: str, most_texts: int) -> list[Task]:
    """n tasks for each prompt, one prompt after the other.

    Raises: RequestError.
    """
    limits, tokenizer = engine.backend.limits, engine.tokenizer
    given = listed(body.prompt)
    checked(body, served, most_texts, len(given))
    if body.logprobs is not None:
        needs_scores(limits)
    top_n = top_n_of("logprobs", body.logprobs, MOST_COMPLETION_LOGPROBS)
    echoed = bool(body.echo) and body.logprobs is not None
    sampling = sampling_of(body, limits, top_n, "logprobs", prompt_logprobs=echoed)
    prompts = await off_the_loop(lambda: [tokenized(each, tokenizer, limits) for each in given], sum(map(len, given)))
    return tasks(body, "prompt", prompts, sampling, limits, unless_told=COMPLETION_TOKENS)


def listed(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """One prompt or many, as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        refuse("prompt", "cannot be an empty list")
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def tokenized(prompt: str | list[int], tokenizer: Tokenizer, limits: Limits) -> tuple[str, list[int]]:
    """A prompt's text and token ids. Ids are taken as they stand; a text gets the special tokens the model wants."""
    if isinstance(prompt, str):
        return prompt, tokenizer.encode(prompt)
    checked_ids(prompt, limits, "prompt")
    return tokenizer.decode(prompt), prompt


def needs_scores(limits: Limits) -> None:
    if not limits.tells_scores:
        refuse("logprobs", "is not supported by this backend: leave it out")


def top_n_of(name: str, asked: int | None, most: int) -> int | None:
    """How many of the likeliest tokens to tell of; None where there are none to tell of."""
    if asked is not None and not 0 <= asked <= most:
        refuse(name, f"must be from 0 to {most}. Given: {asked}")
    return asked or None


def sampling_of(
    body: OpenAiRequest, limits: Limits, top_n: int | None, logprobs: str, prompt_logprobs: bool = False
) -> Sampling:
    """Raises: ValidationError where a value is out of range, or the backend can't do what is asked."""
    t, p, k = body.temperature, body.top_p, body.top_k
    if t is not None and (not 0 <= t <= HOTTEST or 0 < t < TEMPERATURES[0]):
        refuse("temperature", f"must be 0, or from {TEMPERATURES[0]:g} to {HOTTEST:g}. Given: {t}; 0 is greedy")
    if p is not None and not 0 < p <= 1:
        refuse("top_p", f"must be > 0.0 and <= 1.0. Given: {p}")
    if k is not None and k < -1:
        refuse("top_k", f"must be at least 1, or 0 or -1 to switch it off. Given: {k}")
    checked_penalties(
        body.repetition_penalty,
        {"frequency_penalty": body.frequency_penalty, "presence_penalty": body.presence_penalty},
    )
    checked_seed(body.seed, least=-(2**63))
    checked_stop(stops(body))
    if body.min_tokens is not None and body.min_tokens < 0:
        refuse("min_tokens", f"must be at least 0. Given: {body.min_tokens}")
    sampling = Sampling(
        do_sample=t != 0,
        temperature=t or None,
        top_k=k if k is not None and k > 0 else None,
        top_p=p if p != 1 else None,
        repetition_penalty=body.repetition_penalty if body.repetition_penalty != 1 else None,
        frequency_penalty=body.frequency_penalty or None,
        presence_penalty=body.presence_penalty or None,
        seed=body.seed,
        ignore_eos=bool(body.ignore_eos),
        min_new_tokens=body.min_tokens or None,
        top_n_tokens=top_n,
        prompt_logprobs=prompt_logprobs,
    )
    if sampling.do_sample and "do_sample" not in limits.sampling:
        refuse("temperature", "other than 0 is not supported by this backend: set it to 0")
    called = {"top_n_tokens": logprobs, "prompt_logprobs": "echo", "min_new_tokens": "min_tokens"}
    return able(sampling, limits, called)


def tasks(
    body: ChatRequest | CompletionRequest,
    param: str,
    prompts: Sequence[tuple[str, Sequence[int]]],
    sampling: Sampling,
    limits: Limits,
    unless_told: int | None = None,
) -> list[Task]:
    """n tasks for each prompt that came as `param`, of at most `unless_told` tokens where no number is asked for."""
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wanted = getattr(body, name)
    if wanted is not None and wanted < 1:
        refuse(name, f"must be at least 1. Given: {wanted}")
    made, stop = [], stops(body)
    operation = "chat" if isinstance(body, ChatRequest) else "text_completion"
    for text, token_ids in prompts:
        if not token_ids:
            refuse(param, "cannot be empty")
        new_tokens = room(len(token_ids), wanted, limits, param, name)
        if wanted is None and unless_told is not None:
            new_tokens = min(new_tokens, unless_told)
        checked_ids(token_ids, limits, param)
        if body.min_tokens is not None and body.min_tokens > new_tokens:
            refuse(
                "min_tokens", f"must be at most {new_tokens}, which is all that may follow. Given: {body.min_tokens}"
            )
        made += [
            Task(text, tuple(token_ids), new_tokens, drawn(sampling, limits, choice), stop, operation)
            for choice in range(body.n or 1)
        ]
    return made


def stops(body: OpenAiRequest) -> tuple[str, ...]:
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
