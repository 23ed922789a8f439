"""The stand-in's check of signatures is right: it takes what botocore and AWS's own examples sign, and nothing else.

Method: two independent oracles, botocore's signer and the signatures of AWS's published test suite for Signature
Version 4; then the same requests with something changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.loadtest.sagemaker_fixtures import signed
from tests.sigv4 import Account, Refused, verify

STS_TOKEN = "FwoGZXIvYXdzEJr//////////wEaDJ+/=="
ACCOUNT = Account()
URL = "http://127.0.0.1:8080/endpoints/good/invocations"


def check(headers: dict[str, str], body: bytes = b"{}", path: str = "/endpoints/good/invocations", **of: Any) -> None:
    verify(Account(**of), "POST", path, headers, body)


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/endpoints/good/invocations", b"", {}),
        ("/endpoints/good/invocations", "é時🕰".encode(), {"Content-Type": "application/json; charset=utf-8"}),
        ("/endpoints/good/invocations", b"{}", {"X-Amzn-SageMaker-Custom-Attributes": "two  spaces   and\tmore "}),
        ("/endpoints/good/invocations", b"{}", {"X-Amzn-SageMaker-Inference-Id": "", "User-Agent": "not signed"}),
        ("/endpoints/a%20b%2Fc/invocations", b"{}", {}),
        (f"/endpoints/{'a' * 63}/invocations-response-stream", bytes(100_000), {}),
        ("/endpoints/~_.-*/invocations", b"{}", {}),
    ],
    ids=["empty body", "utf-8", "double spaces", "empty header", "escaped path", "long", "marks in the path"],
)
@pytest.mark.parametrize("token", [None, STS_TOKEN])
def test_what_botocore_signs_is_right(path: str, body: bytes, headers: dict[str, str], token: str | None):
    made = signed(f"http://127.0.0.1:8080{path}", body, headers, token)
    check(made, body, path, session_token=token)
    with pytest.raises(Refused, match="InvalidSignatureException"):
        check(made, body + b" ", path, session_token=token)
    with pytest.raises(Refused, match="InvalidSignatureException"):
        check(made, body, f"{path}s", session_token=token)


def replaced(name: str, old: str, new: str) -> Callable[[dict[str, str]], dict[str, str]]:
    def change(headers: dict[str, str]) -> dict[str, str]:
        assert old in headers[name]
        return headers | {name: headers[name].replace(old, new)}

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("x-amzn-sagemaker-custom-attributes", "a b", "a c"),
        replaced("content-type", "json", "text"),
        replaced("host", "8080", "8081"),
        replaced("x-amz-date", "Z", "1Z"),
        lambda headers: headers | {"x-amz-date": f"{datetime.now(UTC):%Y%m%dT%H%M}99Z"},
        lambda headers: headers | {"authorization": headers["authorization"][:-1] + "?"},
        lambda headers: headers | {"authorization": headers["authorization"][:-64] + "0" * 64},
        replaced("authorization", "content-type;", ""),
        replaced("authorization", "host;", ""),
        replaced("authorization", ";x-amzn-sagemaker-custom-attributes", ""),
        replaced("authorization", "content-type;host", "host;content-type"),
        replaced("authorization", "host;", "host;x-amz-absent;"),
        replaced("authorization", "/aws4_request", ""),
        replaced("authorization", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        lambda headers: {name: value for name, value in headers.items() if name != "x-amz-date"},
        lambda headers: {name: value for name, value in headers.items() if name != "content-type"},
    ],
)
def test_whatever_is_changed_after_signing_is_refused(change: Callable[[dict[str, str]], dict[str, str]]):
    wanted = {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "a b"}
    made = signed(URL, b"{}", wanted)
    check(made)
    with pytest.raises(Refused, match=r"^(InvalidSignature|IncompleteSignature)Exception") as raised:
        check(change(made))
    assert raised.value.status == 403


def test_what_is_signed_for_something_else_is_told_so():
    elsewhere = signed(URL, b"{}", account=replace(ACCOUNT, region="us-east-1"))
    with pytest.raises(Refused, match="should be scoped to a valid region, not 'us-east-1'"):
        check(elsewhere)
    for_s3 = signed(URL, b"{}", account=replace(ACCOUNT, service="s3"))
    with pytest.raises(Refused, match="should be scoped to correct service: 'sagemaker'"):
        check(for_s3)
    made = signed(URL, b"{}")
    with pytest.raises(Refused, match="should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'"):
        check(replaced("authorization", "aws4_request", "aws5_request")(made))
    for late in ("content-type", "x-amz-added"):
        with pytest.raises(Refused, match=f"'{late}' must be a 'SignedHeader'"):
            check(made | {late: "text/plain"})


def test_another_second_another_day_or_another_token_is_another_signature():
    made = signed(URL, b"{}", token=STS_TOKEN)
    check(made, session_token=STS_TOKEN)
    at = datetime.strptime(made["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    other = at.replace(second=(at.second + 1) % 60)
    with pytest.raises(Refused, match="does not match the signature"):
        check(made | {"x-amz-date": f"{other:%Y%m%dT%H%M%SZ}"}, session_token=STS_TOKEN)
    with pytest.raises(Refused, match="Date in Credential scope does not match"):
        check(made | {"x-amz-date": f"2001{made['x-amz-date'][4:]}"}, session_token=STS_TOKEN)
    with pytest.raises(Refused, match="does not match the signature"):
        check(made | {"x-amz-security-token": "other"}, session_token="other")


SUITE = Account("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", region="us-east-1", service="service")


@pytest.mark.parametrize(
    ("method", "headers", "body", "names", "signature"),
    [
        ("GET", {}, b"", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", {}, b"", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "POST",
            {"content-type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            "GET",
            {"my-header1": " value1", "my-header2": ' "a   b   c"'},
            b"",
            "host;my-header1;my-header2;x-amz-date",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
    ],
    ids=["get-vanilla", "post-vanilla", "post-x-www-form-urlencoded", "get-header-value-trim"],
)
def test_the_published_examples_of_aws_are_right(
    method: str, headers: dict[str, str], body: bytes, names: str, signature: str
):
    scope = "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request"
    known = {
        "host": "example.amazonaws.com",
        "x-amz-date": "20150830T123600Z",
        "authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders={names}, Signature={signature}",
    }
    at = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
    verify(SUITE, method, "/", known | headers, body, at)
    with pytest.raises(Refused, match="InvalidSignatureException"):
        verify(SUITE, method, "/", known | headers, body + b"x", at)
