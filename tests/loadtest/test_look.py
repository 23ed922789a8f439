"""What a first look learns: which fields a strict server takes, and how long prompts are by its own count.

Method: a real OpenAI endpoint over HTTP that counts words, puts a template around them, and refuses what it is told to.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.counting import PromptMaker, lengths_by_counts
from loadtest.endpoints.base import EndpointError
from loadtest.endpoints.choice import Wanted
from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.plan import Cell
from loadtest.prompts import WORDS, PromptError, Prompts
from loadtest.site import Look, Site
from loadtest.transport.base import Timeouts
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls

TEMPLATE = 7  # tokens around every prompt


@contextmanager
def strict(
    refused: Collection[str] = (), usage: bool = True, merges: int = 0, constant: int = 0, takes_ids: bool = True
) -> Iterator[tuple[str, list[Any]]]:
    """Its base URL, and the bodies that it took. merges: words fewer than a text has, where it is long."""
    took: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self.reply(200 if known else 404, "application/json", b'{"data": [{"id": "m", "owned_by": "vllm"}]}')

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if wrong := next((name for name in refused if name in said), None):
                message = f"Unexpected fields in the request: {{'{wrong}'}}"
                self.reply(422, "application/json", json.dumps({"detail": message}).encode())
                return
            took.append(said)
            asked = said["prompt"] if "prompt" in said else said["messages"][0]["content"]
            if isinstance(asked, list) and not takes_ids:
                self.reply(400, "application/json", b'{"detail": "prompt must be a string."}')
                return
            words = len(asked) - TEMPLATE if isinstance(asked, list) else len(asked.split())
            spoken = {"text": "x"} if "prompt" in said else {"delta": {"content": "x"}}
            events: list[Any] = [{"choices": [{"index": 0, "finish_reason": "length", **spoken}]}]
            if usage:
                counted = TEMPLATE + words - (merges if words > 100 and isinstance(asked, str) else 0)
                events.append({"choices": [], "usage": {"prompt_tokens": constant or counted, "completion_tokens": 1}})
            self.reply(200, "text/event-stream", "".join(f"data: {json.dumps(e)}\n\n" for e in events).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", took
        server.shutdown()
        thread.join(5)


def look(url: str, lengths: Collection[int] = (64,), tokenizer: Path | None = None, **wanted: Any) -> Site:
    told = Wanted(**{"kind": "openai-chat", **wanted})
    looking = Look(connecting("gevent", Tls()), controlling("gevent", Tls()), told, tokenizer)
    return looking.at(url, "seed", lengths, 0)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer.json that knows the words as a token each."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture(autouse=True)
def _no_key_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_fields_that_a_server_refuses_are_left_out_and_said():
    with strict(refused=("ignore_eos", "stream_options", "temperature")) as (url, took):
        found = look(url)
    assert isinstance(found.endpoint, OpenAiEndpoint)
    assert found.endpoint.extra_body == dict.fromkeys(("ignore_eos", "stream_options", "temperature"))
    assert found.endpoint.suppresses_eos is False, "though its owner is known to"
    for name in ("ignore_eos", "stream_options", "temperature"):
        assert f"it takes no {name}" in found.notes[0]
        assert all(name not in each for each in took)


def test_max_tokens_gets_its_newer_name_where_it_is_refused():
    with strict(refused=("max_tokens",)) as (url, took):
        found = look(url)
    assert {each["max_completion_tokens"] for each in took} == {1}
    assert "it takes no max_tokens" in found.notes[0]
    assert found.endpoint.suppresses_eos is True


def test_what_the_user_asks_for_is_never_left_out():
    with strict(refused=("top_k",)) as (url, _), pytest.raises(EndpointError, match=r"Unexpected fields.*top_k"):
        look(url, extra_body={"top_k": 1})
    with strict(refused=("ignore_eos",)) as (url, _), pytest.raises(EndpointError, match="Unexpected fields"):
        look(url, extra_body={"ignore_eos": True})


def test_prompts_are_exact_by_the_servers_count_template_included():
    with strict() as (url, took):
        found = look(url, (64, 200))
        assert len(took) == 4, "two counts of words, and one prompt of each length"
    assert isinstance(found.prompts, Prompts)
    assert len(found.prompts.draw(64).split()) == 64 - TEMPLATE
    assert len(found.notes) == 1


def test_a_length_that_comes_out_otherwise_is_said():
    with strict(merges=3) as (url, _):
        found = look(url, (64, 200))
    said = [note for note in found.notes if "by the server's count" in note]
    assert len(said) == 2, found.notes
    assert "a prompt made of 200 tokens has" in said[1]


@pytest.mark.parametrize("usage", [True, False])
def test_where_texts_do_not_come_out_exact_token_ids_do(tokenizer: Path, usage: bool):
    with strict(merges=3, usage=usage) as (url, took):
        found = look(url, (64, 200), tokenizer, kind="openai-completions")
        assert isinstance(took[-1]["prompt"], list)
    assert found.notes[1:] == (f"prompts are token ids of {tokenizer}",)
    cell = Cell(None, None, 1, 200, 8)
    prompt, _ = found.prompts.drawn_for(cell)
    assert len(prompt) == 200
    assert set(prompt) <= set(range(len(WORDS)))
    assert prompt != found.prompts.drawn_for(cell)[0]


@pytest.mark.parametrize(("kind", "takes_ids"), [("openai-completions", False), ("openai-chat", True)])
def test_texts_stay_where_ids_are_not_taken(tokenizer: Path, kind: str, takes_ids: bool):
    with strict(merges=3, takes_ids=takes_ids) as (url, _):
        found = look(url, (64, 200), tokenizer, kind=kind)
    assert isinstance(found.prompts, Prompts)
    assert any("by the server's count" in note for note in found.notes)


def test_the_users_tokenizer_is_held_to_the_servers_count(tokenizer: Path):
    with strict() as (url, _):
        found = look(url, (64,), tokenizer)
    said = f"{tokenizer} makes {64 - TEMPLATE} tokens of a prompt that the endpoint counts as 64"
    assert found.notes[1].startswith(said)


def test_a_count_that_never_changes_is_none():
    with strict(constant=10) as (url, took):
        found = look(url)
        assert len(took) == 2
    assert "the endpoint counts no prompts" in found.notes[1]


def test_without_a_count_a_word_is_taken_for_a_token_and_that_is_said():
    with strict(usage=False) as (url, _):
        found = look(url)
    assert "the endpoint counts no prompts" in found.notes[1]


@given(st.lists(st.integers(1, 4), min_size=len(WORDS[:40]), max_size=len(WORDS[:40])), st.integers(0, 50))
def test_lengths_of_words_are_found_by_counting_texts(tokens: list[int], around: int):
    words = WORDS[:40]
    true = dict(zip(words, tokens, strict=True))
    counts = 0

    def count(text: str) -> int:
        nonlocal counts
        counts += 1
        return around + sum(true[word] for word in text.split())

    assert lengths_by_counts(count, words) == (true, around)
    if set(tokens) == {1}:
        assert counts == 2


def test_an_endpoint_that_cuts_prompts_itself_is_no_endless_loop():
    maker = PromptMaker(TgiEndpoint(), None, None, "seed", Timeouts())  # type: ignore[arg-type]  # nothing is asked
    prompts = Prompts(dict.fromkeys(WORDS, 1), 0, "seed")
    with pytest.raises(PromptError, match="counts 40 however long it is"):
        maker._wrong(prompts, lambda text: min(40, len(text.split())), 64)
