"""What must never be shown: keys and credentials are told to this module when they are read, and hidden wherever this
process writes.

A server may repeat a key in the error that refuses it, and AWS repeats the whole signed request. So it isn't enough not
to print a key: what strangers said, and what the user said, goes through `hide` or `hidden` before it is kept.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "[hidden]"
SHORTEST = 6  # characters; hiding "x" or "none" would eat words
SECRET_OPTIONS = ("--api-key", "--header")

_known: tuple[str, ...] = ()  # the longest first: one that begins with another must not leave its rest


def keep(secret: str | None) -> None:
    """From here on `hide` leaves it out, and what it is made of: a header's value holds a key behind a word."""
    global _known
    found = set(_known)
    for part in (secret or "", *(secret or "").split(), *_decoded(secret or "")):
        if len(part) >= SHORTEST:
            found.update((part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]))
    _known = tuple(sorted(found, key=len, reverse=True))


def hide(text: str) -> str:
    for secret in _known:
        text = text.replace(secret, HIDDEN)
    return text


def hidden(value: object) -> Any:
    """The same without secrets: in every string, before anything breaks it into lines or escapes it."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hide(str(name)): hidden(each) for name, each in value.items()}
    return [hidden(each) for each in value] if isinstance(value, list | tuple) else value


def options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, as run.json keeps them: of a key nothing, of headers their names."""
    shown: dict[str, Any] = hidden(values)
    if shown.get("api_key"):
        shown["api_key"] = HIDDEN
    if shown.get("header"):
        shown["header"] = [[name, HIDDEN] for name, _ in values["header"]]
    return shown


def command(arguments: Sequence[str]) -> list[str]:
    """A command line without the values of secret options, however short they are and however the option is written."""
    shown: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if shown and _is_secret(shown[-1]):
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={HIDDEN}" if equals and _is_secret(name) else hide(argument))
    return shown


def _is_secret(argument: str) -> bool:
    """argparse takes any beginning of an option that is clear."""
    return len(argument) > len("--a") and any(option.startswith(argument) for option in SECRET_OPTIONS)


def _decoded(secret: str) -> list[str]:
    """Name and password of `Basic` credentials."""
    scheme, _, value = secret.partition(" ")
    if scheme.lower() != "basic":
        return []
    try:
        plain = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return []
    return [plain, plain.partition(":")[2]]
