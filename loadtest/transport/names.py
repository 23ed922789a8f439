"""A name becomes addresses under a limit: a resolver has its own patience, and doesn't let itself be hurried.

A lookup runs in a thread of gevent's (or however GEVENT_RESOLVER says), which can't be ended from outside. So each name
has at most one at a time, which all who ask meanwhile wait for: users who give up and ask again pile nothing up.
"""

from __future__ import annotations

from typing import Any

import gevent
from gevent import socket

Addresses = list[tuple[Any, ...]]  # as getaddrinfo has them

_running: dict[tuple[Any, str, int], gevent.Greenlet] = {}  # by the loop that it runs in, and what it asks


def resolve(host: str, port: int, timeout_s: float) -> Addresses:
    """Raises: TimeoutError; OSError and UnicodeError as getaddrinfo does."""
    asked = gevent.get_hub(), host, port
    lookup = _running.get(asked)
    if lookup is None or lookup.ready():
        lookup = _running[asked] = gevent.spawn(_look_up, asked)
    lookup.join(timeout_s)
    if not lookup.ready():
        raise TimeoutError
    found = lookup.value
    if isinstance(found, BaseException):
        raise found.with_traceback(None)  # several may be told the same one
    addresses: Addresses = found
    return addresses


def _look_up(asked: tuple[Any, str, int]) -> Addresses | BaseException:
    """An error is returned: one that a greenlet raises is printed as well."""
    _, host, port = asked
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[no-any-return]
    except (OSError, UnicodeError) as error:
        return error
    finally:
        _running.pop(asked, None)
