"""Over HTTP, a compiled model answers as transformers does, and what its sampler cannot do is refused by name.

Method: the whole server over the demonstration model, compiled here with four slots. Greedy token ids, and on the host
their log probabilities, are transformers' own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings import Settings
from tests.neuron_contract.conftest import Compiled, Right
from tests.server.conftest import serve  # noqa: F401

LENGTHS = {"sequence_length": 64, "max_context_length": 32}
WORDS = "the clock strikes and a server counts every token that it sends over the wire".split()


@pytest.fixture(scope="module")
def client(serve: Any, compiled: Compiled, demo_folder: Path) -> Callable[[bool], Any]:  # noqa: F811
    """client(on_device) is a context: the compiled demonstration model, served."""
    from server.backends.neuron import NeuronBackend
    from server.tokenizer import Tokenizer

    def load(on_device: bool) -> Any:
        tokenizer = Tokenizer.load(str(demo_folder))
        model = compiled(demo_folder, on_device_sampling=on_device, **LENGTHS)
        return NeuronBackend(model, tokenizer.eos_token_ids), tokenizer

    settings = Settings(model=str(demo_folder), backend="neuron")
    return lambda on_device: serve(settings, lambda _: load(on_device))


@pytest.fixture(scope="module")
def on_device(client: Callable[[bool], Any]) -> Iterator[httpx.Client]:
    with client(True) as running:
        yield running


@pytest.fixture(scope="module")
def on_host(client: Callable[[bool], Any]) -> Iterator[httpx.Client]:
    with client(False) as running:
        yield running


def prompts() -> list[str]:
    """Sixteen of them; the last is just the longest that the graph takes."""
    return [*(" ".join(WORDS[: 1 + n % 9]) for n in range(15)), "!" * 31]


def streamed(client: httpx.Client, prompt: str, kept: int, new_tokens: int) -> list[dict[str, Any]]:
    """The events of a text that begins with the last `kept` tokens of a prompt."""
    asked = {"truncate": kept, "max_new_tokens": new_tokens, "ignore_eos": True, "details": True}
    body = {"inputs": prompt, "parameters": asked}
    with client.stream("POST", "/generate_stream", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:")) for line in lines]


@pytest.mark.parametrize("where", ["on_device", "on_host"])
def test_sixteen_streams_over_four_slots_carry_transformers_own_tokens(
    where: str, request: pytest.FixtureRequest, right: Right, demo_folder: Path
):
    from server.tokenizer import Tokenizer

    client: httpx.Client = request.getfixturevalue(where)
    tokenizer = Tokenizer.load(str(demo_folder))
    asked = [(prompt, 1 if n % 5 == 1 else 32, 4 + 3 * n % 29) for n, prompt in enumerate(prompts())]
    with ThreadPoolExecutor(16) as users:
        replies = list(users.map(lambda each: streamed(client, *each), asked))
    lengths = set()
    for (prompt, kept, wanted), events in zip(asked, replies, strict=True):
        ids = tokenizer.encode(prompt)[-kept:]
        lengths.add(len(ids))
        assert [event["token"]["id"] for event in events] == right(demo_folder, ids, wanted)
        assert events[-1]["details"] == {
            "finish_reason": "length",
            "generated_tokens": wanted,
            "input_length": len(ids),
            "seed": None,
        }
        told = {event["token"]["logprob"] is None for event in events}
        assert told == {where == "on_device"}
    assert {1, 32} <= lengths


def test_on_the_host_log_probabilities_are_transformers_own(
    on_host: httpx.Client, reference: Callable[[Path], Any], demo_folder: Path
):
    import torch

    body = {"inputs": "the clock", "parameters": {"max_new_tokens": 6, "details": True, "top_n_tokens": 3}}
    details = on_host.post("/generate", json=body).raise_for_status().json()["details"]
    from server.tokenizer import Tokenizer

    ids = Tokenizer.load(str(demo_folder)).encode("the clock")
    for token, likeliest in zip(details["tokens"], details["top_tokens"], strict=True):
        with torch.no_grad():
            logprobs = reference(demo_folder)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert token["logprob"] == pytest.approx(float(logprobs[token["id"]]), abs=1e-4)
        assert [each["id"] for each in likeliest] == logprobs.topk(3).indices.tolist()
        ids.append(token["id"])


TGI = "/generate"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
SAMPLED = {"do_sample": True}
REFUSED_ON_DEVICE: list[tuple[str, str, Any]] = [
    (TGI, "repetition_penalty", 1.2),
    (TGI, "frequency_penalty", 0.5),
    (TGI, "typical_p", 0.5),
    (TGI, "seed", 7),
    (TGI, "top_n_tokens", 2),
    (TGI, "decoder_input_details", True),
    (TGI, "best_of", 2),
    (TGI, "top_k", 257),
    (TGI, "temperature", 0.001),
    (TGI, "temperature", 101.0),
    (COMPLETIONS, "presence_penalty", 0.5),
    (COMPLETIONS, "frequency_penalty", 0.5),
    (COMPLETIONS, "repetition_penalty", 1.2),
    (COMPLETIONS, "seed", 7),
    (COMPLETIONS, "logprobs", 1),
    (COMPLETIONS, "min_tokens", 2),
    (COMPLETIONS, "top_k", 1000),
    (CHAT, "logprobs", True),
    (CHAT, "presence_penalty", 0.5),
    (CHAT, "seed", 7),
]


def ask(client: httpx.Client, route: str, name: str, value: Any) -> httpx.Response:
    if route == TGI:
        return client.post(route, json={"inputs": "a", "parameters": {"max_new_tokens": 2, **SAMPLED, name: value}})
    text = {"messages": [{"role": "user", "content": "a"}]} if route == CHAT else {"prompt": "a"}
    return client.post(route, json={**text, "max_tokens": 2, name: value})


@pytest.mark.parametrize(("route", "name", "value"), REFUSED_ON_DEVICE)
def test_what_the_device_cannot_sample_is_refused_by_the_name_that_was_said(
    route: str, name: str, value: Any, on_device: httpx.Client
):
    reply = ask(on_device, route, name, value)
    if route == TGI:
        assert reply.status_code == 422
        message = reply.json()["error"]
    else:  # OpenAI's own status for it
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert reply.json()["error"]["param"] == name
    assert f"`{name}`" in message


@pytest.mark.parametrize(("route", "name", "value"), REFUSED_ON_DEVICE)
def test_the_host_does_all_of_it_but_the_prompts_log_probabilities(
    route: str, name: str, value: Any, on_host: httpx.Client
):
    assert ask(on_host, route, name, value).status_code == (422 if name == "decoder_input_details" else 200)


@pytest.mark.parametrize(
    "parameters",
    [{"temperature": 0.01}, {"temperature": 100.0}, {"top_k": 256}, {"top_p": 1e-300}, {"top_p": 0.999}, SAMPLED],
)
def test_what_the_device_can_sample_is_sampled(parameters: dict[str, Any], on_device: httpx.Client):
    body = {"inputs": "a", "parameters": {"max_new_tokens": 5, "ignore_eos": True, "details": True, **parameters}}
    reply = on_device.post(TGI, json=body)
    assert reply.status_code == 200
    assert reply.json()["details"]["generated_tokens"] == 5


@pytest.mark.parametrize(
    ("inputs", "new_tokens", "words"),
    [
        ("!" * 32, 5, "`inputs` must have less than 33 tokens. Given: 33"),
        ("!" * 31, 33, "must be <= 64. Given: 32 `inputs` tokens and 33 `max_new_tokens`"),
    ],
)
def test_what_passes_the_compiled_lengths_is_refused_and_not_cropped(
    inputs: str, new_tokens: int, words: str, on_device: httpx.Client
):
    reply = on_device.post(TGI, json={"inputs": inputs, "parameters": {"max_new_tokens": new_tokens}})
    assert reply.status_code == 422
    assert words in reply.json()["error"]


def test_info_says_what_runs_the_model(on_device: httpx.Client):
    info = on_device.get("/info").json()
    assert (info["slots"], info["max_input_tokens"], info["max_total_tokens"]) == (4, 32, 64)
    assert info["sampling"] == ["do_sample", "ignore_eos", "temperature", "top_k", "top_p"]
    assert info["backend"]["name"] == "neuron"
    assert info["backend"]["versions"]["optimum-neuron"]
    assert info["max_best_of"] == 1


def test_huggingface_hubs_client_streams_from_a_device_that_tells_no_log_probabilities(on_device: httpx.Client):
    from huggingface_hub import InferenceClient

    client = InferenceClient(str(on_device.base_url))
    events = list(client.text_generation("the clock", max_new_tokens=5, stream=True, details=True))
    assert 1 <= len(events) <= 5
    assert all(event.token.logprob is None for event in events)


@pytest.mark.e2e
def test_a_measured_report_is_labelled_with_backend_cores_batch_and_versions(on_device: httpx.Client, tmp_path: Path):
    command = [sys.executable, "-m", "loadtest", "run", "--url", str(on_device.base_url), "--results", str(tmp_path)]
    load = "-u 4 -t 2s --input-tokens 16 --new-tokens 8".split()
    done = subprocess.run([*command, *load], capture_output=True, text=True, timeout=90)
    assert done.returncode in (0, 1), done.stderr  # 1: the client was too slow on a busy machine, and says so
    (folder,) = tmp_path.iterdir()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) >= 8
    assert {sample["verdict"] for sample in samples} == {"complete"}
    versions = on_device.get("/info").json()["backend"]["versions"]
    label = "backend neuron, cores 1, batch size 4, sequence length 64, max context length 32"
    report = (folder / "report.md").read_text()
    assert label in report
    assert f"optimum-neuron {versions['optimum-neuron']}" in report
