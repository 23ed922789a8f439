"""What an endpoint speaks is guessed from its URL and its answers, said, and never at the price of a key.

Method: a real HTTP server that has the routes of one kind of endpoint and keeps every request it gets.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loadtest.endpoints.base import EndpointError
from loadtest.endpoints.choice import Chosen, Wanted, choose
from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.transport.choice import controlling
from loadtest.transport.tls import Tls

TGI_INFO = {"model_id": "m", "max_total_tokens": 2048, "router": "text-generation-router"}
OURS = {**TGI_INFO, "router": "tokenclock", "slots": 4}
MODELS = {"object": "list", "data": [{"id": "first", "owned_by": "vllm"}, {"id": "second", "owned_by": "who"}]}
Answer = tuple[int, Any]


@dataclass
class Served:
    url: str
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers


@contextmanager
def serving(routes: dict[str, Answer]) -> Iterator[Served]:
    """A server with these routes; 404 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            served.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            status, said = routes.get(self.path, (404, {"error": "not found"}))
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Served(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join(5)


def chosen(url: str, **wanted: Any) -> Chosen:
    return choose(url, Wanted(**wanted), controlling("gevent", Tls()))


@pytest.fixture(autouse=True)
def _no_key_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


COMPLETIONS = {"/v1/models": (200, MODELS), "/v1/completions": (400, {}), "/v1/chat/completions": (422, {})}
CHAT = {"/v1/models": (200, MODELS), "/v1/chat/completions": (400, {})}


@pytest.mark.parametrize(
    ("routes", "ending", "protocol", "why"),
    [
        ({"/info": (200, TGI_INFO)}, "", "tgi", "/info answers as TGI's does"),
        ({"/info": (200, TGI_INFO)}, "/generate_stream", "tgi", "the URL ends in /generate_stream"),
        ({"/info": (200, TGI_INFO), **COMPLETIONS}, "/v1", "openai-completions", "/v1/completions is there"),
        (COMPLETIONS, "", "openai-completions", "/v1/completions is there; model first"),
        (COMPLETIONS, "/v1/", "openai-completions", "/v1/completions is there; model first"),
        (COMPLETIONS, "/v1/chat/completions", "openai-chat", "the URL ends in /v1/chat/completions; model first"),
        (CHAT, "", "openai-chat", "/v1/chat/completions is there; model first"),
        ({"/info": (200, {"name": "not TGI"}), **CHAT}, "", "openai-chat", "/v1/chat/completions is there"),
        ({"/invocations": (400, {})}, "/invocations", "sagemaker", "the URL ends in /invocations"),
    ],
)
def test_the_type_is_guessed_and_said(routes: dict[str, Answer], ending: str, protocol: str, why: str):
    with serving(routes) as served:
        found = chosen(served.url + ending)
    assert found.endpoint.protocol == protocol
    assert found.why.startswith(why)
    assert found.target.path == ""


def test_a_path_before_the_route_stays():
    with serving({f"/team/a{path}": answer for path, answer in COMPLETIONS.items()}) as served:
        assert chosen(f"{served.url}/team/a/v1").target.path == "/team/a"


def test_what_is_said_is_not_guessed():
    with serving({**COMPLETIONS, "/info": (200, TGI_INFO)}) as served:
        assert chosen(served.url, kind="openai-chat").endpoint.protocol == "openai-chat"
        assert all(method == "GET" for method, _, _ in served.asked), "no route was tried out"
        assert chosen(served.url, kind="openai-chat", model="second").why.endswith("model second")


@pytest.mark.parametrize(
    ("routes", "url", "wanted", "message"),
    [
        ({}, "", {}, "answers neither as TGI nor as an OpenAI endpoint does"),
        ({}, "", {"kind": "tgi"}, "/info answers 404: is this a TGI endpoint?"),
        ({}, "/v1/chat/completions", {}, "/v1/models lists no model: say --model"),
        (CHAT, "/v1/chat/completions", {"kind": "tgi"}, "names a route of openai-chat, and --endpoint-type tgi"),
        ({"/v1/models": (401, {"error": "no"})}, "", {"kind": "openai-chat"}, "answers 401: no; is --api-key right?"),
        ({}, "", {"transport": "boto3"}, "boto3 carries requests to sagemaker:// URLs only"),
        (CHAT, "", {"transport": "huggingface_hub"}, "huggingface_hub streams TGI's protocol only, not openai-chat"),
        (
            {"/info": (200, TGI_INFO)},
            "",
            {"transport": "huggingface_hub", "extra_body": {"adapter_id": "a"}},
            "huggingface_hub can't send adapter_id",
        ),
        (
            {"/info": (200, TGI_INFO)},
            "",
            {"transport": "huggingface_hub", "extra_body": {"parameters": {"seed": 1, "ignore_eos": True}}},
            "huggingface_hub has no parameter ignore_eos",
        ),
        ({"/info": (200, TGI_INFO)}, "", {"extra_body": {"parameters": 3}}, "`parameters` is no object"),
        ({"/info": (200, TGI_INFO)}, "", {"model": "m"}, "names no model, an endpoint has one: leave --model m out"),
        ({"/info": (200, TGI_INFO)}, "", {"kind": "sagemaker", "model": "m"}, "leave --model m out"),
        (CHAT, "/v1", {"kind": "sagemaker"}, "names a route of openai, and --endpoint-type sagemaker"),
        (CHAT, "", {"api_key": "sk-1", "headers": (("authorization", "Basic eDp5"),)}, "both say who asks"),
    ],
)
def test_what_cannot_be_measured_is_said_with_the_remedy(
    routes: dict[str, Answer], url: str, wanted: dict[str, Any], message: str
):
    with serving(routes) as served, pytest.raises(EndpointError) as refused:
        chosen(served.url + url, **wanted)
    assert message in str(refused.value)


def test_a_name_in_a_url_is_refused_without_repeating_it():
    with pytest.raises(EndpointError) as refused:
        chosen("http://someone:a-password@127.0.0.1:1/v1")
    assert "a-password" not in str(refused.value)
    assert "someone" not in str(refused.value)


# --- who is known to generate on past the end of a text --------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "wanted", "suppresses_eos"),
    [
        ({"/info": (200, TGI_INFO)}, {}, False),
        ({"/info": (200, OURS)}, {}, True),
        (CHAT, {}, True),
        (CHAT, {"model": "second"}, False),
        (CHAT, {"model": "unlisted"}, False),
        (CHAT, {"extra_body": {"ignore_eos": None}}, False),
        ({"/info": (200, OURS)}, {"extra_body": {"parameters": {"ignore_eos": False}}}, False),
    ],
)
def test_only_servers_that_say_who_they_are_are_taken_at_their_word(
    routes: dict[str, Answer], wanted: dict[str, Any], suppresses_eos: bool
):
    with serving(routes) as served:
        assert chosen(served.url, **wanted).endpoint.suppresses_eos is suppresses_eos


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routes", "environment", "wanted", "sent"),
    [
        (CHAT, {"OPENAI_API_KEY": "sk-environment"}, {}, "Bearer sk-environment"),
        (CHAT, {"OPENAI_API_KEY": "sk-environment"}, {"api_key": "sk-option"}, "Bearer sk-option"),
        (CHAT, {"HF_TOKEN": "hf_environment"}, {}, None),
        ({"/info": (200, TGI_INFO)}, {"HF_TOKEN": "hf_environment"}, {}, "Bearer hf_environment"),
        ({"/info": (200, TGI_INFO)}, {"OPENAI_API_KEY": "sk-environment"}, {}, None),
        (CHAT, {"OPENAI_API_KEY": "sk-environment"}, {"headers": (("authorization", "Basic x"),)}, "Basic x"),
    ],
)
def test_a_key_goes_to_the_protocol_it_is_for(
    monkeypatch: pytest.MonkeyPatch,
    routes: dict[str, Answer],
    environment: dict[str, str],
    wanted: dict[str, Any],
    sent: str | None,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with serving(routes) as served:
        target = chosen(served.url, **wanted).target
    assert dict(target.headers).get("authorization") == sent
    assert (sent or "Bearer") not in repr(target), "a log may hold it"


def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-with-a-line\nend")
    with serving(CHAT) as served, pytest.raises(EndpointError) as refused:
        chosen(served.url)
    assert "OPENAI_API_KEY" in str(refused.value)
    assert "sk-with" not in str(refused.value)


def test_nobody_gets_tgis_key_before_it_is_known_to_speak_tgi(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    with serving(CHAT) as served:
        chosen(served.url)
        assert all("authorization" not in sent for _, _, sent in served.asked)


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(CHAT) as served:
        assert chosen(served.url).target.headers == ()


def test_space_around_a_key_is_not_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-environment\n")
    with serving(CHAT) as served:
        assert chosen(served.url).target.headers == (("authorization", "Bearer sk-environment"),)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://bob:hunter2pw@host:80x", "holds a name or password"),
        ("ftp://bob:hunter2pw@host", "holds a name or password"),
        ("http://host/v1?api_key=hunter2pw", "is more than a base URL"),
        ("http://host:0", "no valid port"),
        ("http://host/a b", "percent-encode"),
    ],
)
def test_a_url_that_cannot_be_measured_is_refused_without_its_secrets(url: str, shown: str):
    with pytest.raises(EndpointError, match=shown) as refused:
        chosen(url)
    assert "hunter2pw" not in str(refused.value)


