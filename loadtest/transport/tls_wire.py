"""A wire under TLS: the socket stays ours, and an `ssl.SSLObject` between two memory buffers decrypts what was read and
stamped. So a stamp is of the segment that completed a record, whatever library would have read it.
"""

from __future__ import annotations

import _socket
import ssl

from gevent import socket

from loadtest.transport.base import Clock
from loadtest.transport.stamps import ClockMap
from loadtest.transport.wire import READ_BYTES, Wire


class TlsWire(Wire):
    """The handshake is part of opening the connection, before any clock starts."""

    def __init__(
        self,
        connection: socket.socket | _socket.socket,
        clock: Clock,
        clock_map: ClockMap | None,
        context: ssl.SSLContext,
        host: str,
        timeout_s: float,
    ) -> None:
        """Raises: OSError (ssl.SSLError, where the certificate isn't trusted, among them), TimeoutError."""
        super().__init__(connection, clock, clock_map)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._secured = False  # the handshake is over
        try:
            self._shake_hands(timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def tls(self) -> ssl.SSLObject:
        return self._tls

    @property
    def protocol(self) -> str | None:
        """`h2` or `http/1.1`, as both sides agreed in the handshake; None where the server chose none."""
        return self._tls.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        """`TLSv1.3`."""
        return self._tls.version()

    def send(self, data: bytes, timeout_s: float) -> None:
        self._tls.write(data)
        self._flush(timeout_s)

    def _shake_hands(self, timeout_s: float) -> None:
        until_ns = self.clock() + int(timeout_s * 1e9)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(timeout_s)
                while (arrived := self.take()) is None:
                    self.wait(timeout_s, until_ns)
                if not arrived[2]:
                    raise ConnectionResetError("closed in the TLS handshake") from None
                self._incoming.write(arrived[2])
            except ssl.SSLError:
                self._flush(timeout_s)  # the alert that says why
                raise
        self._flush(timeout_s)
        self._secured = True
        while (arrived := self.take()) is not None:  # it came behind the handshake's last message
            self._arrive(*arrived)

    def _arrive(self, t_ns: int, by_kernel: bool, data: bytes) -> bool:
        """Hand on what records are whole now. Session tickets are none, and neither end nor rubbish."""
        if not self._secured:
            return super()._arrive(t_ns, by_kernel, data)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        parts, ended = [], False
        try:
            while part := self._tls.read(READ_BYTES):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # with or without TLS's own word for it
            ended = True
        enough = bool(parts) and super()._arrive(t_ns, by_kernel, b"".join(parts))
        return (ended and super()._arrive(t_ns, by_kernel, b"")) or enough

    def _flush(self, timeout_s: float) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read(), timeout_s)
