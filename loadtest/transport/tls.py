"""One TLS context for all connections of a run: making one takes longer than most first tokens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


class TlsError(Exception):
    """The context can't be made; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust. By default the platform's certificate authorities."""

    ca_file: Path | None = None  # PEM, instead of the platform's
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Raises: TlsError."""
        try:
            made = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise TlsError(
                f"{self.ca_file} holds no certificates that can be read ({error}): name a PEM file"
            ) from error
        if not self.verify:
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        made.set_alpn_protocols(["http/1.1"])
        return made
