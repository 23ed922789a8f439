"""What is secret stays out of every text, however a server or a command line repeats it, and nothing else is lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from loadtest import redaction
from loadtest.redaction import HIDDEN, command, hidden, hide, keep, options


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redaction, "_known", ())
    return


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
    assert hidden({"at": 123456, "said": ["123456", {"123456": None}], "is": True}) == {
        "at": 123456,
        "said": [HIDDEN, {HIDDEN: None}],
        "is": True,
    }


@pytest.mark.parametrize("empty", [None, "", " ", "x"])
def test_nothing_is_hidden_for_want_of_a_secret(empty: str | None):
    keep(empty)
    assert hide("x or y") == "x or y"


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
