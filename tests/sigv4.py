"""AWS's Signature Version 4 as the service checks it, from its definition: hashlib, hmac and nothing of an AWS SDK.

A refusal has the service's own name and words. Like the real one, a wrong signature is answered with the canonical
request that the service made, and with it every signed header: the session token too.
Source: docs.aws.amazon.com/IAM, "Create a signed AWS API request", "Troubleshoot signed requests for AWS APIs".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 +Credential=([^, ]+), *SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})")
ISO_BASIC = "%Y%m%dT%H%M%SZ"
SKEW = timedelta(minutes=5)
MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details.\n\n"
    "The Canonical String for this request should have been\n'{canonical}'\n\n"
    "The String-to-Sign should have been\n'{to_sign}'\n"
)


class Refused(Exception):
    """An answer that is an AWS error: its HTTP status, its name, its message and what else the body says."""

    def __init__(self, status: int, name: str, message: str | None, **more: Any) -> None:
        super().__init__(f"{name}: {message}")
        self.status, self.name, self.message, self.more = status, name, message, more


@dataclass(frozen=True, slots=True)
class Account:
    """Whose requests are taken, and where."""

    access_key: str = "AKIAIOSFODNN7EXAMPLE"
    secret_key: str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    session_token: str | None = None  # with one, every request must carry it
    expired_token: str = "expired-session-token"
    region: str = "eu-west-1"
    service: str = "sagemaker"


def verify(
    account: Account, method: str, path: str, headers: Mapping[str, str], body: bytes, now: datetime | None = None
) -> None:
    """Check one request without a query; its path as it was sent, its headers' names in lower case.

    Raises: Refused where AWS would refuse.
    """
    authorization = headers.get("authorization")
    if not authorization:
        raise Refused(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    found = AUTHORIZATION.fullmatch(authorization)
    if found is None or len(credential := found[1].split("/")) != 5:
        raise _incomplete("Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' parameters.")
    access_key, *scope = credential
    _check_identity(account, access_key, headers.get("x-amz-security-token"))
    stamp = headers.get("x-amz-date", "")
    _check_scope(account, scope, stamp, now or datetime.now(UTC))

    signed = found[2].split(";")
    needed = {"host"} | {name for name in headers if name.startswith("x-amz-") or name == "content-type"}
    if missing := sorted(needed - set(signed)):
        raise _wrong(f"'{missing[0]}' must be a 'SignedHeader' in the AWS Authorization.")
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in signed]
    payload = hashlib.sha256(body).hexdigest()
    canonical = f"{method}\n{quote(path, safe='/~')}\n\n{''.join(lines)}\n{found[2]}\n{payload}"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{'/'.join(scope)}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{account.secret_key}".encode()
    for part in scope:
        key = _hmac(key, part)
    if not hmac.compare_digest(_hmac(key, to_sign).hex(), found[3]):
        raise _wrong(MISMATCH.format(canonical=canonical, to_sign=to_sign))


def _check_identity(account: Account, access_key: str, token: str | None) -> None:
    if token == account.expired_token:
        raise Refused(403, "ExpiredTokenException", "The security token included in the request is expired")
    if (access_key, token) != (account.access_key, account.session_token):
        raise Refused(403, "UnrecognizedClientException", "The security token included in the request is invalid.")


def _check_scope(account: Account, scope: list[str], stamp: str, now: datetime) -> None:
    date, region, service, terminator = scope
    try:
        at = datetime.strptime(stamp, ISO_BASIC).replace(tzinfo=UTC)
    except ValueError:
        raise _incomplete("Authorization header requires existence of 'X-Amz-Date' in ISO-8601 basic form.") from None
    if date != stamp[:8]:
        raise _wrong(
            f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
            f"'{date}' != '{stamp[:8]}', from '{stamp}'."
        )
    clock, oldest, newest = (f"{time:{ISO_BASIC}}" for time in (now, now - SKEW, now + SKEW))
    if at < now - SKEW:
        raise _wrong(f"Signature expired: {stamp} is now earlier than {oldest} ({clock} - 5 min.)")
    if at > now + SKEW:
        raise _wrong(f"Signature not yet current: {stamp} is still later than {newest} ({clock} + 5 min.)")
    if region != account.region:
        raise _wrong(f"Credential should be scoped to a valid region, not '{region}'. ")
    if service != account.service:
        raise _wrong(f"Credential should be scoped to correct service: '{account.service}'. ")
    if terminator != "aws4_request":
        raise _wrong(f"Credential should be scoped with a valid terminator: 'aws4_request', not '{terminator}'. ")


def _wrong(message: str) -> Refused:
    return Refused(403, "InvalidSignatureException", message)


def _incomplete(message: str) -> Refused:
    return Refused(403, "IncompleteSignatureException", message)


def _hmac(key: bytes, message: str) -> bytes:
    return hmac.new(key, message.encode(), hashlib.sha256).digest()
