"""What must never be shown: keys and credentials are told to this module when they are read, and hidden wherever this
process writes.

A server may repeat a key in the error that refuses it, and AWS repeats the whole signed request. So it isn't enough not
to print a key: what strangers said, and what the user said, goes through `hide` or `hidden` before it is kept. Numbers
and instants are no texts, and never touched.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

HIDDEN = "[hidden]"
#: Characters. A shorter secret is hidden where it stands as a word of its own: inside of words it would eat them.
SHORTEST = 6
SECRET_OPTIONS = ("--api-key", "--header")
VARIABLES = (
    "OPENAI_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
SCHEMES = {"aws4-hmac-sha256", "basic", "bearer", "digest", "token"}  # words before a credential, and none themselves
#: Names of headers, options and fields whose value is a credential. `--new-tokens` and `--tokenizer` are none.
CREDENTIAL = re.compile(
    r"api[-_]?key|auth|cookie|credential|password|secret|session|[-_]key$|^key$|token$", re.IGNORECASE
)
#: In a command: `--api-key X`, `--hf-token=X`, `HF_TOKEN=X`; in what is like a header or like JSON:
#: `authorization: Bearer X`, `"api_key": "X"`.
SPOKEN = re.compile(
    r"(--?[\w-]*?(?:key|token|secret|password|auth)(?:=|\s+)|\b\w*(?:KEY|TOKEN|SECRET|PASSWORD)="
    r"|(?i:authorization:\s*(?:\w+\s+(?=\S))?|\b(?:bearer|basic)\s+"
    r"|(?<![\w-])(?:\w[\w-]*)?(?:api[-_]?key|password|secret)\"?\s*:\s*))"  # not the option in argparse's own messages
    r"(\"[^\"]*\"|'[^']*'|[^\s\"']+)"
)

_known: frozenset[str] = frozenset()
_long: tuple[str, ...] = ()  # the longest first: one that begins with another must not leave its rest
_short: re.Pattern[str] | None = None


def keep(secret: str | None, short: bool = True) -> None:
    """From here on `hide` leaves it out, and what it is made of: a header's value holds a key behind a word.

    short: also parts that are shorter than SHORTEST.
    """
    global _known, _long, _short
    found = {form for part in _parts(secret or "") if short or len(part) >= SHORTEST for form in _forms(part)}
    if found <= _known:
        return
    _known |= found
    ordered = sorted(_known, key=len, reverse=True)
    _long = tuple(each for each in ordered if len(each) >= SHORTEST)
    words = "|".join(re.escape(each) for each in ordered if len(each) < SHORTEST)
    _short = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])") if words else None


def keep_header(name: str, value: str) -> None:
    """A header's value; a short one is a secret only where the header is for one: `x-priority: 1` is none."""
    keep(value, short=CREDENTIAL.search(name) is not None)


def keep_environment() -> None:
    """What this process was given in variables that are for keys, whether or not anything asks for it."""
    for name in VARIABLES:
        keep((os.environ.get(name) or "").strip())


def keep_spoken(command: str) -> None:
    """The keys in a command that the user wrote, which is repeated here and there."""
    for found in SPOKEN.finditer(command):
        keep(found[2].strip("'\""))


def keep_fields(body: object) -> None:
    """The keys in a request's fields, by their names."""
    if isinstance(body, Mapping):
        for name, value in body.items():
            if isinstance(value, str) and re.search(r"api[-_]?key|password|secret|authorization", name, re.IGNORECASE):
                keep(value)
            keep_fields(value)
    elif isinstance(body, list):
        for each in body:
            keep_fields(each)


def hide(text: str) -> str:
    text = _without_long(text)
    return text if _short is None else _short.sub(HIDDEN, text)


def _without_long(text: str) -> str:
    for secret in _long:
        text = text.replace(secret, HIDDEN)
    return text


def hidden(value: object, names: bool = True) -> Any:
    """The same without secrets: in every string, before anything breaks it into lines or escapes it. A field's name is
    what numbers are found by, so it loses no short one; and none at all where it is ours: then `names` is false.
    """
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {_without_long(str(name)) if names else str(name): hidden(each, names) for name, each in value.items()}
    return [hidden(each, names) for each in value] if isinstance(value, list | tuple) else value


def spoken(text: str) -> str:
    """A message that repeats a command's words, without what looks like a key among them."""
    return SPOKEN.sub(rf"\1{HIDDEN}", hide(text))


def guard_logs() -> None:
    """From here on what any library logs is hidden too, tracebacks included: botocore's debug log has credentials."""
    make = logging.getLogRecordFactory()
    if make is not logging.LogRecord:
        return  # this one, or somebody's who knows better

    def made(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        if _known:
            with suppress(TypeError, ValueError, KeyError):  # words and values that don't fit: logging says so itself
                record.msg, record.args = hide(record.getMessage()), ()
            if record.exc_info and record.exc_info[0] is not None:
                record.exc_text = hide("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    logging.setLogRecordFactory(made)


def options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, as run.json keeps them: of a key nothing, of headers their names."""
    shown: dict[str, Any] = hidden(values, names=False)
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
            shown.append(f"{name}={HIDDEN}" if equals and _is_secret(name) else spoken(argument))
    return shown


def _is_secret(argument: str) -> bool:
    """argparse takes any beginning of an option that is clear."""
    return len(argument) > len("--a") and any(option.startswith(argument) for option in SECRET_OPTIONS)


def _parts(secret: str) -> Iterator[str]:
    """A secret, its words, and what stands behind `=` in it, as in cookies."""
    yield secret
    words = secret.split()
    if words and words[0].lower() in SCHEMES:
        words = words[1:]
    yield from (word for word in words if len(words) <= 2 or len(word) >= SHORTEST)  # "the", in a sentence, is no key
    yield from (value.strip('"') for value in re.findall(r"[^;,=\s]+=([^;,\s]+)", secret))
    yield from _decoded(secret)


def _forms(part: str) -> set[str]:
    """A part as it stands in texts, JSON, URLs and HTML."""
    plain = part.strip()
    if plain.lower() in SCHEMES or not any(each.isalnum() for each in plain):
        return set()
    written = (json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], quote(plain, safe=""))
    return {plain, *written, html.escape(plain), html.escape(plain, quote=False)}


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
