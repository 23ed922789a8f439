"""What is secret stays out of every text, however a server or a command line repeats it, and nothing else is lost."""

from __future__ import annotations

import base64
import json
import logging

import pytest

from loadtest import redaction
from loadtest.redaction import (
    HIDDEN,
    command,
    guard_logs,
    hidden,
    hide,
    keep,
    keep_environment,
    keep_fields,
    keep_header,
    keep_spoken,
    options,
    spoken,
)


def test_a_key_is_hidden_alone_and_inside_what_held_it():
    keep("Bearer sk-1234567")
    assert hide("Incorrect API key provided: sk-1234567.") == f"Incorrect API key provided: {HIDDEN}."
    assert hide("authorization: Bearer sk-1234567") == f"authorization: {HIDDEN}"


def test_name_and_password_of_basic_credentials_are_hidden():
    keep(f"Basic {base64.b64encode(b'someone:a-password').decode()}")
    assert "a-password" not in hide("no such user: someone:a-password; wrong password a-password")


def test_a_key_that_begins_with_another_leaves_no_rest():
    keep("sk-123456")
    keep("sk-123456-and-more")
    assert hide("sk-123456-and-more") == HIDDEN


@pytest.mark.parametrize("secret", ['with"quote', "with\\backslash", "with/slash"])
def test_what_json_escapes_is_hidden_too(secret: str):
    keep(secret)
    assert secret not in hide(secret)
    assert hide(json.dumps(secret)) == f'"{HIDDEN}"'


def test_only_strings_are_looked_at():
    keep("123456")
    keep("key-name")
    assert hidden({"at": 123456, "said": ["123456", {"key-name": None}], "is": True}) == {
        "at": 123456,
        "said": [HIDDEN, {HIDDEN: None}],
        "is": True,
    }


@pytest.mark.parametrize("empty", [None, "", " ", "*/*", "Bearer "])
def test_nothing_is_hidden_for_want_of_a_secret(empty: str | None):
    keep(empty)
    assert hide("x or y, */* and Bearer") == "x or y, */* and Bearer"


@pytest.mark.parametrize("key", ["x", "7", "abc", "EMPTY", "a-b"])
@pytest.mark.parametrize("said", ["{}", "key '{}' is wrong", '{{"key": "{}"}}', "<b>{}</b>", "key={}&n=3"])
def test_a_key_of_any_length_is_hidden_where_it_is_a_word(key: str, said: str):
    keep(f"Bearer {key}")
    assert hide(said.format(key)) == said.format(HIDDEN)


def test_a_short_key_eats_no_words_and_no_numbers():
    keep("a")
    keep("4")
    assert hide("a cat sat, 14 of 45 tokens, batch4") == f"{HIDDEN} cat sat, 14 of 45 tokens, batch4"
    assert hidden({"batch_sizes": {"1": 3, "4": 7}, "prefill_s": 0.4}) == {
        "batch_sizes": {"1": 3, "4": 7},
        "prefill_s": 0.4,
    }


def test_fields_that_are_ours_keep_their_names_whatever_the_key_is():
    for key in ("n", "events", "at"):
        keep(key)
    assert hidden({"n": 1, "events": [{"at": "at"}]}, names=False) == {"n": 1, "events": [{"at": HIDDEN}]}
    assert options({"n": 1, "events": "x"}) == {"n": 1, "events": "x"}
    assert hidden({"n": 1, "at": 2}) == {"n": 1, "at": 2}


def test_a_short_value_is_secret_only_where_the_header_is_for_one():
    keep_header("x-priority", "1")
    keep_header("Ocp-Apim-Subscription-Key", "pw1")
    keep_header("Cookie", "id=ab7; theme=dark")
    assert hide("1 of pw1, ab7, id") == f"1 of {HIDDEN}, {HIDDEN}, id"


