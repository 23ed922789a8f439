"""The ecosystem's own clients work unmodified: huggingface_hub, old and new, the openai SDK, curl.

Method: the demonstration model over real HTTP; each client's answer is held to what a plain HTTP request gets.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.settings import Settings
from tests.server.conftest import demo_folder, serve  # noqa: F401

HUB_CLIENT = Path(__file__).with_name("hub_client.py")
NEWER_HUB = Path(sys.prefix) / "hub2" / "bin" / "python"  # huggingface_hub 2.x: `make install` puts it there
PROMPT = "The clock"
MESSAGES: Any = [{"role": "user", "content": "What time is it?"}]


@pytest.fixture(scope="module")
def demo(serve: Any, demo_folder: Path) -> Iterator[httpx.Client]:  # noqa: F811
    with serve(Settings(model=str(demo_folder), served_model_name="demo", max_total_tokens=512, threads=1)) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(demo: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def text_of(demo: httpx.Client, route: str, **body: Any) -> str:
    """The greedy text of six tokens, by a plain request."""
    choice = demo.post(route, json={"max_tokens": 6, "temperature": 0, **body}).json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.e2e
@pytest.mark.parametrize("python", [Path(sys.executable), NEWER_HUB], ids=["installed", "2.x"])
def test_huggingface_hub_generates_and_chats_streamed_or_not(demo: httpx.Client, python: Path):
    if not python.exists():
        pytest.skip("huggingface_hub 2.x is not there: make install")
    done = subprocess.run(
        [str(python), str(HUB_CLIENT), str(demo.base_url).rstrip("/")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith("2.") == (python == NEWER_HUB)
    new = text_of(demo, "/v1/completions", prompt=PROMPT)
    generated = found["text_generation"]
    # As behind TGI: the client posts to `/`, where the prompt is part of the text unless told otherwise.
    assert generated["plain"] == generated["full"] == generated["text"] == found["text_generation_by_model"]
    assert generated["plain"] == PROMPT + new
    assert "".join(generated["streamed"]) == "".join(generated["tokens"]) == new
    assert len(generated["streamed"]) == 6
    assert generated["last"] == [PROMPT + new, 6, len(generated["prefill"])]
    assert (generated["reason"], generated["top"], generated["best_of"]) == ("length", [2] * 6, 1)
    assert len(set(generated["drawn"])) == 1, "the seed repeats the text"
    assert generated["refused"].startswith("Input validation error: `inputs` cannot be empty")
    answer = text_of(demo, "/v1/chat/completions", messages=MESSAGES)
    chat = found["chat_completion"]
    assert chat["plain"] == chat["streamed"] == found["chat_completion_as_openai"] == answer
    assert (chat["role"], chat["reason"], chat["stream_reasons"]) == ("assistant", "length", ["length"])
    assert (chat["usage"], chat["last_usage"], chat["logprobs"], chat["top"]) == (6, 6, 6, [2] * 6)


def test_the_openai_sdk_chats(demo: httpx.Client, sdk: openai.OpenAI):
    (model,) = sdk.models.list()
    assert sdk.models.retrieve(model.id).id == "demo"
    plain = sdk.chat.completions.create(
        model=model.id, messages=MESSAGES, max_completion_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = plain.choices
    assert choice.message.content == text_of(demo, "/v1/chat/completions", messages=MESSAGES)
    assert choice.finish_reason == "length"
    assert plain.usage is not None
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + 6
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [len(each.top_logprobs) for each in choice.logprobs.content] == [3] * 6
    spelled = b"".join(bytes(each.bytes or []) for each in choice.logprobs.content)
    assert spelled.decode() == choice.message.content


def test_the_openai_sdk_streams_and_its_accumulator_agrees_with_the_plain_answer(
    demo: httpx.Client, sdk: openai.OpenAI
):
    asked: Any = {"model": "demo", "messages": MESSAGES, "max_completion_tokens": 6, "temperature": 0}
    with sdk.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        stream.until_done()
        whole = stream.current_completion_snapshot
    assert whole.choices[0].message.content == text_of(demo, "/v1/chat/completions", messages=MESSAGES)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    chunks = list(sdk.chat.completions.create(**asked, stream=True))
    assert len(chunks) == 8, "the role, six tokens, the finish reason"
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_openai_sdk_completes_texts_and_token_ids(demo: httpx.Client, sdk: openai.OpenAI):
    asked: Any = {"model": "demo", "max_tokens": 6, "temperature": 0}
    alone = sdk.completions.create(prompt=PROMPT, **asked).choices[0].text
    assert alone == text_of(demo, "/v1/completions", prompt=PROMPT)
    two = sdk.completions.create(prompt=[PROMPT, "Another one"], logprobs=2, echo=True, **asked)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == PROMPT + alone
    ids = [token["id"] for token in demo.post("/tokenize", json={"inputs": PROMPT}).json()]
    assert sdk.completions.create(prompt=ids, **asked).choices[0].text == alone
    chunks = list(sdk.completions.create(prompt=PROMPT, stream=True, extra_body={"ignore_eos": True}, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == alone
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["length"]


def test_the_openai_sdk_raises_its_own_errors(sdk: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="'nope' does not exist") as missing:
        sdk.chat.completions.create(model="nope", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="`temperature` must be") as bad:
        sdk.completions.create(model="demo", prompt="a", temperature=3)
    assert (bad.value.type, bad.value.param) == ("invalid_request_error", "temperature")
    assert bad.value.request_id


def test_the_openai_sdk_sends_back_what_it_was_answered(demo: httpx.Client, sdk: openai.OpenAI):
    asked: Any = {"model": "demo", "max_completion_tokens": 4, "temperature": 0}
    first = sdk.chat.completions.create(messages=MESSAGES, **asked).choices[0].message
    again: Any = [*MESSAGES, first, {"role": "user", "content": "And now?"}]
    second = sdk.chat.completions.create(messages=again, **asked).choices[0].message.content
    plain = [*MESSAGES, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And now?"}]
    assert second == text_of(demo, "/v1/chat/completions", messages=plain, max_tokens=4)


def test_the_timing_of_a_plain_answer_is_in_its_headers(sdk: openai.OpenAI):
    headers = {"x-tokenclock-timing": "1", "x-request-id": "mine"}
    reply = sdk.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, max_completion_tokens=3, extra_headers=headers
    )
    assert json.loads(reply.headers["x-tokenclock-timing"])["request_id"] == reply.headers["x-request-id"] == "mine"


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("route", "body", "events"),
    [
        ("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 6}}, 6),
        ("/", {"inputs": PROMPT, "parameters": {"max_new_tokens": 6}, "stream": True}, 6),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "stream": True}, 7),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 6, "temperature": 0, "stream": True}, 9),
        ("/invocations", {"inputs": PROMPT, "parameters": {"max_new_tokens": 6}, "stream": True}, 6),
    ],
)
def test_curl_reads_every_event_of_a_stream(demo: httpx.Client, route: str, body: Any, events: int):
    command = ["curl", "-sS", "-N", "-i", f"{str(demo.base_url).rstrip('/')}{route}"]
    command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    head, _, stream = done.stdout.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head
    assert stream.count("data: ") == events
    assert stream.endswith("\n\n")
