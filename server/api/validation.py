"""What every protocol checks alike: does a prompt fit, and can the backend do what is asked. Names are the caller's."""

from __future__ import annotations

import math
import reprlib
import secrets
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from server.backends.base import Limits, Sampling
from server.errors import ValidationError

MAX_STOP_SEQUENCES = 4
TEMPERATURES = (1e-6, 1e6)  # logits of a thousand stay finite in fp32
PENALTIES = (1e-3, 1e3)
ADDITIVE_PENALTIES = (-2.0, 2.0)


def refuse(param: str, message: str) -> NoReturn:
    """Raises: ValidationError; `message` follows the parameter's name."""
    raise ValidationError(f"`{param}` {message}", param=param)


def unsupported(asked: object, table: Mapping[str, Container[object]], where: str = "") -> None:
    """Raises: ValidationError where a parameter of `table` has another value than the listed ones, which ask for
    nothing; None always does.
    """
    for name, neutral in table.items():
        value = getattr(asked, name)
        if value is not None and value not in neutral:
            refuse(where + name, f"is not supported by this server: leave it out. Given: {reprlib.repr(value)}")


def checked_penalties(repetition: float | None, additive: Mapping[str, float | None]) -> None:
    """Raises: ValidationError where a penalty is out of range."""
    if repetition is not None and repetition <= 0:
        refuse("repetition_penalty", f"must be strictly positive. Given: {repetition}; 1.0 is no penalty")
    bounded("repetition_penalty", repetition, PENALTIES)
    least, most = ADDITIVE_PENALTIES
    for name, value in additive.items():
        if value is not None and not least <= value <= most:
            refuse(name, f"must be >= {least} and <= {most}. Given: {value}")


def bounded(name: str, value: float | None, bounds: tuple[float, float]) -> None:
    least, most = bounds
    if value is not None and not least <= value <= most:
        refuse(name, f"must be from {least:g} to {most:g}, or logits overflow. Given: {value}")


def checked_seed(seed: int | None, least: int = 0) -> None:
    if seed is not None and not least <= seed < 2**64:
        refuse("seed", f"must be from {'0' if least == 0 else '-2^63'} to 2^64 - 1. Given: {seed}")


def checked_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_SEQUENCES:
        refuse("stop", f"supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(stop)}")
    if not all(stop):
        refuse("stop", "cannot hold an empty string: it would end every text at once")


def able(sampling: Sampling, limits: Limits, called: Mapping[str, str]) -> Sampling:
    """`sampling`, where the backend honours all of it; `called` gives the protocol's names for its fields.

    Raises: ValidationError naming the parameter.
    """
    neutral = Sampling()
    for name in Sampling.__dataclass_fields__:
        value, (least, most) = getattr(sampling, name), limits.ranges.get(name, (-math.inf, math.inf))
        if value != getattr(neutral, name) and name not in limits.sampling:
            refuse(called.get(name, name), "is not supported by this backend: leave it out")
        if value is not None and not least <= value <= most:
            refuse(called.get(name, name), f"must be from {least:g} to {most:g} with this backend. Given: {value}")
    return sampling


def drawn(sampling: Sampling, limits: Limits, choice: int = 0) -> Sampling:
    """`sampling` with the seed of a prompt's text number `choice`: the caller's plus that number, or a random one."""
    if not sampling.do_sample or "seed" not in limits.sampling:
        return replace(sampling, seed=None)
    seed = secrets.randbits(63) if sampling.seed is None else (sampling.seed + choice) % 2**64
    return replace(sampling, seed=seed)


def checked_ids(token_ids: Sequence[int], limits: Limits, param: str) -> None:
    """Raises: ValidationError where a token id is none of the model's."""
    if any(not 0 <= token_id < limits.vocabulary for token_id in token_ids):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < limits.vocabulary)
        refuse(param, f"holds the token id {wrong}; the model's are from 0 to {limits.vocabulary - 1}")


def room(input_tokens: int, wanted: int | None, limits: Limits, prompt: str, new: str) -> int:
    """How many new tokens may follow a prompt; without a wish, all that fit.

    Raises: ValidationError where prompt and new tokens pass the compiled length.
    """
    left = limits.max_total_tokens - input_tokens
    if wanted is not None and wanted > left:
        remedy = f"shorten the prompt or ask for at most {left}" if left > 0 else "shorten the prompt"
        refuse(
            prompt,
            f"tokens + `{new}` must be <= {limits.max_total_tokens}. Given: {input_tokens} `{prompt}` tokens and "
            f"{wanted} `{new}`; {remedy}",
        )
    if input_tokens > limits.max_input_tokens:
        refuse(prompt, f"must have less than {limits.max_input_tokens + 1} tokens. Given: {input_tokens}")
    return left if wanted is None else wanted
