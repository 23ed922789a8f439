"""The promises of docs/behaviour.md for a server under load, each in a test of its name.

Method: the app over real sockets, or called directly, with a scripted backend whose faults, pauses and clock are the
test's. Where a promise needs a process it is held in tests/server/test_lifecycle.py.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server.api import body as bodies
from server.api.served import call_of
from server.app import create_app
from server.errors import BackendLost
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.fault_run import series
from tests.server.processes import eventually, process, wait_until_ready
from tests.server.scripted import ScriptedBackend

SHORT = {"max_new_tokens": 3, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "hello"}]
#: Of every route that generates, a body that is answered whole and one that is streamed.
GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "hello", "parameters": SHORT}),
    ("/generate_stream", {"inputs": "hello", "parameters": SHORT}),
    ("/", {"inputs": "hello", "parameters": SHORT}),
    ("/", {"inputs": "hello", "parameters": SHORT, "stream": True}),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "ignore_eos": True, "temperature": 0}),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "ignore_eos": True, "temperature": 0, "stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, "temperature": 0}),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, "temperature": 0, "stream": True},
    ),
    ("/invocations", {"inputs": "hello", "parameters": SHORT}),
    ("/invocations", {"inputs": "hello", "parameters": SHORT, "stream": True}),
]
Scripted = partial(ScriptedBackend, vocabulary=1024)  # the demonstration model's tokens
#: Who may ask these needs no key.
OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/ping"), ("GET", "/info"), ("GET", "/metrics")}


def scripted(folder: Path, backend: ScriptedBackend) -> Any:
    def load(_: Settings) -> tuple[ScriptedBackend, Tokenizer]:
        return backend, Tokenizer.load(str(folder))

    return load


def sentence(reply: httpx.Response) -> str:
    error = reply.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def value(client: httpx.Client, name: str) -> float:
    """A counter or gauge without labels."""
    return series(client.get("/metrics").text, name)[""]


@contextmanager
def raw(client: httpx.Client, content: bytes) -> Iterator[socket.socket]:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall(content)
        yield connection


def head(route: str, *more: str) -> bytes:
    lines = [f"POST {route} HTTP/1.1", "host: x", "content-type: application/json", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


@asynccontextmanager
async def inside(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app in this event loop, once it's ready."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.01)
        yield client


def test_a_full_queue_answers_429_at_once_with_the_limit_in_the_message_nothing_waits_unbounded(
    serve: Any, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    go_on = threading.Event()
    backend = Scripted(slots=1, before=lambda verb: verb != "decode" or go_on.wait(30))
    settings = Settings(slots=1, max_concurrent_requests=2, read_timeout_s=0.3)
    with serve(settings, scripted(demo_folder, backend)) as client:
        # One is served and one waits: nobody else is let in, whatever the route, and not even the body is read.
        with ExitingThreads() as threads:
            for _ in range(2):
                threads.start(lambda: post(client).raise_for_status())
            eventually(lambda: value(client, "tgi_request_count") == 2)
            for route, body in GENERATING:
                reply = client.post(route, json=body)
                assert reply.status_code == 429, route
                assert "2 of at most 2 texts are running or waiting" in sentence(reply)
                with raw(client, head(route, "content-length: 100", "expect: 100-continue")) as connection:
                    assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
            go_on.set()

        # Requests that wait for the tokenizer count, too.
        go_on = threading.Event()
        held, entered = bodies.off_the_loop, []

        async def tokenizer_is_busy(work: Any, size: int) -> Any:
            entered.append(size)
            await asyncio.to_thread(go_on.wait, 30)
            return await held(work, size)

        monkeypatch.setattr(bodies, "off_the_loop", tokenizer_is_busy)
        with ExitingThreads() as threads:
            for _ in range(2):
                threads.start(lambda: post(client).raise_for_status())
            eventually(lambda: len(entered) == 2)
            assert post(client).status_code == 429
            go_on.set()
        monkeypatch.undo()
        assert post(client).status_code == 200, "every place was given back"

        # A client that says nothing, half a head, half a body, or half a body of an answered request is let go.
        with raw(client, b"") as connection:
            assert connection.recv(4096) == b""
        with raw(client, b"POST /generate HTTP/1.1\r\nhost:") as connection:
            assert connection.recv(4096) == b""
        with raw(client, head("/generate", "content-length: 100") + b'{"inputs"') as connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"9 bytes of the body came in 0.3 s" in answer
        with raw(client, head("/generate", f"content-length: {settings.payload_limit + 1}") + b"{") as connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 413 ")
        with raw(client, b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert post(client).status_code == 200


class ExitingThreads:
    """Threads whose exceptions are raised at the end."""

    def __enter__(self) -> ExitingThreads:
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        return self

    def start(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(30)
        assert self._errors == []


def post(client: httpx.Client) -> httpx.Response:
    route, body = GENERATING[0]
    return client.post(route, json=body)


def test_a_client_that_goes_away_frees_its_slot_within_one_decode_step_in_every_protocol_streaming_or_not(
    serve: Any, demo_folder: Path, caplog: pytest.LogCaptureFixture
):
    decoding, go_on = threading.Event(), threading.Event()

    def before(verb: str) -> None:
        if verb == "decode":
            decoding.set()
            assert go_on.wait(30)

    backend = Scripted(slots=1, before=before)
    caplog.set_level("INFO", "server.api.access")
    with serve(Settings(slots=1), scripted(demo_folder, backend)) as client:
        for number, (route, short) in enumerate(GENERATING):
            body = json.dumps(short).replace(": 3", ": 60").encode()
            decoding.clear()
            go_on.clear()
            with raw(client, head(route, f"content-length: {len(body)}", f"x-request-id: gone-{number}") + body):
                assert decoding.wait(30)  # a step runs, and the client leaves
            eventually(
                lambda number=number: f"gone-{number}" in [getattr(each, "request_id", "") for each in caplog.records]
            )
            calls = len(backend.log)
            go_on.set()
            eventually(lambda calls=calls: len(backend.log) > calls)
            assert backend.log[calls:] == [("release", 0)], f"{route}: no further step"
            assert caplog.records[-1].outcome == "dropped"  # type: ignore[attr-defined]
        assert post(client).status_code == 200


def test_health_is_503_while_loading_draining_or_after_a_backend_that_cannot_go_on_with_the_reason(
    demo_folder: Path,
):
    loaded = threading.Event()
    lose: list[Exception] = []

    def before(verb: str) -> None:
        if lose:
            raise lose[0]

    def load(settings: Settings) -> Any:
        assert loaded.wait(30)
        return scripted(demo_folder, Scripted(before=before))(settings)

    async def phases(ends: str) -> list[tuple[int, str]]:
        app = create_app(Settings(), load)
        transport = httpx.ASGITransport(app)
        seen = []
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):

            async def note() -> None:
                replies = [await client.get(route) for route in ("/health", "/", "/ping")]
                replies.append(await client.post("/generate", json=GENERATING[0][1]))
                if replies[0].status_code == 200:
                    assert [reply.status_code for reply in replies] == [200] * 4
                    seen.append((200, ""))
                else:
                    assert len({(reply.status_code, reply.text) for reply in replies}) == 1
                    assert replies[0].json()["error_type"] == "healthcheck"
                    seen.append((replies[0].status_code, replies[0].json()["error"]))

            await note()
            loaded.set()
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.01)
            await note()
            if ends == "drained":
                await app.state.service.drain(1.0)
            else:
                lose.append(BackendLost("the device is gone"))
                assert (await client.post("/generate", json=GENERATING[0][1])).status_code == 424
            await note()
            await note()
        return seen

    begin = [(503, "loading"), (200, "")]
    assert asyncio.run(phases("drained")) == begin + [(503, "shutting down")] * 2
    loaded.clear()
    lost = (503, "unhealthy: the backend cannot go on: the device is gone")
    assert asyncio.run(phases("lost")) == begin + [lost] * 2


def test_a_backend_exception_fails_the_requests_it_touched_error_event_or_424_frees_the_slots_and_the_engine_goes_on(
    serve: Any, demo_folder: Path
):
    both, fail = threading.Event(), [True]

    def before(verb: str) -> None:
        if verb == "decode":
            assert both.wait(30)
            if len(backend._live) == 2 and fail:
                fail.pop()
                raise RuntimeError("the device stumbled")

    backend = Scripted(slots=2, before=before)
    with serve(Settings(), scripted(demo_folder, backend)) as client:
        whole, streamed = ("/generate", "/generate_stream")
        replies: dict[str, httpx.Response] = {}
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}

        def ask(route: str) -> None:
            replies[route] = client.post(route, json=body)

        with ExitingThreads() as threads:
            for route in (whole, streamed):
                threads.start(lambda route=route: ask(route))
            eventually(lambda: value(client, "tgi_request_count") == 2)
            both.set()
        told = {"error": "Request failed during generation: the device stumbled", "error_type": "generation"}
        assert (replies[whole].status_code, replies[whole].json()) == (424, told)
        events = replies[streamed].text.split("\n\n")
        assert json.loads(events[-2].removeprefix("data: ")) == told
        assert 1 <= sum('"token"' in event for event in events) <= 3
        assert client.get("/health").status_code == 200
        assert value(client, "tgi_batch_current_size") == value(client, "tgi_queue_size") == 0
        expected = client.post(whole, json=body)
        assert expected.status_code == 200
        with ExitingThreads() as threads:  # both slots are there
            for route in (whole, streamed):
                threads.start(lambda route=route: ask(route))
        assert replies[whole].json() == expected.json()
        assert replies[streamed].text.count('"token"') == 20


KEY = "s3cret-Key"


def test_with_an_api_key_set_every_generating_route_needs_it_compared_in_constant_time_never_logged(
    demo_folder: Path, serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    backend = Scripted()
    settings = Settings(api_key=KEY, log_level="debug")
    app = create_app(settings, scripted(demo_folder, backend))
    compared: list[tuple[bytes, bytes]] = []
    plain = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or plain(a, b))

    async def ask_everything() -> tuple[dict[tuple[str, str], list[httpx.Response]], list[httpx.Response]]:
        wrong = [{}, *({"authorization": f"Bearer {key}"} for key in (KEY[:-1], KEY + "x", "x" * 10, ""))]
        wrong += [{"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"x-api-key": KEY}]
        replies = {}
        async with inside(app) as client:
            operations = app.openapi()["paths"]
            for path, method in [(each, method.upper()) for each in operations for method in operations[each]]:
                url = path.replace("{model}", "demo")
                replies[method, path] = [await client.request(method, url, headers=header) for header in wrong]
            assert backend.log == [], "no slot"
            right = [
                await client.post(route, json=body, headers={"authorization": f"bearer {KEY}"})
                for route, body in GENERATING
            ]
            right.append(await client.get("/info"))
        return replies, right

    with caplog.at_level("DEBUG"):
        replies, right = asyncio.run(ask_everything())
    routes = {
        (method, route.path.replace(":path", "")) for route in all_routes(app) for method in route.methods - {"HEAD"}
    }
    assert routes - {("GET", "/api-doc/openapi.json")} == set(replies), "every route was asked"
    generating = {(method, route.path) for route in all_routes(app) if generates(route) for method in route.methods}
    assert generating >= {("POST", route) for route, _ in GENERATING}
    guarded = {operation for operation, asked in replies.items() if all(each.status_code == 401 for each in asked)}
    assert set(replies) - guarded == OPEN
    assert generating <= guarded
    for operation in guarded:
        for reply in replies[operation]:
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "authorization: Bearer KEY" in sentence(reply)
            keys = {"message", "type", "param", "code"} if operation[1].startswith("/v1/") else None
            assert keys is None or set(reply.json()["error"]) == keys
            assert keys is not None or set(reply.json()) == {"error", "error_type"}
    assert all(reply.status_code != 401 for operation in OPEN for reply in replies[operation])
    assert [reply.status_code for reply in right] == [200] * len(right)
    assert {expected for _, expected in compared} == {KEY.encode()}
    assert {given for given, _ in compared} == {
        KEY.encode(),
        *(key.encode() for key in (KEY[:-1], KEY + "x", "x" * 10)),
    }
    for shown in (caplog.text, settings.model_dump_json(), repr(settings), *(reply.text for reply in right)):
        assert KEY not in shown
    assert right[-1].json()["settings"]["api_key"] == "**********"

    with serve(settings, scripted(demo_folder, backend), wait=False) as client:
        eventually(lambda: client.get("/health").status_code == 200)
        for route, _ in GENERATING:  # the body isn't asked for
            with raw(client, head(route, "content-length: 100", "expect: 100-continue")) as connection:
                assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def all_routes(app: FastAPI) -> list[APIRoute]:
    found: list[APIRoute] = []

    def walk(routes: Any) -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.append(route)
            elif hasattr(route, "routes") or hasattr(route, "original_router"):
                walk(getattr(route, "routes", None) or route.original_router.routes)

    walk(app.routes)
    return found


def generates(route: APIRoute) -> bool:
    """Whether it is given the call with which a request gets to the engine."""
    return any(each.call is call_of for each in route.dependant.dependencies)


def test_bodies_over_the_limit_and_bad_input_get_4xx_and_cost_no_slot(serve: Any, demo_folder: Path):
    backend = Scripted()
    settings = Settings(payload_limit=1000)
    with serve(settings, scripted(demo_folder, backend)) as client:
        asked = 0
        for route, body in GENERATING:
            key = next(iter(body))
            for content, kind, statuses in (
                (json.dumps(body | {key: "a" * 1000}).encode(), "application/json", {413}),
                (b"{", "application/json", {400}),
                (b"[]", "application/json", {400, 422}),
                (json.dumps(body | {"surprise": 1}).encode(), "application/json", {400, 422}),
                (json.dumps(body | {key: 7}).encode(), "application/json", {400, 422}),
                (json.dumps(body | {key: []}).encode(), "application/json", {400, 422}),
                (json.dumps(body | {key: "a" * 200}).encode(), "application/json", {400, 422}),
                (json.dumps(body).encode(), "text/plain", {415}),
            ):
                reply = client.post(route, content=content, headers={"content-type": kind})
                assert reply.status_code in statuses, (route, content[:80], reply.text)
                assert sentence(reply)
                asked += 1
        assert asked == 8 * len(GENERATING)
        assert backend.log == []
        assert value(client, "tgi_request_count") == asked
        assert post(client).status_code == 200


CANARIES = ("canaryPrompt", "canaryKey", "canaryField", "canaryModel", "canaryQuery", "canarySystem")


@pytest.mark.e2e
@pytest.mark.parametrize("style", ["json", "text"])
def test_prompts_and_outputs_are_not_logged_by_default_logs_are_structured_and_carry_the_request_id(
    demo_folder: Path, style: str
):
    log: list[str] = []
    prompt = "canaryPrompt says The clock"
    bodies: list[tuple[str, Any, int]] = [
        ("/generate", {"inputs": prompt, "parameters": {"max_new_tokens": 30, "ignore_eos": True}}, 200),
        ("/generate_stream", {"inputs": prompt, "parameters": {"max_new_tokens": 30, "ignore_eos": True}}, 200),
        ("/v1/completions", {"prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True}, 200),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "canarySystem"}], "max_tokens": 9}, 200),
        ("/tokenize", {"inputs": prompt}, 200),
        ("/generate", {"inputs": prompt, "parameters": {"max_new_tokens": "canaryField"}}, 422),
        ("/generate", {"inputs": prompt, "canaryField": 1}, 422),
        ("/v1/completions", {"prompt": prompt, "model": "canaryModel"}, 404),
        ("/v1/completions?q=canaryQuery", {"prompt": [prompt] * 3, "max_tokens": 2}, 200),
        ("/generate", "canaryPrompt", 422),
        ("/invocations", {"inputs": prompt + " again" * 3000, "parameters": {}}, 422),
    ]
    options = ["--model", str(demo_folder), "--max-total-tokens", "512", "--threads", "1"]
    options += ["--log-format", style] if style == "text" else []  # json: no terminal is there
    outputs = []
    with (
        process(*options, environment={"TOKENCLOCK_API_KEY": "canaryKey"}, log=log) as (running, url),
        httpx.Client(base_url=url, timeout=60, headers={"authorization": "Bearer canaryKey"}) as client,
    ):
        wait_until_ready(client)
        for number, (route, body, status) in enumerate(bodies):
            reply = client.post(route, json=body, headers={"x-request-id": f"request-{number}"})
            assert reply.status_code == status, reply.text
            outputs += [reply.text] if route == "/generate" and status == 200 else []
        made = client.post("/generate", json=bodies[0][1]).headers["x-request-id"]
        wrong = {"authorization": "Bearer canaryKeyToo", "x-request-id": "request-wrong"}
        assert client.post("/generate", json=bodies[0][1], headers=wrong).status_code == 401
        with client.stream("POST", "/generate_stream", json=bodies[1][1], headers={"x-request-id": "request-left"}):
            pass
        running.terminate()
        assert running.wait(timeout=30) == 0
    lines = [line for line in log if line.strip()]
    said = [parsed(line, style) for line in lines]
    text = json.loads(outputs[0])["generated_text"]
    assert len(text) > 40, "an output to look for"
    pieces = [text[begin : begin + 12] for begin in range(0, 36, 12)]
    for line in lines:
        assert not any(hidden.lower() in line.lower() for hidden in (*CANARIES, *pieces)), line
    requests = {line["request_id"]: line for line in said if line["event"] == "request"}
    expected = {f"request-{number}" for number in range(len(bodies))} | {made, "request-wrong", "request-left"}
    assert set(requests) == expected, "one line each, probes none"
    assert len([line for line in said if line["event"] == "request"]) == len(expected)
    assert all({"timestamp", "level", "logger", "event"} <= line.keys() for line in said)
    first = requests["request-0"]
    told = {name: str(first[name]) for name in ("route", "status", "outcome", "new_tokens", "texts")}
    assert told == {"route": "/generate", "status": "200", "outcome": "success", "new_tokens": "30", "texts": "1"}
    parts = sum(float(first[name]) for name in ("queue_s", "prefill_s", "decode_s"))
    assert 0 < parts <= float(first["took_s"])
    outcomes = [requests[f"request-{number}"]["outcome"] for number in range(len(bodies))]
    assert outcomes == ["success"] * 5 + ["validation"] * 3 + ["success"] + ["validation"] * 2
    assert requests["request-wrong"]["outcome"] == "unauthorized"
    assert str(requests["request-8"]["new_tokens"]) == "6"


def parsed(line: str, style: str) -> dict[str, Any]:
    """A log line's values: JSON, or logfmt by its own grammar."""
    if style == "json":
        return json.loads(line)  # type: ignore[no-any-return]
    values = {}
    rest = line.strip()
    while rest:
        key, equals, rest = rest.partition("=")
        assert equals, line
        if rest.startswith('"'):
            end = next(at for at in range(1, len(rest)) if rest[at] == '"' and rest[at - 1] != "\\")
            values[key], rest = rest[1:end], rest[end + 1 :].lstrip()
        else:
            values[key], _, rest = rest.partition(" ")
    return values


