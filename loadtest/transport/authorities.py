"""Where libraries that take no TLS context of ours look for certificate authorities, and what to do about a refusal.

A run over one of them asks what it doesn't time over our own wire, which looks in `SSL_CERT_FILE`; so two places are to
be set, and neither refusal may name `--cacert`, which such a run doesn't take.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.transport.base import Connection, ConnectionBroken, HttpRequest, Read, Seen, Timeouts, causes

AUTHORITIES = {"huggingface_hub": "SSL_CERT_FILE and REQUESTS_CA_BUNDLE", "boto3": "SSL_CERT_FILE and AWS_CA_BUNDLE"}


def untrusted(transport: str, where: str, error: BaseException) -> str | None:
    """The sentence on a certificate that isn't trusted; None where the error, or what led to it, is another."""
    for each in causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            said = each.verify_message
        elif type(each).__name__ == "CertificateError":  # urllib3's, which matches names itself
            said = str(each)
        else:
            continue
        return f"{where} isn't trusted: {said}; name its authority in {AUTHORITIES[transport]}"
    return None


class Remedied:
    """A connection of ours beside such a library's: it names the remedy that reaches both."""

    def __init__(self, ours: Connection, transport: str, where: str) -> None:
        self._ours = ours
        self._transport, self._where = transport, where
        self.transport_name = ours.transport_name

    def ready(self, timeout_s: float) -> int | None:
        with self._remedy():
            return self._ours.ready(timeout_s)

    def exchange(self, request: HttpRequest, seen: Seen, timeouts: Timeouts) -> Iterator[Read]:
        with self._remedy():
            yield from self._ours.exchange(request, seen, timeouts)

    def close(self) -> None:
        self._ours.close()

    @contextmanager
    def _remedy(self) -> Iterator[None]:
        """Raises: ConnectionBroken, with the remedy where a certificate wasn't trusted."""
        try:
            yield
        except ConnectionBroken as error:
            if (said := untrusted(self._transport, self._where, error)) is None:
                raise
            raise ConnectionBroken(said) from error
