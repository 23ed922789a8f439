"""What a stranger may send costs 4xx in the protocol's own shape, and the server nothing: garbage, floods, wrong types.

Method: raw bytes over real HTTP to every route that reads a body; after each the server is healthy, every slot free.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api import tokenizing
from server.api.body import Body
from server.api.openai.schemas import ChatRequest, CompletionRequest
from server.api.tgi.schemas import GenerateRequest

ROUTES = {
    "/generate": {"inputs": "a", "parameters": {"max_new_tokens": 1}},
    "/generate_stream": {"inputs": "a", "parameters": {"max_new_tokens": 1}},
    "/": {"inputs": "a", "parameters": {"max_new_tokens": 1}},
    "/tokenize": {"inputs": "a"},
    "/chat_tokenize": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/invocations": {"inputs": "a", "parameters": {"max_new_tokens": 1}},
}
JSON = {"content-type": "application/json"}
LIMIT = 2_000_000


def refused(client: httpx.Client, route: str, reply: httpx.Response, status: int) -> str:
    """The sentence of a refusal, in the route's shape."""
    assert reply.status_code == status, f"{route}: {reply.status_code} {reply.text[:300]}"
    error = reply.json()["error"]
    if route.startswith("/v1/"):
        assert set(error) == {"message", "type", "param", "code"}
        error = error["message"]
    else:
        assert set(reply.json()) == {"error", "error_type"}
    assert error
    assert "\n" not in error
    assert client.get("/health").status_code == 200
    assert "tgi_batch_current_size 0.0" in client.get("/metrics").text
    return str(error)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"inputs": "\xff\xfe", "prompt": "\xff"}',
        b'{"inputs": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5000 + b"}}",
        b"\x00",
    ],
    ids=["empty", "cut", "nonsense", "utf8", "surrogate", "deep list", "deep object", "long number", "nul"],
)
def test_what_is_no_json_is_400(demo: httpx.Client, route: str, content: bytes):
    sentence = refused(demo, route, demo.post(route, content=content, headers=JSON), 400)
    assert sentence.startswith("the body is not JSON: ")


@pytest.mark.parametrize("route", ROUTES)
def test_bodies_of_10_megabytes_are_413_with_or_without_their_length(demo: httpx.Client, route: str):
    whole = b'{"inputs": "' + b"a" * 10_000_000 + b'"}'

    def parts() -> Iterator[bytes]:
        yield from (whole[i : i + 65536] for i in range(0, len(whole), 65536))

    for content in (whole, parts()):
        sentence = refused(demo, route, demo.post(route, content=content, headers=JSON), 413)
        assert f"{LIMIT:,}" in sentence


def test_a_body_that_is_declared_too_long_is_refused_before_it_is_sent(demo: httpx.Client):
    with socket.create_connection((demo.base_url.host, demo.base_url.port or 80), timeout=10) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 10000000\r\nexpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(demo: httpx.Client):
    frame = len(b'{"inputs": ""}')
    for extra, status in ((0, 422), (1, 413)):
        content = b'{"inputs": "' + b"a" * (LIMIT - frame + extra) + b'"}'
        assert len(content) == LIMIT + extra
        refused(demo, "/generate", demo.post("/generate", content=content, headers=JSON), status)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "json", "application/jsonx"])
def test_another_content_type_is_415(demo: httpx.Client, route: str, kind: str | None):
    content = json.dumps(ROUTES[route]).encode()
    headers = {} if kind is None else {"content-type": kind}
    sentence = refused(demo, route, demo.post(route, content=content, headers=headers), 415)
    assert "content-type: application/json" in sentence


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_json_by_its_other_names_is_read(demo: httpx.Client, kind: str):
    content = json.dumps(ROUTES["/generate"]).encode()
    assert demo.post("/generate", content=content, headers={"content-type": kind}).status_code == 200


