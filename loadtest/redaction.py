"""What must never be shown: keys and credentials are told to this module when they are read, and hidden wherever this
process writes.

A server may repeat a key in the error that refuses it, and AWS repeats the whole signed request. So it isn't enough not
to print a key: every line that leaves goes through `hide`.
"""

from __future__ import annotations

import json

HIDDEN = "[hidden]"
SHORTEST = 6  # characters; hiding "x" or "none" would eat words

_known: set[str] = set()


def keep(secret: str | None) -> None:
    """From here on `hide` leaves it out, also where JSON has escaped it."""
    if secret and len(secret) >= SHORTEST:
        _known.update((secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]))


def hide(text: str) -> str:
    for secret in sorted(_known, key=len, reverse=True):  # a key that begins with another must not leave its rest
        text = text.replace(secret, HIDDEN)
    return text
