"""What a request asks for is what the backend is told: every parameter, of every protocol.

Method: a scripted backend that claims to honour everything and keeps the `Sampling` it was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.backends.base import Sampling, Score, Step
from server.backends.sampling import HONOURED
from server.engine.request import Task
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.scripted import ScriptedBackend


class Listening(ScriptedBackend):
    def __init__(self) -> None:
        super().__init__()
        self.limits = replace(self.limits, sampling=HONOURED)
        self.told: list[Sampling] = []

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        self.told.append(sampling)
        step = super().prefill(slot, token_ids, sampling)
        assert step is not None
        prompt = tuple(Score(-1.0) for _ in token_ids[1:]) if sampling.prompt_logprobs else ()
        return replace(step, score=Score(-1.0), prompt=prompt)

    def decode(self) -> Mapping[int, Step]:
        return {slot: replace(step, score=Score(-2.0)) for slot, step in super().decode().items()}


@pytest.fixture
def backend() -> Listening:
    return Listening()


@pytest.fixture
def client(serve: Any, splitting_folder: Path, backend: Listening) -> Iterator[httpx.Client]:
    tokenizer = Tokenizer.load(str(splitting_folder))
    tokenizer._whole.chat_template = "{{ messages[0]['content'] }}"
    with serve(Settings(), lambda _: (backend, tokenizer)) as client:
        yield client


TGI = {
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.25,
    "typical_p": 0.75,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "seed": 9,
    "ignore_eos": True,
    "top_n_tokens": 2,
    "decoder_input_details": True,
}
OPENAI = {
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.25,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.75,
    "seed": 9,
    "ignore_eos": True,
    "min_tokens": 4,
}
SAMPLING = Sampling(
    do_sample=True,
    temperature=0.5,
    top_k=3,
    top_p=0.25,
    repetition_penalty=1.5,
    frequency_penalty=-0.5,
    seed=9,
    ignore_eos=True,
)
OF_OPENAI = replace(SAMPLING, presence_penalty=0.75, min_new_tokens=4)
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        (
            "/generate",
            {"inputs": "hello", "parameters": {"max_new_tokens": 5, **TGI}},
            replace(SAMPLING, typical_p=0.75, top_n_tokens=2, prompt_logprobs=True),
        ),
        (
            "/v1/completions",
            {"prompt": "hello", "max_tokens": 5, "logprobs": 2, "echo": True, **OPENAI},
            replace(OF_OPENAI, top_n_tokens=2, prompt_logprobs=True),
        ),
        (
            "/v1/chat/completions",
            {"messages": MESSAGES, "max_tokens": 5, "logprobs": True, "top_logprobs": 7, **OPENAI},
            replace(OF_OPENAI, top_n_tokens=7),
        ),
        ("/invocations", {"prompt": "hello", "max_tokens": 5, **OPENAI}, OF_OPENAI),
    ],
)
def test_every_parameter_reaches_the_backend(
    client: httpx.Client, backend: Listening, route: str, body: Any, expected: Sampling
):
    reply = client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    assert backend.told == [expected]


def test_the_lists_above_name_every_field_of_a_sampling():
    neutral, told = Sampling(), (SAMPLING, OF_OPENAI, Sampling(typical_p=0.75, top_n_tokens=2, prompt_logprobs=True))
    for field in fields(Sampling):
        assert any(getattr(each, field.name) != getattr(neutral, field.name) for each in told), field.name


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 1}}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 1, "temperature": 0}),
        (
            "/v1/completions",
            {"prompt": "hello", "max_tokens": 1, "temperature": 0, "top_p": 1, "top_k": 0, "presence_penalty": 0},
        ),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "temperature": 0, "n": 1}),
    ],
)
def test_who_asks_for_nothing_gets_the_greedy_text(client: httpx.Client, backend: Listening, route: str, body: Any):
    assert client.post(route, json=body).status_code == 200
    assert backend.told == [Sampling()]


def test_openais_routes_sample_unless_told_otherwise_each_time_with_another_seed(
    client: httpx.Client, backend: Listening
):
    for _ in range(3):
        client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 1})
    assert [replace(each, seed=None) for each in backend.told] == [Sampling(do_sample=True)] * 3
    assert len({each.seed for each in backend.told}) == 3


def test_a_greedy_text_has_no_seed(client: httpx.Client):
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 1, "seed": 9, "details": True}}
    assert client.post("/generate", json=body).json()["details"]["seed"] is None


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_stop_sequences_may_be_one_string_or_several(client: httpx.Client, backend: Listening, route: str):
    # The scripted backend says the prompt's own text, from its second character on.
    prompt: dict[str, Any] = {"messages": MESSAGES} if "chat" in route else {"prompt": "hello"}
    for stop in ("lo", ["x", "lo"]):
        choice = client.post(route, json={**prompt, "max_tokens": 9, "stop": stop}).json()["choices"][0]
        text = choice["message"]["content"] if "chat" in route else choice["text"]
        assert (text, choice["finish_reason"]) == ("el", "stop")


def test_a_text_without_tokens_costs_nothing(serve: Any, splitting_folder: Path):
    from tokenizers import normalizers

    tokenizer = Tokenizer.load(str(splitting_folder))
    tokenizer.fast.normalizer = normalizers.Strip()
    with serve(Settings(), lambda _: (ScriptedBackend(), tokenizer)) as client:
        reply = client.post("/generate", json={"inputs": "  ", "parameters": {}})
        assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
        assert "the tokenizer finds no tokens in it" in reply.json()["error"]
        assert client.post("/v1/completions", json={"prompt": "  ", "temperature": 0}).status_code == 400
        assert client.get("/health").status_code == 200
    with pytest.raises(ValueError, match="without tokens"):
        Task("", (), 1, Sampling())


@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_token_that_the_model_has_not_got_is_refused_before_it_reaches_the_model(
    client: httpx.Client, backend: Listening, route: str
):
    # A tokenizer may have been given more tokens than the model has rows for.
    backend.limits = replace(backend.limits, vocabulary=10)
    bodies: dict[str, Any] = {
        "/generate": {"inputs": "hello"},
        "/v1/completions": {"prompt": "hello"},
        "/v1/chat/completions": {"messages": MESSAGES},
    }
    reply = client.post(route, json=bodies[route])
    assert reply.status_code in (400, 422)
    assert "the model's are from 0 to 9" in reply.text
    assert backend.told == []


def test_a_chat_tells_the_same_logprobs_streamed_or_not(client: httpx.Client):
    # The scripted backend says "ello" and begins again; "lo!" never comes, so that "lo" is held back for a while, and
    # in the second text until its end.
    for content in ("hello", "hello</s>"):
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 6}
        asked |= {"temperature": 0, "logprobs": True, "stop": "lo!"}
        whole = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
        stream = client.post("/v1/chat/completions", json=asked | {"stream": True}).text
        chunks = [json.loads(line[6:])["choices"][0] for line in stream.split("\n") if line.startswith("data: {")]
        streamed = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
        assert streamed == whole["logprobs"]["content"]
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
        assert whole["finish_reason"] == ("stop" if "</s>" in content else "length")
        assert len(streamed) == (4 if "</s>" in content else 6)