NUMBERS = ["temperature", "top_p", "top_k", "seed", "repetition_penalty", "frequency_penalty"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"1"', "[1]", "{}", "true"])
@pytest.mark.parametrize("name", NUMBERS)
def test_values_that_are_no_numbers_are_refused_by_name(demo: httpx.Client, name: str, value: str):
    content = f'{{"inputs": "a", "parameters": {{"max_new_tokens": 1, "{name}": {value}}}}}'.encode()
    reply = demo.post("/generate", content=content, headers=JSON)
    sentence = refused(demo, "/generate", reply, 422)
    assert name in sentence
    if value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999") and name not in ("seed", "top_k"):
        assert "finite number" in sentence
    content = f'{{"prompt": "a", "max_tokens": 1, "{name}": {value}}}'.encode()
    reply = demo.post("/v1/completions", content=content, headers=JSON)
    assert name in refused(demo, "/v1/completions", reply, 400)


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_refused_by_name(demo: httpx.Client, route: str):
    status = 400 if route.startswith("/v1/") or ("messages" in ROUTES[route] and route != "/chat_tokenize") else 422
    reply = demo.post(route, json=ROUTES[route] | {"surprise": 1})
    assert "`surprise` is not a parameter" in refused(demo, route, reply, status)


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_that_are_null_ask_for_nothing(demo: httpx.Client, route: str):
    assert demo.post(route, json=ROUTES[route] | {"surprise": None}).status_code == 200


def test_messages_quote_no_more_than_they_need(demo: httpx.Client):
    assert "\n" not in demo.post("/tokenize", json={"inputs": "a", "two\nlines": 1}).json()["error"]
    for body in ({"prompt": "a", "x" * 100_000: 1}, {"prompt": "a", "model": "x" * 100_000}, {"prompt": ["x"] * 9_999}):
        assert len(demo.post("/v1/completions", json=body).content) < 600


@pytest.mark.parametrize("offer", [b"h2c", b"H2C ", b"websocket"])
def test_an_offer_of_another_protocol_is_not_taken_and_costs_no_body(demo: httpx.Client, offer: bytes):
    # What Java's HttpClient sends with every request; the body comes later than the head.
    body = json.dumps(ROUTES["/generate"]).encode()
    with socket.create_connection((demo.base_url.host, demo.base_url.port or 80), timeout=10) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
            + offer
            + b"\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\ncontent-type: application/json\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode()
        )
        time.sleep(0.05)
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("cut", [b"\r\nUp", b"\r", b"\r\n", b"\r\nUpgrade: h2", b"HTTP/1.1", 1, 2, 3, 4, 5])
def test_an_offer_that_comes_in_two_pieces_costs_no_body_either(demo: httpx.Client, cut: bytes | int):
    body = json.dumps(ROUTES["/generate"]).encode()
    head = b"POST /generate HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nhost: x\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((demo.base_url.host, demo.base_url.port or 80), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = len(head) - cut if isinstance(cut, int) else head.index(cut) + len(cut)
        for part in (head[:at], head[at:] + body):
            connection.sendall(part)
            time.sleep(0.05)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_prompt_may_speak_of_upgrades(demo: httpx.Client):
    def parts() -> Iterator[bytes]:  # sent as chunks, of which each follows a line end
        yield b'{"inputs": "say '
        yield b'upgrade: now"}'

    pieces = demo.post("/tokenize", content=parts(), headers=JSON).json()
    assert "".join(piece["text"] for piece in pieces) == "say upgrade: now"


JSONS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [*NUMBERS, "inputs", "parameters", "prompt", "messages", "stream", "stop", "n", "model", "echo", "logprobs"]
)


@given(st.sampled_from(sorted(ROUTES)), FIELDS, JSONS)
def test_any_value_in_any_field_is_answered_or_refused(demo: httpx.Client, route: str, field: str, value: Any):
    body = ROUTES[route] | {field: value}
    reply = demo.post(route, content=json.dumps(body).encode(), headers=JSON)
    assert reply.status_code in (200, 400, 404, 422), reply.text
    if reply.status_code != 200:
        openai = route.startswith("/v1/") or (route == "/invocations" and isinstance(reply.json()["error"], dict))
        refused(demo, "/v1/" if openai else route, reply, reply.status_code)


MANY = 10_000


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a", **{f"k{i}": 1 for i in range(MANY)}}]}),
        (CompletionRequest, {"prompt": [[1.5]] * MANY}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * MANY}),
        (CompletionRequest, {"prompt": "a", **{f"k{i}": 1 for i in range(MANY)}}),
        (GenerateRequest, {"inputs": "a", "parameters": {"stop": [1] * MANY}}),
        (GenerateRequest, {"inputs": "a", "parameters": {f"k{i}": 1 for i in range(MANY)}}),
    ],
)
def test_a_body_that_is_wrong_everywhere_is_read_to_its_first_error(model: type[Body], body: Any):
    # Each error costs microseconds that every stream would wait for.
    with pytest.raises(pydantic.ValidationError) as refused:
        model.model_validate(body)
    assert refused.value.error_count() == 1


def test_long_work_leaves_the_event_loop_and_short_work_does_not():
    async def threads() -> list[int]:
        sizes = (tokenizing.LONG, tokenizing.LONG + 1)
        return [await tokenizing.off_the_loop(threading.get_ident, size) for size in sizes]

    short, long = asyncio.run(threads())
    assert short == threading.get_ident() != long


def test_long_work_is_done_one_at_a_time():
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1

    async def all_at_once() -> None:
        await asyncio.gather(*(tokenizing.off_the_loop(work, tokenizing.LONG + 1) for _ in range(8)))

    asyncio.run(all_at_once())
    assert most == tokenizing.WORKERS == 1


def test_a_client_that_stops_in_the_middle_of_its_body_costs_nothing(demo: httpx.Client):
    def broken() -> Iterator[bytes]:
        yield b'{"inputs": "a'
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        demo.post("/generate", content=broken(), headers=JSON)
    assert demo.get("/health").status_code == 200
    assert demo.post("/generate", json=ROUTES["/generate"]).status_code == 200
