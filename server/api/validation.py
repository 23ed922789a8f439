"""What a request may ask for: TGI's ranges in TGI's words, and what the backend can do.

Each message begins as TGI's and goes on with the value or the remedy.
Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/validation.rs.
"""

from __future__ import annotations

import reprlib
import secrets

from server.api.schemas import Parameters
from server.backends.base import Limits, Sampling
from server.errors import ValidationError

MAX_STOP_SEQUENCES = 4
LONGEST_ID = 128
TEMPERATURES = (1e-6, 1e6)  # logits of a thousand stay finite in fp32
PENALTIES = (1e-3, 1e3)
#: TGI's parameters that this server doesn't have, with the value that asks for nothing.
NOT_SUPPORTED = {
    "best_of": 1,
    "typical_p": None,
    "frequency_penalty": 0,
    "watermark": False,
    "decoder_input_details": False,
    "top_n_tokens": 0,
    "grammar": None,
    "adapter_id": None,
}


def sampling_of(asked: Parameters, limits: Limits) -> Sampling:
    """Raises: ValidationError where a value is out of TGI's range, or the backend can't do what is asked."""

    def refuse_unless(holds: bool, message: str) -> None:
        if not holds:
            raise ValidationError(f"Input validation error: {message}")

    for name, neutral in NOT_SUPPORTED.items():
        value = getattr(asked, name)
        refuse_unless(
            value is None or value == neutral,
            f"`{name}` is not supported by this server: leave it out. Given: {reprlib.repr(value)}",
        )
    t, p, k, r = asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty
    for name, value, (least, most), hint in (
        ("temperature", t, TEMPERATURES, "for greedy decoding leave it out"),
        ("repetition_penalty", r, PENALTIES, "1.0 is no penalty"),
    ):
        refuse_unless(value is None or value > 0, f"`{name}` must be strictly positive. Given: {value}; {hint}")
        refuse_unless(
            value is None or least <= value <= most,
            f"`{name}` must be from {least:g} to {most:g}, or logits overflow. Given: {value}",
        )
    refuse_unless(p is None or 0 < p < 1, f"`top_p` must be > 0.0 and < 1.0. Given: {p}; to switch it off leave it out")
    refuse_unless(k is None or k > 0, f"`top_k` must be strictly positive. Given: {k}; to switch it off leave it out")
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


def checked_id(request_id: str | None) -> str | None:
    """Raises: ValidationError where an x-request-id is no short word that can be echoed."""
    if request_id is None or (0 < len(request_id) <= LONGEST_ID and request_id.isascii() and request_id.isprintable()):
        return request_id
    raise ValidationError(
        f"Input validation error: `x-request-id` must be 1 to {LONGEST_ID} printable ASCII characters. "
        f"Given: {reprlib.repr(request_id)}"
    )


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
