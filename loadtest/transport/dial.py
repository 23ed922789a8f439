"""Open a connection: name, TCP, TLS; stamped where the platform can. All of it comes before the clock starts."""

from __future__ import annotations

import ssl
from contextlib import ExitStack

from gevent import socket

from loadtest.transport import stamps
from loadtest.transport.base import Clock, ConnectionBroken, Target, TimedOut
from loadtest.transport.tls import untrusted
from loadtest.transport.tls_wire import TlsWire
from loadtest.transport.wire import Wire


def dial(
    target: Target, timeout_s: float, clock: Clock, clock_map: stamps.ClockMap | None, context: ssl.SSLContext | None
) -> Wire:
    """Raises: TimedOut, ConnectionBroken."""
    where = f"{target.host}:{target.port}"
    with ExitStack() as undo:
        try:
            connection = socket.create_connection((target.host, target.port), timeout=timeout_s)
            undo.callback(connection.close)  # does nothing once a wire has taken it over
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamped = clock_map if clock_map is not None and stamps.enable(connection) else None
            if not target.tls:
                return Wire(connection, clock, stamped)
            assert context is not None, "a target under TLS comes with a context"
            return TlsWire(connection, clock, stamped, context, target.host, timeout_s)
        except TimeoutError as error:
            raise TimedOut(f"no connection to {where} in {timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise ConnectionBroken(untrusted(where, error)) from error
        except ssl.SSLError as error:
            raise ConnectionBroken(f"no TLS with {where} ({error.reason}): is it https?") from error
        except (OSError, UnicodeError) as error:
            raise ConnectionBroken(f"no connection to {where}: {getattr(error, 'strerror', None) or error}") from error
