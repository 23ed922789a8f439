"""The server renders these bytes, and the client reads them.

`transcripts/*.txt` are written by hand, from the contract of text-generation-inference and from OpenAI's API reference,
for a model whose tokens are known (conftest.py). A `{{placeholder}}` stands for what changes from run to run. Headers
that are named must be there with that value; those that aren't are free.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.sse import Parser, ServerSentEvent

FOLDER = Path(__file__).parent / "transcripts"
#: what a placeholder matches, and what stands there when the client reads the transcript
PLACEHOLDERS = {
    "integer": (r"\d+", "12"),
    "number": (r"\d+(?:\.\d+)?(?:e-\d+)?", "0.25"),
    "id": (r"[0-9a-f]{16}", "0123456789abcdef"),
    "any": (r"[^\r\n]*", "anything"),
}


@dataclass(frozen=True)
class Transcript:
    name: str
    method: str
    path: str
    sent: dict[str, str]  # headers
    content: bytes
    status: int
    headers: dict[str, str]
    body: str

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def sample(self) -> bytes:
        """The body as a client would see it."""
        return re.sub(r"\{\{(\w+)\}\}", lambda found: PLACEHOLDERS[found[1]][1], self.body).encode()


def read(path: Path) -> Transcript:
    """`=== request`, `=== response` and `=== body` begin the three parts; `#` lines before them say the source."""
    _, request, rest = re.split(r"^=== (?:request|response)\n", path.read_text(encoding="utf-8"), flags=re.M)
    response, body = rest.split("=== body\n") if "=== body\n" in rest else (rest, "")
    head, _, content = request.partition("\n\n")
    first, *sent = head.strip().split("\n")
    method, target = first.split(" ")
    status, *headers = response.strip().split("\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in headers)}
    body = body.rstrip("\n") + ("\n\n" if fields.get("content-type", "").startswith("text/event-stream") else "")
    return Transcript(
        path.stem,
        method,
        target,
        dict(line.split(": ", 1) for line in sent),
        content.strip().encode(),
        int(status),
        fields,
        body,
    )


def pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"\{\{(\w+)\}\}", text)
    return re.compile("".join(PLACEHOLDERS[part][0] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


ALL = [read(path) for path in sorted(FOLDER.glob("*.txt"))]
STREAMS = [each for each in ALL if each.is_stream]
TGI_STREAMS = [each for each in STREAMS if each.name.startswith("tgi_")]


def test_there_are_transcripts_of_every_protocol():
    names = [each.name for each in ALL]
    assert len(names) > 20
    for protocol in ("tgi_", "openai_", "sagemaker_"):
        assert sum(name.startswith(protocol) for name in names) >= 3
    assert len(STREAMS) > 5


@pytest.mark.parametrize("transcript", ALL, ids=lambda each: each.name)
def test_the_server_renders_the_transcript(known: httpx.Client, transcript: Transcript):
    headers = {"content-type": "application/json"} if transcript.content else {}
    reply = known.request(
        transcript.method, transcript.path, content=transcript.content, headers=headers | transcript.sent
    )
    assert reply.status_code == transcript.status, reply.text
    for name, value in transcript.headers.items():
        assert name in reply.headers, f"{name} is missing"
        assert pattern(value).fullmatch(reply.headers[name]), f"{name}: {reply.headers[name]}"
    assert pattern(transcript.body).fullmatch(reply.text), f"\n{reply.text!r}\n{transcript.body!r}"


def events_of(stream: bytes) -> list[tuple[str, str]]:
    """(event name, data), read line by line by a parser of the test's own, which knows what transcripts hold."""
    found, name, data = [], "message", None
    for line in stream.decode().split("\n"):
        if line.startswith("data: "):
            data = line[6:]
        elif line.startswith("event: "):
            name = line[7:]
        elif not line and data is not None:
            found.append((name, data))
            name, data = "message", None
    return found


def in_pieces(stream: bytes, cuts: list[int]) -> list[ServerSentEvent]:
    parser = Parser()
    edges = [0, *sorted(cuts), len(stream)]
    events = [event for start, stop in itertools.pairwise(edges) for event in parser.feed(stream[start:stop])]
    assert parser.close() == b""
    return events


@pytest.mark.parametrize("transcript", STREAMS, ids=lambda each: each.name)
@given(data=st.data())
def test_the_client_reads_the_transcript_however_it_is_split(transcript: Transcript, data: st.DataObject):
    stream = transcript.sample
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    events = in_pieces(stream, cuts)
    assert [(event.event, event.data.decode()) for event in events] == events_of(stream)


@pytest.mark.parametrize("transcript", STREAMS, ids=lambda each: each.name)
def test_the_client_reads_the_transcript_byte_by_byte(transcript: Transcript):
    stream = transcript.sample
    events = in_pieces(stream, list(range(len(stream))))
    assert [(event.event, event.data.decode()) for event in events] == events_of(stream)


@pytest.mark.parametrize("transcript", TGI_STREAMS, ids=lambda each: each.name)
def test_the_clients_reading_of_a_tgi_stream_agrees_with_what_the_stream_says_of_itself(transcript: Transcript):
    said: list[tuple[str, Any]] = [(name, json.loads(data)) for name, data in events_of(transcript.sample)]
    tokens = [body for name, body in said if name == "message" and "token" in body]
    readings = [TgiEndpoint().read(event) for event in in_pieces(transcript.sample, [])]
    assert sum(reading.tokens for reading in readings) == len(tokens)
    errors = [body["error"] for _, body in said if "error" in body]
    assert [reading.error is not None for reading in readings].count(True) == len(errors)
    if errors:
        return
    (last,) = [reading for reading in readings if reading.finished]
    whole = tokens[-1]["generated_text"]
    assert whole.endswith("".join(reading.text for reading in readings))
    if tokens[-1]["details"] is not None:
        assert (last.new_tokens, last.input_tokens) == (
            tokens[-1]["details"]["generated_tokens"],
            tokens[-1]["details"]["input_length"],
        )
    timings = [body for name, body in said if name == "tokenclock"]
    assert [reading.server for reading in readings if reading.server is not None] == timings