def test_headers_of_the_user_are_on_every_request_and_stand_over_ours():
    headers = (("x-team", "a"), ("user-agent", "mine"))
    with serving(CHAT) as served:
        chosen(served.url, headers=headers)
        assert served.asked
        for _, _, sent in served.asked:
            assert (sent["x-team"], sent["user-agent"]) == ("a", "mine")


# --- what is laid over a request -------------------------------------------------------------------------------------


def body(endpoint: TgiEndpoint | OpenAiEndpoint, prompt: Any = "x") -> Any:
    return json.loads(endpoint.request(prompt, 7, "r-1", 5).body)


def test_extra_body_is_laid_over_tgis_request_and_its_parameters():
    said = body(TgiEndpoint(extra_body={"parameters": {"seed": 1, "ignore_eos": None}, "adapter": "a"}))
    assert said == {
        "inputs": "x",
        "adapter": "a",
        "parameters": {"max_new_tokens": 7, "details": True, "seed": 1, "truncate": 5},
    }


def test_the_number_of_new_tokens_is_filled_in_wherever_a_protocol_has_its_fields():
    extra = {"limit": "{new_tokens}", "parameters": {"min_new_tokens": "{new_tokens}", "stop": ["{new_tokens}"]}}
    said = body(TgiEndpoint(extra_body=extra))
    assert (said["limit"], said["parameters"]["min_new_tokens"], said["parameters"]["stop"]) == (7, 7, ["{new_tokens}"])


