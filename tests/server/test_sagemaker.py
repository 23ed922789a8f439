"""SageMaker starts the container with the one argument `serve`, asks /ping, posts to /invocations, sends SIGTERM.

Method: a real process with nothing but the environment; a body of each protocol, streamed and not, held to the
protocol's own route.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import lifecycle, model, service
from server.errors import ModelError
from server.settings import Settings, parse
from tests.server.processes import process, wait_until_ready

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/", {"inputs": "The clock", "parameters": {"max_new_tokens": 4, "details": True}}),
    ("/v1/completions", {"prompt": "The clock", "max_tokens": 4, "temperature": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}),
]


def without_what_varies(text: str) -> str:
    return re.sub(r'"(id|created)":("[^"]*-[^"]*"|\d{10})', r'"\1":0', text)


@pytest.mark.parametrize(("route", "body"), BODIES, ids=["inputs", "prompt", "messages"])
@pytest.mark.parametrize("streamed", [False, True])
def test_invocations_answer_as_the_protocol_of_the_body_does(
    demo: httpx.Client, route: str, body: dict[str, Any], streamed: bool
):
    body = body | {"stream": streamed}
    here, there = demo.post("/invocations", json=body), demo.post(route, json=body)
    assert here.status_code == there.status_code == 200
    assert here.headers["content-type"] == there.headers["content-type"]
    assert without_what_varies(here.text) == without_what_varies(there.text)
    assert ("data: " in here.text) == streamed


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b'{"text": "a"}', 422, "must be an object that holds `inputs`, `messages` or `prompt`"),
        (b"[1]", 422, "must be an object"),
        (b"{", 400, "the body is not JSON"),
        (b'{"inputs": ""}', 422, "`inputs` cannot be empty"),
    ],
)
def test_bodies_of_no_protocol_are_refused_in_tgis_shape(demo: httpx.Client, content: bytes, status: int, message: str):
    reply = demo.post("/invocations", content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, set(reply.json())) == (status, {"error", "error_type"})
    assert message in reply.json()["error"]


def test_ping_says_what_health_says(demo: httpx.Client):
    assert [demo.head(route).status_code for route in ("/ping", "/health", "/")] == [200] * 3
    assert [(reply.status_code, reply.content) for reply in (demo.get("/ping"), demo.get("/health"))] == [
        (200, b"")
    ] * 2


@pytest.mark.e2e
def test_serve_alone_takes_everything_from_the_environment_and_ends_with_sigterm(demo_folder: Path):
    environment = {
        "HF_MODEL_ID": str(demo_folder),
        "TOKENCLOCK_PORT": "0",
        "TOKENCLOCK_SLOTS": "2",
        "TOKENCLOCK_GRACE_S": "1",
    }
    command = [sys.executable, "-m", "server", "serve"]
    with (
        process(command=command, environment=environment) as (running, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        wait_until_ready(client, "/ping")
        info = client.get("/info").json()
        assert (info["model_id"], info["slots"]) == (str(demo_folder), 2)
        asked = {"inputs": "a", "parameters": {"max_new_tokens": 2000, "ignore_eos": True}, "stream": True}
        with client.stream("POST", "/invocations", json=asked) as reply:
            lines = reply.iter_lines()
            next(lines)
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert events[-1].get("error_type") == "healthcheck" or events[-1]["generated_text"]
        assert running.wait(timeout=30) == 0
        assert time.monotonic() - began < 30


def test_the_defaults_leave_sigterm_its_30_seconds():
    settings = Settings()
    assert settings.grace_s + service.STEP_S + service.FAREWELL_S + lifecycle.CLOSING_S < 30
    assert settings.port == 8080


def test_the_model_is_named_by_the_command_line_then_the_environment_then_what_sagemaker_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model, "SAGEMAKER_FOLDER", tmp_path)
    assert parse([]).model is None
    (tmp_path / "nested").mkdir()  # an archive with a folder too many is refused, not passed over for the demonstration
    assert parse([]).model == str(tmp_path)
    with pytest.raises(ModelError, match=r"without config\.json"):
        model.locate(str(tmp_path))
    monkeypatch.setenv("HF_MODEL_ID", "org/name")
    assert parse([]).model == "org/name"
    monkeypatch.setenv("TOKENCLOCK_MODEL", "org/other")
    assert parse([]).model == "org/other"
    assert parse(["--model", "org/third"]).model == "org/third"
