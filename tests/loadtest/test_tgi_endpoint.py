"""The reader of TGI's events takes whatever a stranger sends: only tokens are tokens, only numbers are counts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from loadtest.endpoints.base import EndpointError, Reading, parse_url
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.sse import ServerSentEvent
from loadtest.transport.base import Target

TOKEN = {"id": 7, "text": " hi", "logprob": -1.0, "special": False}


def read(said: Any, event: str = "message") -> Reading:
    data = said if isinstance(said, bytes) else orjson.dumps(said)
    return TgiEndpoint().read(ServerSentEvent(event, data, None))


def test_a_token_event_is_one_token_with_its_text():
    said = {"index": 1, "token": TOKEN, "generated_text": None, "details": None}
    assert read(said) == read({**said, "error": None}) == Reading(tokens=1, text=" hi")


def test_a_special_token_counts_and_has_no_visible_text():
    assert read({"token": {**TOKEN, "special": True}, "generated_text": None}) == Reading(tokens=1)


def test_the_last_event_ends_the_stream_and_carries_the_servers_counts():
    details = {"finish_reason": "length", "generated_tokens": 9, "seed": None, "input_length": 5}
    said = {"token": TOKEN, "generated_text": "", "details": details}
    assert read(said) == Reading(tokens=1, text=" hi", finished=True, input_tokens=5, new_tokens=9, full=True)


@pytest.mark.parametrize(
    "details", [None, [], "x", {"generated_tokens": "8", "input_length": True}, {"input_length": -1}]
)
def test_counts_that_are_no_numbers_are_no_counts(details: Any):
    reading = read({"token": TOKEN, "generated_text": "x", "details": details})
    assert (reading.finished, reading.input_tokens, reading.new_tokens) == (True, None, None)


@pytest.mark.parametrize("said", [b"", {"index": 0, "token": None, "generated_text": None}])
def test_an_event_without_a_token_says_nothing(said: Any):
    assert read(said) == Reading()


@pytest.mark.parametrize("said", [b"{", b"\xff", [], 3, {}, {"token": 3}, {"token": {"text": "no id"}}])
def test_what_is_no_event_of_the_protocol_is_an_error(said: Any):
    assert read(said).error is not None
    assert read(said).tokens == 0


def test_an_error_event_keeps_its_message():
    assert read({"error": "too hot", "error_type": "generation"}).error == "generation: too hot"


@pytest.mark.parametrize(("said", "server"), [({"queue_s": 1}, {"queue_s": 1}), ([1], None)])
def test_the_servers_own_timing_is_kept_where_it_is_an_object(said: Any, server: Any):
    assert read(said, "tokenclock") == Reading(server=server)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h:81", Target("h", 81)),
        ("h", Target("h", 80)),
        ("http://h/a/b/", Target("h", 80, "/a/b")),
        ("http://[::1]:9", Target("::1", 9)),
        ("https://h/a", Target("h", 443, "/a", tls=True)),
    ],
)
def test_a_base_url_is_taken_apart(url: str, target: Target):
    assert parse_url(url) == target


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:99999", "http://[::1", "http://h/?a=b", "http://h/→"])
def test_a_url_that_cannot_be_measured_names_itself(url: str):
    with pytest.raises(EndpointError) as caught:
        parse_url(url)
    assert url.partition("?")[0] in str(caught.value)


def test_a_header_in_a_urls_place_is_told_without_what_it_says():
    with pytest.raises(EndpointError, match="that is a header, not a URL") as caught:
        parse_url("Authorization: Bearer k-77")
    assert "k-77" not in str(caught.value)
