"""Open a connection: name, TCP, TLS; stamped where the platform can. All of it comes before the clock starts."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from gevent import socket

from loadtest.transport import stamps
from loadtest.transport.base import Clock, ConnectionBroken, Opened, Target, TimedOut
from loadtest.transport.tls import untrusted
from loadtest.transport.tls_wire import TlsWire
from loadtest.transport.wire import Wire


def dial(
    target: Target, timeout_s: float, clock: Clock, clock_map: stamps.ClockMap | None, context: ssl.SSLContext | None
) -> Wire:
    """An open wire that knows what each part of it cost. Raises: TimedOut, ConnectionBroken."""
    where = f"{target.host}:{target.port}"
    with ExitStack() as undo:
        try:
            asked_ns = clock()
            addresses = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            named_ns = clock()
            connection, address = _connect(addresses, timeout_s)
            connected_ns = clock()
            undo.callback(connection.close)  # does nothing once a wire has taken it over
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamped = clock_map if clock_map is not None and stamps.enable(connection) else None
            name_ns, tcp_ns = named_ns - asked_ns, connected_ns - named_ns
            if not target.tls:
                wire = Wire(connection, clock, stamped)
                wire.opened = Opened(address, name_ns, tcp_ns)
                return wire
            assert context is not None, "a target under TLS comes with a context"
            secured = TlsWire(connection, clock, stamped, context, target.host, timeout_s)
            tls_ns = clock() - connected_ns
            secured.opened = Opened(address, name_ns, tcp_ns, tls_ns=tls_ns, tls=secured.version)
            return secured
        except TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(where, error)) from error
        except ssl.SSLError as error:
            raise ConnectionBroken(f"no TLS with {where} ({error.reason}): is it https?") from error
        except (OSError, UnicodeError) as error:
            raise ConnectionBroken(f"no connection to {where}: {getattr(error, 'strerror', None) or error}") from error


def _connect(addresses: Sequence[Any], timeout_s: float) -> tuple[Any, str]:
    """The first of a name's addresses that answers; each has `timeout_s`.

    Raises: OSError of the last one, TimeoutError.
    """
    for more, (family, kind, protocol, _, address) in zip(range(len(addresses))[::-1], addresses, strict=True):
        with ExitStack() as undo:
            try:
                connection = socket.socket(family, kind, protocol)
                undo.callback(connection.close)
                connection.settimeout(timeout_s)
                connection.connect(address)
            except OSError:
                if not more:
                    raise
            else:
                undo.pop_all()
                return connection, str(address[0])
    raise OSError("the name has no address")
