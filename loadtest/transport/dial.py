"""Open a connection: name, TCP, TLS under one limit; stamped where the platform can. All of it comes before the clock
starts.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

from gevent import socket

from loadtest.transport import stamps
from loadtest.transport.base import Clock, ConnectionBroken, Opened, Target, TimedOut
from loadtest.transport.names import resolve
from loadtest.transport.tls import untrusted
from loadtest.transport.tls_wire import TlsWire
from loadtest.transport.wire import Wire

PARTS = ("its name took", "TCP", "TLS")  # of an opening, in their order


def dial(
    target: Target, timeout_s: float, clock: Clock, clock_map: stamps.ClockMap | None, context: ssl.SSLContext | None
) -> Wire:
    """An open wire that knows what each part of it cost. timeout_s: for all of them.

    Raises: TimedOut, which says what the time went to; ConnectionBroken.
    """
    where = f"{target.host}:{target.port}"
    ends_ns = [clock()]  # of the parts; the first is their begin
    until_ns = ends_ns[0] + int(timeout_s * 1e9)
    with ExitStack() as undo:
        try:
            addresses = resolve(target.host, target.port, timeout_s)
            ends_ns.append(clock())
            connection, address = _connect(addresses, clock, until_ns)
            ends_ns.append(clock())
            undo.callback(connection.close)  # does nothing once a wire has taken it over
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamped = clock_map if clock_map is not None and stamps.enable(connection) else None
            name_ns, tcp_ns = (after - before for before, after in pairwise(ends_ns))
            if not target.tls:
                wire = Wire(connection, clock, stamped)
                wire.opened = Opened(address, name_ns, tcp_ns)
                return wire
            assert context is not None, "a target under TLS comes with a context"
            secured = TlsWire(connection, clock, stamped, context, target.host, left_s(clock, until_ns))
            tls_ns = clock() - ends_ns[-1]
            secured.opened = Opened(address, name_ns, tcp_ns, tls_ns=tls_ns, tls=secured.version)
            return secured
        except TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {timeout_s:g} s: {_slow(ends_ns)}") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(where, error)) from error
        except ssl.SSLError as error:
            raise ConnectionBroken(f"no TLS with {where} ({error.reason}): is it https?") from error
        except (OSError, UnicodeError) as error:
            raise ConnectionBroken(f"no connection to {where}: {getattr(error, 'strerror', None) or error}") from error


def left_s(clock: Clock, until_ns: int) -> float:
    """What is left of a limit. Raises: TimeoutError where nothing is."""
    left_ns = until_ns - clock()
    if left_ns <= 0:
        raise TimeoutError
    return left_ns / 1e9


def _slow(ends_ns: Sequence[int]) -> str:
    """What the limit went to. The part that it ended in took what the others had left."""
    took = [f"{(after - before) / 1e9:.3g} s" for before, after in pairwise(ends_ns)]
    took.append("the rest" if took else "all of it")
    return ", ".join(f"{part} {span}" for part, span in zip(PARTS, took, strict=False))


def _connect(addresses: Sequence[Any], clock: Clock, until_ns: int) -> tuple[Any, str]:
    """The first of a name's addresses that answers. Each has its share of what is left, so that one that is silent
    leaves time for the next.

    Raises: OSError of the last one, TimeoutError.
    """
    for more, (family, kind, protocol, _, address) in zip(range(len(addresses))[::-1], addresses, strict=True):
        with ExitStack() as undo:
            try:
                connection = socket.socket(family, kind, protocol)
                undo.callback(connection.close)
                connection.settimeout(left_s(clock, until_ns) / (more + 1))
                connection.connect(address)
            except OSError:
                if not more:
                    raise
            else:
                undo.pop_all()
                return connection, str(address[0])
    raise OSError("the name has no address")
