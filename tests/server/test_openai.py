"""OpenAI's routes answer in OpenAI's shapes, and refuse in them: one sentence, the parameter to blame, a status of 4xx.

Method: the real app with the demonstration model, over real HTTP; expected text from the same model over TGI's route
and from transformers' own chat template; the shapes themselves are held by tests/contract.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engine.engine import FAILURES
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.scripted import ScriptedBackend

PROMPT = "We measure the time to the first word because"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What time is it?"}]


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/completions", json={"prompt": PROMPT, "ignore_eos": True, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def chunks(client: httpx.Client, route: str, **body: Any) -> list[dict[str, Any]]:
    reply = client.post(route, json={"stream": True, "ignore_eos": True, **body})
    assert reply.status_code == 200, reply.text
    *events, done = [block.removeprefix("data: ") for block in reply.text.strip().split("\n\n")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def greedy(client: httpx.Client, tokens: int, inputs: str = PROMPT) -> str:
    parameters = {"max_new_tokens": tokens, "ignore_eos": True}
    return client.post("/generate", json={"inputs": inputs, "parameters": parameters}).json()["generated_text"]


def test_temperature_0_is_the_greedy_text_of_the_other_protocol(demo: httpx.Client):
    assert complete(demo, max_tokens=12, temperature=0)["choices"][0]["text"] == greedy(demo, 12)


def test_a_chat_is_the_completion_of_what_transformers_makes_of_the_template(demo: httpx.Client, demo_folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chat = demo.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 8, "temperature": 0}).json()
    assert (
        chat["choices"][0]["message"]["content"]
        == complete(demo, prompt=ids, max_tokens=8, temperature=0, ignore_eos=False)["choices"][0]["text"]
    )
    assert chat["usage"]["prompt_tokens"] == len(ids)
    told = demo.post("/chat_tokenize", json={"messages": MESSAGES}).json()
    assert (told["templated_text"], [token["id"] for token in told["tokenize_response"]]) == (text, ids)


def test_a_conversation_that_ends_with_the_assistant_is_carried_on(demo: httpx.Client):
    carried = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    text = demo.post("/chat_tokenize", json={"messages": carried}).json()["templated_text"]
    assert text.endswith("<|assistant|>\nIt is")


def test_names_and_tool_results_reach_the_template(serve: Any, splitting_folder: Path):
    tokenizer = Tokenizer.load(str(splitting_folder))
    tokenizer._whole.chat_template = (
        "{% for m in messages %}{{ m.role }}/{{ m.name }}/{{ m.tool_call_id }}/{{ m.content }};{% endfor %}"
    )
    messages = [
        {"role": "user", "name": "ann", "content": "a"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "7", "content": "b"},
    ]
    with serve(Settings(), lambda _: (ScriptedBackend(), tokenizer)) as client:
        told = client.post("/chat_tokenize", json={"messages": messages}).json()["templated_text"]
    assert told == "user/ann//a;assistant///;tool//7/b;"


def test_parts_of_a_content_are_put_together(demo: httpx.Client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}]}]
    whole = [{"role": "user", "content": "What time?"}]
    texts = [demo.post("/chat_tokenize", json={"messages": each}).json()["templated_text"] for each in (parts, whole)]
    assert texts[0] == texts[1]


def test_completions_have_16_tokens_unless_told_otherwise_and_chats_all_that_fit(demo: httpx.Client):
    assert complete(demo)["usage"]["completion_tokens"] == 16
    messages = [{"role": "user", "content": "clock " * 200}]
    usage = demo.post("/v1/chat/completions", json={"messages": messages, "ignore_eos": True}).json()["usage"]
    assert usage["total_tokens"] == 512


def test_max_completion_tokens_goes_before_max_tokens(demo: httpx.Client):
    assert complete(demo, max_tokens=9, max_completion_tokens=4)["usage"]["completion_tokens"] == 4
    asked = {"messages": MESSAGES, "max_tokens": 9, "max_completion_tokens": 4, "ignore_eos": True}
    assert demo.post("/v1/chat/completions", json=asked).json()["usage"]["completion_tokens"] == 4


def test_a_stop_sequence_is_no_part_of_the_text_streamed_or_not(demo: httpx.Client):
    whole = greedy(demo, 40)
    stop = whole[31:36]
    expected = whole[: whole.index(stop)]
    asked: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "stop": [stop, "never seen"]}
    choice = complete(demo, **asked)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    streamed = chunks(demo, "/v1/completions", prompt=PROMPT, **asked)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == expected
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_streams_and_plain_answers_of_a_seed_are_the_same_text(demo: httpx.Client):
    asked: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 30, "seed": 11, "temperature": 1.3, "top_p": 0.9}
    plain = demo.post("/v1/chat/completions", json={**asked, "ignore_eos": True}).json()["choices"][0]["message"]
    streamed = chunks(demo, "/v1/chat/completions", **asked)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == plain["content"]
    assert len({chunk["id"] for chunk in streamed} | {streamed[0]["id"]}) == 1


def test_n_texts_of_a_seed_differ_and_repeat(demo: httpx.Client):
    asked: dict[str, Any] = {"n": 3, "seed": 5, "max_tokens": 12, "prompt": [PROMPT, "Another"]}
    first, again = complete(demo, **asked), complete(demo, **asked)
    texts = [choice["text"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == list(range(6))
    assert len(set(texts)) == 6
    assert texts == [choice["text"] for choice in again["choices"]]
    # A prompt counts once, however many texts follow it.
    prompts = sum(len(demo.post("/tokenize", json={"inputs": each}).json()) for each in (PROMPT, "Another"))
    assert first["usage"] == {"prompt_tokens": prompts, "completion_tokens": 72, "total_tokens": prompts + 72}
    streamed = chunks(demo, "/v1/completions", **asked)
    for index, text in enumerate(texts):
        said = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in said) == text
        assert len(said) == 12


def test_the_timing_of_several_texts_is_a_list_of_theirs(demo: httpx.Client):
    asked = {"prompt": PROMPT, "n": 2, "max_tokens": 3, "ignore_eos": True}
    headers = {"x-request-id": "mine", "x-tokenclock-timing": "1"}
    reply = demo.post("/v1/completions", json=asked, headers=headers)
    assert reply.headers["x-request-id"] == "mine"
    timing = json.loads(reply.headers["x-tokenclock-timing"])
    assert [each["request_id"] for each in timing] == ["mine-0", "mine-1"]
    streamed = demo.post("/v1/completions", json=asked | {"stream": True}, headers=headers).text.strip().split("\n\n")
    name, data = streamed[-2].split("\n")
    assert name == "event: tokenclock"
    assert [each["request_id"] for each in json.loads(data.removeprefix("data: "))] == ["mine-0", "mine-1"]


def test_usage_comes_with_the_last_chunk_or_with_each_where_asked(demo: httpx.Client):
    asked: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4}
    assert all("usage" not in chunk for chunk in chunks(demo, "/v1/completions", **asked))
    once = chunks(demo, "/v1/completions", **asked, stream_options={"include_usage": True})
    assert [chunk["usage"] and chunk["usage"]["completion_tokens"] for chunk in once] == [None] * 4 + [4]
    assert once[-1]["choices"] == []
    each = chunks(demo, "/v1/completions", **asked, stream_options={"continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in each] == [1, 2, 3, 4]


def test_logprobs_of_echoed_prompts_and_new_tokens_stand_at_their_characters(demo: httpx.Client):
    choice = complete(demo, max_tokens=5, temperature=0, logprobs=2, echo=True)["choices"][0]
    told = choice["logprobs"]
    assert choice["text"].startswith(PROMPT)
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None, "nothing comes before the first token"
    assert all(len(each) in (2, 3) for each in told["top_logprobs"][1:])
    for token, offset in list(zip(told["tokens"], told["text_offset"], strict=True))[1:]:
        assert choice["text"][offset : offset + len(token)] == token
    details = {"max_new_tokens": 5, "ignore_eos": True, "decoder_input_details": True}
    said = demo.post("/generate", json={"inputs": PROMPT, "parameters": details}).json()["details"]
    assert told["token_logprobs"] == pytest.approx([token["logprob"] for token in said["prefill"] + said["tokens"]])


def test_offsets_of_characters_that_several_tokens_share_do_not_drift(demo: httpx.Client):
    text = "時計 the clock"
    told = complete(demo, prompt=text, max_tokens=1, temperature=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
    at = dict(zip(told["tokens"], told["text_offset"], strict=True))
    assert (at[" the"], at[" clock"]) == (text.index(" the"), text.index(" clock"))


def test_special_tokens_that_are_written_out_in_a_prompt_take_their_characters(demo: httpx.Client):
    told = complete(demo, prompt="</s>x</s>", max_tokens=1, logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert list(zip(told["tokens"], told["text_offset"], strict=True))[:4] == [
        ("<s>", 0), ("</s>", 0), ("x", 4), ("</s>", 5)
    ]  # fmt: skip
    assert told["text_offset"][4] == 9


def test_an_echoed_prompt_that_has_no_text_still_has_its_tokens(demo: httpx.Client):
    choice = complete(demo, prompt=[0], max_tokens=2, logprobs=1, echo=True)["choices"][0]
    assert choice["logprobs"]["tokens"][0] == "<s>"
    assert len(choice["logprobs"]["tokens"]) == 3


def test_seeds_may_be_negative_and_count_past_the_end(demo: httpx.Client):
    for seed in (-(2**63), -1, 2**64 - 1):
        asked: dict[str, Any] = {"n": 2, "seed": seed, "max_tokens": 4}
        assert complete(demo, **asked)["choices"] == complete(demo, **asked)["choices"]
    assert (
        complete(demo, n=2, seed=2**64 - 1, max_tokens=4)["choices"][1]["text"]
        == complete(demo, seed=0, max_tokens=4)["choices"][0]["text"]
    )


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": "a", "temperature": -1}, "temperature", "must be 0, or from"),
        ({"prompt": "a", "temperature": 2.1}, "temperature", "to 2"),
        ({"prompt": "a", "temperature": 1e-40}, "temperature", "0 is greedy"),
        ({"prompt": "a", "temperature": "1"}, "temperature", "Input should be a valid number"),
        ({"prompt": "a", "top_p": 0}, "top_p", "> 0.0 and <= 1.0"),
        ({"prompt": "a", "top_k": -2}, "top_k", "-1 to switch it off"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1. Given: 0"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
        ({"prompt": "a", "max_tokens": 511}, "prompt", "ask for at most 510"),
        ({"prompt": "tick " * 600}, "prompt", "must have less than 512 tokens"),
        ({"prompt": "a", "max_completion_tokens": 511}, "prompt", "`max_completion_tokens` must be <= 512"),
        ({"messages": [{"role": "user", "content": "tick " * 600}]}, "messages", "must have less than 512 tokens"),
        ({"prompt": ""}, None, None),
        ({"prompt": []}, "prompt", "cannot be an empty list"),
        ({"prompt": [[]]}, "prompt", "cannot be empty"),
        ({"prompt": [1, -1]}, "prompt", "token id -1"),
        ({"prompt": [1, 947]}, "prompt", "token id 947; the model's are from 0 to 946"),
        ({"prompt": ["a", 1]}, "prompt", "must be a string, a list of strings"),
        ({"prompt": ["a"] * 33}, "n", "at most 32 texts"),
        ({"prompt": "a", "n": 0}, "n", "at least 1"),
        ({"prompt": "a", "n": 33}, "n", "at most 32 texts"),
        ({"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "from 0 to 5"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"prompt": "a", "stop": list("abcde")}, "stop", "up to 4"),
        ({"prompt": "a", "stop": ""}, "stop", "empty string"),
        ({"prompt": "a", "stop": 3}, "stop", "a string or a list of strings"),
        ({"prompt": "a", "seed": -(2**63) - 1}, "seed", "from -2^63 to 2^64 - 1"),
        ({"prompt": "a", "presence_penalty": 2.5}, "presence_penalty", ">= -2.0 and <= 2.0"),
        ({"prompt": "a", "min_tokens": -1}, "min_tokens", "at least 0"),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most 8"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "`stream` is true"),
        ({"prompt": "a", "nonsense": 1}, "nonsense", "leave it out"),
        ({}, "prompt", "Field required"),
        ([], None, "the body must be an object. Given: []"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "of type text"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0", "null only of an assistant"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]},
            "messages.2.tool_calls",
            "not supported",
        ),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"messages": MESSAGES, "max_completion_tokens": 5000}, "messages", "`max_completion_tokens` must be <= 512"),
    ],
)
def test_bad_input_is_400_with_the_parameter_to_blame(demo: httpx.Client, body: Any, param: Any, message: Any):
    routes = ["/v1/chat/completions" if "messages" in body else "/v1/completions"]
    routes += ["/invocations"] if isinstance(body, dict) and body else []
    for route in routes:
        for streamed in ({}, {"stream": True}):
            asked = body | streamed if isinstance(body, dict) else body
            if "stream_options" in asked and streamed:
                continue
            reply = demo.post(route, json=asked)
            if message is None:  # <s> alone is a prompt
                assert reply.status_code == 200
                continue
            assert reply.status_code == 400, reply.text
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["param"]) == ("invalid_request_error", param)
            assert message in error["message"]
            assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "logit_bias": {}, "modalities": ["text"], "service_tier": "auto"},
        {"n": 1, "frequency_penalty": 0, "presence_penalty": 0, "top_p": 1, "top_k": -1, "logprobs": False},
        {"user": "me", "metadata": {"a": "b"}, "safety_identifier": "x", "prompt_cache_key": "y", "store": False},
        {"model": "tgi", "stop": None, "seed": None, "stream_options": None, "max_tokens": None, "stream": None},
    ],
)
def test_values_that_ask_for_nothing_are_fine(demo: httpx.Client, neutral: Any):
    reply = demo.post("/v1/chat/completions", json={"messages": MESSAGES, "max_completion_tokens": 1, **neutral})
    assert reply.status_code == 200, reply.text


def test_unknown_models_are_404_and_the_served_one_may_be_left_out(demo: httpx.Client):
    name = demo.get("/v1/models").json()["data"][0]["id"]
    assert complete(demo, max_tokens=1, model=name)["model"] == name
    for reply in (
        demo.post("/v1/completions", json={"prompt": "a", "model": "gpt-x"}),
        demo.get("/v1/models/gpt-x"),
    ):
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"
    assert demo.get(f"/v1/models/{name}").json()["id"] == name


def test_routes_that_are_not_there_are_refused_in_openais_shape(demo: httpx.Client):
    for reply in (demo.get("/v1/nowhere"), demo.get("/v1/completions")):
        assert reply.status_code in (404, 405)
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def scripted(folder: Path, backend: ScriptedBackend) -> Any:
    return lambda _: (backend, Tokenizer.load(str(folder)))


def test_what_the_backend_lacks_is_refused_by_the_name_the_caller_used(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend())) as client:
        asked: dict[str, Any] = {"prompt": "a", "temperature": 0, "repetition_penalty": 1.0}
        assert client.post("/v1/completions", json=asked).status_code == 200
        for more, param in (
            ({"logprobs": 0}, "logprobs"),
            ({"min_tokens": 2}, "min_tokens"),
            ({"temperature": 1}, "temperature"),
            ({"presence_penalty": 1}, "presence_penalty"),
            ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ):
            error = client.post("/v1/completions", json=asked | more).json()["error"]
            assert error["param"] == param
            assert "not supported by this backend" in error["message"]
        reply = client.post("/generate", json={"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}})
        assert reply.status_code == 422


def test_a_model_without_a_chat_template_completes_and_does_not_chat(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend())) as client:
        reply = client.post("/v1/chat/completions", json={"messages": MESSAGES, "temperature": 0})
        assert reply.status_code == 400
        assert "no chat template: send a prompt to /v1/completions" in reply.json()["error"]["message"]
        tokenized = client.post("/chat_tokenize", json={"messages": MESSAGES})
        assert (tokenized.status_code, tokenized.json()["error_type"]) == (422, "template_error")


def test_a_failure_mid_stream_is_an_error_event_before_the_end(serve: Any, splitting_folder: Path):
    with serve(Settings(), scripted(splitting_folder, ScriptedBackend(fail_after=2))) as client:
        asked = {"prompt": "hello", "temperature": 0, "ignore_eos": True, "stream": True}
        *_, error, done = client.post("/v1/completions", json=asked).text.strip().split("\n\n")
        assert done == "data: [DONE]"
        said = json.loads(error.removeprefix("data: "))["error"]
        assert (said["type"], said["code"]) == ("server_error", "generation")
        assert "the device is gone" in said["message"]
        assert client.get("/v1/models").status_code == 200
        for _ in range(FAILURES - 1):  # then the self-check fails, too
            assert client.post("/v1/completions", json=asked).status_code == 200
        late = client.post("/v1/completions", json=asked)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "unavailable")


def test_all_texts_of_a_request_are_taken_or_none(serve: Any, demo_folder: Path):
    settings = Settings(model=str(demo_folder), slots=1, max_total_tokens=2048, max_concurrent_requests=3, threads=1)
    with serve(settings) as client:
        asked = {"prompt": ["a", "b"], "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=asked) as reply:
            lines = reply.iter_lines()
            next(lines)
            refused = client.post("/v1/completions", json={"prompt": ["c", "d"], "max_tokens": 1})
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert "2 of at most 3 texts" in refused.json()["error"]["message"]
        # Both texts of the client that has gone are dropped, or the slot would be taken for 3,000 tokens.
        deadline = time.monotonic() + 5
        while "tgi_batch_current_size 0.0" not in client.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.post("/v1/completions", json={"prompt": ["c", "d"], "max_tokens": 1}).status_code == 200
        metrics = client.get("/metrics").text
    assert 'tgi_request_failure{err="dropped"} 2.0' in metrics
    assert "tgi_request_count 5.0" in metrics, "one for each text, one for the refused request"