def test_a_requests_times_add_up_queue_prefill_decode_what_it_took_within_a_millisecond(serve: Any, demo_folder: Path):
    # A clock that only the backend moves: what a request took is known in closed form.
    prefill_s, decode_s, texts, new_tokens = 0.0123456, 0.0100007, 3, 3
    each_s = prefill_s + (new_tokens - 1) * decode_s
    now, together = [1000.0], threading.Event()

    def before(verb: str) -> None:
        assert together.wait(30)
        now[0] += {"prefill": prefill_s, "decode": decode_s, "release": 0.0}[verb]

    async def ask(route: str, body: dict[str, Any]) -> list[httpx.Response]:
        together.clear()
        backend = Scripted(slots=1, before=before)
        app = create_app(Settings(slots=1), scripted(demo_folder, backend), lambda: now[0])
        async with inside(app) as client:
            asked = [
                asyncio.create_task(client.post(route, json=body, headers={"x-tokenclock-timing": "1"}))
                for _ in range(texts)
            ]
            while len(app.state.service._open) < texts:
                await asyncio.sleep(0.001)
            together.set()
            return await asyncio.gather(*asked)

    checked = 0
    for route, body in GENERATING:
        replies = asyncio.run(ask(route, body))
        told = sorted((timing_of(reply) for reply in replies), key=lambda timing: timing["queue_s"])
        for place, timing in enumerate(told):
            took_s = (place + 1) * each_s
            assert timing["queue_s"] == pytest.approx(place * each_s, abs=1e-6)
            assert timing["prefill_s"] == pytest.approx(prefill_s, abs=1e-6)
            assert timing["queue_s"] + timing["prefill_s"] + timing["decode_s"] == pytest.approx(took_s, abs=1e-5)
            checked += 1
        if "x-total-time" in replies[0].headers:
            parts = ("x-validation-time", "x-queue-time", "x-inference-time")
            sums = sorted(sum(int(reply.headers[part]) for part in parts) for reply in replies)
            assert sums == [int((place + 1) * each_s * 1000) for place in range(texts)]
            last = max(replies, key=lambda reply: int(reply.headers["x-queue-time"]))
            assert int(last.headers["x-total-time"]) == sums[-1]
    assert checked == len(GENERATING) * texts

    # By a real clock, over a real socket: no less than the backend was seen at work, no more than the client waited.
    seen: list[float] = []

    def slowly(verb: str) -> None:
        if verb != "release":
            seen.append(time.monotonic())
            time.sleep(0.005)

    with serve(Settings(), scripted(demo_folder, Scripted(before=slowly))) as client:
        for route, body in GENERATING:
            seen.clear()
            began = time.monotonic()
            reply = client.post(route, json=body, headers={"x-tokenclock-timing": "1"})
            waited = time.monotonic() - began
            timing = timing_of(reply)
            total = timing["queue_s"] + timing["prefill_s"] + timing["decode_s"]
            assert seen[-1] + 0.005 - seen[0] - 0.001 <= total <= waited + 0.001


def timing_of(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    if "x-tokenclock-timing" in reply.headers:
        return json.loads(reply.headers["x-tokenclock-timing"])  # type: ignore[no-any-return]
    event = next(block for block in reply.text.split("\n\n") if block.startswith("event: tokenclock"))
    return json.loads(event.partition("data: ")[2])  # type: ignore[no-any-return]