def test_null_parameters_are_none():
    with serving({"/info": (200, TGI_INFO)}) as served:
        extra = {"parameters": {"ignore_eos": None}}
        assert chosen(served.url, transport="huggingface_hub", extra_body=extra).endpoint.protocol == "tgi"
    assert body(TgiEndpoint(extra_body={"parameters": None}))["parameters"]["max_new_tokens"] == 7


def test_extra_body_is_laid_over_openais_request():
    said = body(OpenAiEndpoint("chat", "m", {"ignore_eos": None, "min_tokens": "{new_tokens}"}))
    assert "ignore_eos" not in said
    assert (said["min_tokens"], said["max_tokens"]) == (7, 7)


@pytest.mark.parametrize(
    ("endpoint", "prompt", "message"),
    [
        (TgiEndpoint(), [{"role": "user", "content": "x"}], "use --endpoint-type openai-chat"),
        (TgiEndpoint(), [1, 2], "takes a text"),
        (OpenAiEndpoint("completions", "m"), [{"role": "user", "content": "x"}], "use --endpoint-type openai-chat"),
        (OpenAiEndpoint("chat", "m"), [1, 2], "use --endpoint-type openai-completions"),
    ],
)
def test_a_prompt_that_a_protocol_cannot_say_is_refused(endpoint: Any, prompt: Any, message: str):
    with pytest.raises(EndpointError, match=message):
        endpoint.request(prompt, 7, "r-1")
