"""The bodies of TGI's routes, as types. What the values may be is decided in `server.api.tgi.parameters`.

Source: huggingface/text-generation-inference 3.3.6-dev0, router/src/lib.rs (GenerateRequest, GenerateParameters).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from server.api.body import FIRST_ERROR, Body, limited


class Parameters(Body):
    max_new_tokens: int | None = limited("default: what max_total_tokens leaves", minimum=1)
    do_sample: bool = False
    temperature: float | None = limited("divides the logits", minimum=1e-6, maximum=1e6)
    top_k: int | None = limited("keep the k likeliest", minimum=1)
    top_p: float | None = limited("keep the likeliest up to p", exclusiveMinimum=0, exclusiveMaximum=1)
    typical_p: float | None = limited("keep the most typical up to p", exclusiveMinimum=0, exclusiveMaximum=1)
    repetition_penalty: float | None = limited("1 is none", minimum=1e-3, maximum=1e3)
    frequency_penalty: float | None = limited("for every time a token was generated", minimum=-2, maximum=2)
    best_of: int | None = limited("generate so many texts and give the likeliest; needs sampling", minimum=1)
    seed: int | None = limited("drawn where absent", minimum=0, maximum=2**64 - 1)
    stop: Annotated[list[Annotated[str, Field(json_schema_extra={"minLength": 1})]], FIRST_ERROR] = Field(
        default_factory=list, description="end the text with one of these", json_schema_extra={"maxItems": 4}
    )
    truncate: int | None = limited("keep the last so many prompt tokens", minimum=1)
    return_full_text: bool | None = Field(None, description="put the prompt before the generated text")
    details: bool = Field(False, description="add counts, seed and finish reason")
    decoder_input_details: bool = Field(False, description="add the prompt's tokens and their log probabilities")
    top_n_tokens: int | None = limited("add the likeliest tokens of every step", minimum=0, maximum=5)
    ignore_eos: bool = Field(False, description="our addition: end-of-sequence is never chosen")
    # Known to TGI, not to this server: refused by name when asked for.
    watermark: bool = Field(False, json_schema_extra={"const": False})
    grammar: Any | None = Field(None, json_schema_extra={"type": "null"})
    adapter_id: str | None = Field(None, json_schema_extra={"type": "null"})


class GenerateRequest(Body):
    inputs: str = Field(json_schema_extra={"minLength": 1})
    parameters: Parameters = Field(
        # TGI: no `parameters` at all samples, `parameters: {}` doesn't.
        default_factory=lambda: Parameters(do_sample=True)
    )


class CompatGenerateRequest(GenerateRequest):
    """The body of `/` and of SageMaker's `/invocations`."""

    stream: bool = False


class PrefillToken(BaseModel):
    id: int
    text: str
    logprob: float | None


class OutputToken(PrefillToken):
    special: bool


class BestOfSequence(BaseModel):
    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[OutputToken]
    top_tokens: list[list[OutputToken]] = []


class Details(BaseModel):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[OutputToken]
    best_of_sequences: list[BestOfSequence] = []
    top_tokens: list[list[OutputToken]] = []


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
    top_tokens: list[OutputToken] = []
    generated_text: str | None
    details: StreamDetails | None


class SimpleToken(BaseModel):
    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(BaseModel):
    tokenize_response: list[SimpleToken]
    templated_text: str


class ErrorBody(BaseModel):
    error: str
    error_type: str
