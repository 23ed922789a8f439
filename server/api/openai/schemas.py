"""The bodies of OpenAI's routes, as types. What the values may be is decided in `server.api.openai.parameters`.

Source: openai/openai-openapi (CreateChatCompletionRequest, CreateCompletionRequest); `ignore_eos`, `min_tokens`,
`top_k` and `repetition_penalty` are spelled as in vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, model_validator

from server.api.body import FIRST_ERROR, Body, described, limited

Refused = Annotated[Any, Field(description="not supported: may be given where it asks for nothing")]


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="one more chunk, with the counts of the whole request")
    continuous_usage_stats: bool | None = Field(None, description="vLLM's: the counts so far in every chunk")
    include_obfuscation: bool | None = Field(None, description="only false: nothing is obfuscated")


class OpenAiRequest(Body):
    """What both routes take."""

    model: str | None = Field(None, description="the served model; may be left out")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = limited("texts for each prompt; default 1", minimum=1)
    temperature: float | None = limited("0 is greedy; default 1", minimum=0, maximum=2)
    top_p: float | None = limited("default 1", exclusiveMinimum=0, maximum=1)
    stop: Annotated[
        str | Annotated[list[str], FIRST_ERROR] | None, described("must be a string or a list of strings")
    ] = Field(None, description="at most 4; not part of the text")
    seed: int | None = limited("drawn where absent", minimum=-(2**63), maximum=2**64 - 1)
    frequency_penalty: float | None = limited("for every time a token was generated", minimum=-2, maximum=2)
    presence_penalty: float | None = limited("for a token that was generated", minimum=-2, maximum=2)
    top_k: int | None = limited("vLLM's: keep the k likeliest; 0 or -1 is off", minimum=-1)
    repetition_penalty: float | None = limited("vLLM's: 1 is none", minimum=1e-3, maximum=1e3)
    min_tokens: int | None = limited("vLLM's: no end of text and no stop before so many", minimum=0)
    ignore_eos: bool | None = Field(None, description="vLLM's name; here end-of-sequence is never chosen")
    user: str | None = Field(None, description="changes nothing")
    # Known to OpenAI, not to this server: refused by name when asked for.
    logit_bias: Refused = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Annotated[
        str | Annotated[list[TextPart], FIRST_ERROR] | None,
        described("must be a string, or a list of parts of type text"),
    ] = Field(description="null only of an assistant")
    name: str | None = None
    tool_call_id: str | None = None
    # What OpenAI's own assistant messages bring along: refused by name unless it is null or empty.
    refusal: Refused = None
    tool_calls: Refused = None
    function_call: Refused = None
    audio: Refused = None
    annotations: Refused = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("`content` may be null only of an assistant")
        return self


class ChatRequest(OpenAiRequest):
    messages: Annotated[list[Message], Field(min_length=1), FIRST_ERROR]
    max_tokens: int | None = limited("deprecated by OpenAI for the next one", minimum=1)
    max_completion_tokens: int | None = limited("default: what max_total_tokens leaves", minimum=1)
    logprobs: bool | None = None
    top_logprobs: int | None = limited("with `logprobs`: the likeliest tokens of every step", minimum=0, maximum=20)
    safety_identifier: str | None = Field(None, description="changes nothing")
    prompt_cache_key: str | None = Field(None, description="changes nothing")
    metadata: dict[str, Any] | None = Field(None, description="changes nothing")
    # Known to OpenAI, not to this server: refused by name when asked for.
    tools: Refused = None
    tool_choice: Refused = None
    tool_prompt: Refused = None
    parallel_tool_calls: Refused = None
    functions: Refused = None
    function_call: Refused = None
    response_format: Refused = None
    modalities: Refused = None
    audio: Refused = None
    prediction: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    store: Refused = None
    service_tier: Refused = None
    web_search_options: Refused = None


Prompt = str | list[str] | list[int] | list[list[int]]


def prompt(said: Any) -> Prompt:
    """Any of the four; pydantic would try them all on every element of a long list, and keep the others waiting."""
    if isinstance(said, str):
        return said
    if isinstance(said, list):
        kinds = {type(each) for each in said}
        if kinds in ({str}, {int}, set()):
            return said
        if kinds == {list} and {type(token_id) for each in said for token_id in each} <= {int}:
            return said
    raise ValueError("must be a string, a list of strings, token ids, or a list of lists of them")


class CompletionRequest(OpenAiRequest):
    prompt: Annotated[Prompt, PlainValidator(prompt, json_schema_input_type=Prompt)]
    max_tokens: int | None = limited("default 16, as OpenAI has it", minimum=1)
    max_completion_tokens: int | None = limited("chat's name for it; some clients send both", minimum=1)
    logprobs: int | None = limited("the likeliest tokens of every step, and the chosen one", minimum=0, maximum=5)
    echo: bool | None = Field(None, description="put the prompt before the text")
    # Known to OpenAI, not to this server: refused by name when asked for.
    suffix: Refused = None
    best_of: Refused = None


# Answers, for OpenAPI.


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = None


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ProblemBody(BaseModel):
    error: Problem
