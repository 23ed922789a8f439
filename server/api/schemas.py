"""The bodies of TGI's routes, as types. What the values may be is decided in `server.api.tgi`, with TGI's own messages.

Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/lib.rs (GenerateRequest, GenerateParameters).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair; no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(encodable)]


class Parameters(BaseModel):
    """`parameters` of a request. Unknown names are refused, so that no option is silently ignored."""

    model_config = ConfigDict(extra="forbid")

    max_new_tokens: int | None = Field(None, description="default: what max_total_tokens leaves")
    do_sample: bool = False
    temperature: float | None = Field(None, description="> 0")
    top_k: int | None = Field(None, description=">= 1")
    top_p: float | None = Field(None, description="> 0 and < 1")
    repetition_penalty: float | None = Field(None, description="> 0")
    seed: int | None = Field(None, description="0 to 2^64 - 1")
    stop: list[Text] = Field(default_factory=list, description="at most 4")
    truncate: int | None = Field(None, description="keep the last so many prompt tokens")
    return_full_text: bool | None = Field(None, description="put the prompt before the generated text")
    details: bool = Field(False, description="add counts, seed and finish reason")
    ignore_eos: bool = Field(False, description="our addition: end-of-sequence is never chosen")
    # Known to TGI, not to this server: refused by name when asked for.
    best_of: int | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    watermark: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int | None = None
    grammar: Any | None = None
    adapter_id: str | None = None


class GenerateRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inputs: Text
    parameters: Parameters = Field(
        # TGI: no `parameters` at all samples, `parameters: {}` doesn't.
        default_factory=lambda: Parameters(do_sample=True)
    )


class OutputToken(BaseModel):
    id: int
    text: str
    logprob: float | None
    special: bool


class Details(BaseModel):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[OutputToken]
    tokens: list[OutputToken]


class GenerateResponse(BaseModel):
    generated_text: str
    details: Details | None = None


class StreamDetails(BaseModel):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(BaseModel):
    """One event of /generate_stream; `generated_text` is set on the last token only."""

    index: int
    token: OutputToken
    generated_text: str | None
    details: StreamDetails | None


class SimpleToken(BaseModel):
    id: int
    text: str
    start: int
    stop: int


class ErrorBody(BaseModel):
    error: str
    error_type: str
