"""Where the API key comes from, and that no message shows it. What it guards: tests/server/test_promises.py."""

from __future__ import annotations

import pytest

from server.errors import SettingsError
from server.settings import parse


def key(*options: str) -> str | None:
    given = parse(options).api_key
    return None if given is None else given.get_secret_value()


def test_the_command_line_goes_before_our_variable_and_that_before_tgis(monkeypatch: pytest.MonkeyPatch):
    for name in ("API_KEY", "TOKENCLOCK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert key() is None
    monkeypatch.setenv("API_KEY", "tgi's")
    assert key() == "tgi's"
    monkeypatch.setenv("TOKENCLOCK_API_KEY", "ours")
    assert key() == "ours"
    assert key("--api-key", "said") == "said"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "--api-key: Value should have at least 1 item"),
        ("clé-secrète", "--api-key: a key must be of printable ASCII"),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, given: str, sentence: str):
    with pytest.raises(SettingsError, match=sentence) as refused:
        parse(["--api-key", given])
    assert not given or given not in str(refused.value)
    monkeypatch.setenv("TOKENCLOCK_API_KEY", given)  # a secret that came out empty must not open the server
    with pytest.raises(SettingsError):
        parse([])