def test_a_key_is_hidden_as_urls_and_pages_write_it():
    keep("sk-a&b/c=d+'e")
    page = "<p>sk-a&amp;b/c=d+'e</p><i title='sk-a&amp;b/c=d+&#x27;e'>"
    assert hide(f"?key=sk-a%26b%2Fc%3Dd%2B%27e {page}") == f"?key={HIDDEN} <p>{HIDDEN}</p><i title='{HIDDEN}'>"


def test_what_variables_for_keys_hold_is_known_before_anything_asks_for_it(monkeypatch: pytest.MonkeyPatch):
    for name in redaction.VARIABLES:
        monkeypatch.setenv(name, f" never-shown-{name}\n")
    keep_environment()
    for name in redaction.VARIABLES:
        assert hide(f"{name}: never-shown-{name}.") == f"{name}: {HIDDEN}."


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve m --api-key {} --port 1",
        "vllm serve m --api-key='{}'",
        "env HF_TOKEN={} serve",
        'serve --hf-token "{}"',
    ],
)
def test_keys_in_a_servers_command_are_found(command: str):
    keep_spoken(command.format("k-77") + " --max-total-tokens 1024 --tokenizer gpt2")
    assert hide("api_key=k-77, 1024 tokens of gpt2") == f"api_key={HIDDEN}, 1024 tokens of gpt2"


def test_keys_among_a_requests_fields_are_found_by_their_names():
    keep_fields({"user": "me", "auth": [{"api_key": "k-1"}], "parameters": {"seed": 1, "stop_token": "</s>"}})
    assert hide("me, k-1, </s>") == f"me, {HIDDEN}, </s>"


@pytest.mark.parametrize(
    "words",
    [
        "--apikey k-77",
        "--api_key=k-77",
        "--hf-token k-77",
        "--key k-77",
        "--openai-key=k-77",
        "-H Authorization: Bearer k-77",
        "Authorization: k-77",
        '{"api_key": "k-77"',
    ],
)
def test_an_option_that_is_not_there_is_repeated_without_its_key(words: str):
    assert "k-77" not in spoken(f"unrecognized arguments: {words} --turbo 3")
    assert spoken(f"unrecognized arguments: {words} --turbo 3").endswith("--turbo 3")


def test_what_argparse_says_of_an_option_is_no_key():
    said = "error: argument --api-key: the key is empty"
    assert spoken(said) == said


def test_what_a_library_logs_is_hidden_tracebacks_included(caplog: pytest.LogCaptureFixture):
    usual = logging.getLogRecordFactory()
    try:
        guard_logs()
        keep("never-shown")
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("a.library").debug("sent %s to %d", {"x-api-key": "never-shown"}, 80)
            logging.getLogger("a.library").debug("too few: %s")
            try:
                raise ValueError("not with never-shown")
            except ValueError:
                logging.getLogger("a.library").exception("failed")
    finally:
        logging.setLogRecordFactory(usual)
    assert f"'x-api-key': '{HIDDEN}'}} to 80" in caplog.text
    assert f"ValueError: not with {HIDDEN}" in caplog.text
    assert "never-shown" not in caplog.text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", "abc", "-u", "2"], ["--api-key", HIDDEN, "-u", "2"]),
        (["--api-key=abc"], [f"--api-key={HIDDEN}"]),
        (["--api", "abc"], ["--api", HIDDEN]),
        (["--header", "X-Key: abc", "--header=X: y"], ["--header", HIDDEN, f"--header={HIDDEN}"]),
        (["--url", "http://x", "-u", "2"], ["--url", "http://x", "-u", "2"]),
    ],
)
def test_a_command_line_is_shown_without_the_values_of_secret_options(given: list[str], shown: list[str]):
    assert command(given) == shown


def test_options_keep_the_names_of_headers_only():
    given = {"api_key": "abc", "header": [("x-key", "abc")], "url": "http://x", "users": 2}
    shown = {"api_key": HIDDEN, "header": [["x-key", HIDDEN]], "url": "http://x", "users": 2}
    assert options(given) == shown
    assert options({"api_key": None, "header": []}) == {"api_key": None, "header": []}
