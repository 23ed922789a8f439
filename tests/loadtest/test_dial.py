"""One limit holds for a connection's name, TCP and TLS together, and its sentence says which of them was slow.

Method: a resolver that asks a DNS server which never answers; the platform's own with getaddrinfo held up in its
thread; listeners that don't accept, or accept and say nothing. Long times are put on the clock, not waited for.
"""

from __future__ import annotations

import _socket
import gc
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
import pytest
from gevent.resolver.ares import Resolver

from loadtest.transport import names
from loadtest.transport.base import Target, TimedOut, Timeouts, TransportError
from loadtest.transport.dial import dial
from loadtest.transport.gevent_socket import GeventConnection
from loadtest.transport.tls import Tls

SOMEWHERE = Target("somewhere.example", 443)
HUNG_S = 20.0  # a test that takes so long would have waited for something else than its limit


@pytest.fixture(autouse=True)
def _never_longer() -> Iterator[None]:
    with gevent.Timeout(HUNG_S, AssertionError("a limit didn't hold")):
        yield


class Passing:
    """The monotonic clock, and what was put on it."""

    def __init__(self) -> None:
        self.added_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self.added_ns


def refused(target: Target, timeout_s: float, clock: Callable[[], int] = time.monotonic_ns, tls: bool = False) -> str:
    with pytest.raises(TimedOut) as error:
        dial(target, timeout_s, clock, None, Tls(verify=False).context() if tls else None)
    return str(error.value)


@contextmanager
def full() -> Iterator[int]:
    """A port where nobody accepts, and more wait than the kernel keeps."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port, crowd = listener.getsockname()[1], []
        for _ in range(4):
            crowd.append(socket.socket())
            crowd[-1].settimeout(0.1)
            with suppress(TimeoutError):
                crowd[-1].connect(("127.0.0.1", port))
        yield port
        for each in crowd:
            each.close()


def test_a_name_that_no_dns_server_answers_for_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch):
    hub = gevent.get_hub()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        resolver = Resolver(hub, use_environ=False, servers="127.0.0.1", udp_port=port, timeout=0.5, tries=1)
        monkeypatch.setattr(hub, "_resolver", resolver)
        connection = GeventConnection(SOMEWHERE)
        with pytest.raises(TimedOut) as error:
            connection.ready(Timeouts(connect_s=0.2).connect_s)
        assert silent.recv(512), "the server was asked"
        assert str(error.value) == "no connection to somewhere.example:443 in 0.2 s: its name took all of it"
        (lookup,) = names._running.values()
        lookup.join()
        resolver.close()
    assert names._running == {}


def test_users_who_give_up_on_a_name_leave_one_lookup_and_it_ends(monkeypatch: pytest.MonkeyPatch):
    asked, answer, known = [], threading.Event(), _socket.getaddrinfo

    def held_up(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        answer.wait(HUNG_S)
        return known("127.0.0.1", *rest, **more)

    monkeypatch.setattr(_socket, "getaddrinfo", held_up)
    pool, before = gevent.get_hub().threadpool, greenlets()
    for _ in range(3):
        users = [gevent.spawn(refused, SOMEWHERE, 0.05) for _ in range(20)]
        assert {user.get() for user in users} == {
            "no connection to somewhere.example:443 in 0.05 s: its name took all of it"
        }
        del users
    assert len(asked) == 1
    patient = gevent.spawn(names.resolve, "somewhere.example", 443, HUNG_S)
    gevent.sleep(0)
    answer.set()
    assert {address[4] for address in patient.get()} == {("127.0.0.1", 443)}
    del patient
    pool.join()
    assert len(asked) == 1, "who asked meanwhile was told the same answer"
    assert names._running == {}
    assert greenlets() <= before


def greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, gevent.Greenlet) and not each.ready() for each in gc.get_objects())


def test_a_name_that_cannot_be_resolved_is_said_to_each_who_asks(monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: Any, **__: Any) -> Any:
        raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(_socket, "getaddrinfo", unknown)

    def told() -> str:
        with pytest.raises(TransportError) as error:
            dial(SOMEWHERE, 5, time.monotonic_ns, None, None)
        return str(error.value)

    users = [gevent.spawn(told) for _ in range(3)]
    assert [user.get() for user in users] == ["no connection to somewhere.example:443: Name or service not known"] * 3


def test_a_slow_name_leaves_tls_what_is_left(monkeypatch: pytest.MonkeyPatch):
    clock, known = Passing(), _socket.getaddrinfo

    def slow(*asked: Any, **more: Any) -> Any:
        clock.added_ns += int(99.7e9)
        return known(*asked, **more)

    monkeypatch.setattr(_socket, "getaddrinfo", slow)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = refused(Target("127.0.0.1", silent.getsockname()[1], tls=True), 100, clock, tls=True)
    assert re.search(r" in 100 s: its name took 99\.[78]\d* s, TCP \S+ s, TLS the rest$", said), said


def test_addresses_that_are_silent_leave_the_next_one_its_share_and_the_limit_holds_for_all(
    monkeypatch: pytest.MonkeyPatch,
):
    def several(*ports: int) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr(_socket, "getaddrinfo", lambda *_, **__: found)

    clock, limit_s = Passing(), 0.6
    with full() as first, full() as second, socket.create_server(("127.0.0.1", 0)) as listening:
        several(first, second, listening.getsockname()[1])
        wire = dial(SOMEWHERE, limit_s, clock, None, None)
        wire.close()
        assert wire.opened is not None
        assert wire.opened.tcp_ns >= limit_s * 1e9 / 2, "a third, and a half of what it left"
        several(first, second)
        begun_ns = clock()
        said = refused(SOMEWHERE, limit_s, clock)
    assert clock() - begun_ns < 2 * limit_s * 1e9, "and not the limit for each"
    assert re.search(r" in 0\.6 s: its name took \S+ s, TCP the rest$", said), said
