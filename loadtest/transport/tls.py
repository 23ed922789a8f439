"""One TLS context for all connections of a run: making one takes longer than most first tokens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class TlsError(Exception):
    """The context can't be made; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and what to speak. By default the platform's certificate authorities, and HTTP/1.1."""

    ca_file: Path | None = None  # PEM, instead of the platform's
    verify: bool = True
    http2: bool = False

    def context(self) -> ssl.SSLContext:
        """Made once in a process. Raises: TlsError."""
        return _context(self)


@cache
def _context(tls: Tls) -> ssl.SSLContext:
    try:
        made = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{tls.ca_file} holds no certificates that can be read ({error}): name a PEM file") from error
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["h2", "http/1.1"] if tls.http2 else ["http/1.1"])  # the second, to be told what else it is
    return made


def untrusted(where: str, error: ssl.SSLCertVerificationError) -> str:
    return f"{where} isn't trusted: {error.verify_message}; name its authority with --cacert, or say --insecure"
