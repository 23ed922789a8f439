"""A SageMaker endpoint gives the samples that its container would, and each of AWS's faults has its verdict.

Method: real HTTP through a stand-in of the runtime that checks signatures and frames the stream (tests/
sagemaker_runtime.py), in front of a server of known schedule; our transports and boto3 are held to one story.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from loadtest import redaction
from loadtest.endpoints.base import EndpointError
from loadtest.endpoints.choice import Wanted, choose
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.transport.base import Timeouts
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls
from loadtest.truth import Truth
from loadtest.truth import truth as truth_server
from loadtest.verdict import Verdict
from tests.loadtest.sagemaker_fixtures import SageMaker, runtime

CARRIERS = ("gevent", "httpx", "boto3")
TOKENS = 8
SHORT = Timeouts(connect_s=5, first_byte_s=3, gap_s=0.4, total_s=10)


@pytest.fixture(scope="module")
def container() -> Iterator[Truth]:
    with truth_server(first=0.02, gap=0.01) as server:
        yield server


@pytest.fixture(scope="module")
def whole(container: Truth) -> Iterator[SageMaker]:
    with runtime(container.url, session_token="session-token-of-the-tests") as server:
        yield server


@pytest.fixture(scope="module")
def cut(container: Truth) -> Iterator[SageMaker]:
    with runtime(container.url, cut=7) as server:
        yield server


@pytest.fixture
def aws(whole: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    return pointed_at(whole, monkeypatch)


def pointed_at(server: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    return server


def asked(url: str, carrier: str, timeouts: Timeouts = SHORT, id_: str = "x") -> Sample:
    chosen = choose(url, Wanted(transport=carrier), controlling(carrier, Tls()))
    order = Order(id_, Cell(None, None, 1, 4, TOKENS), "steady", "one two three four", 0)
    with closing(chosen.connect(connecting(carrier, Tls()))(chosen.target)) as connection:
        return measure(connection, chosen.endpoint, order, run="test", process=0, user=0, timeouts=timeouts)


# --- the same story --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_stream_is_complete_and_counted_as_its_container_counts(aws: SageMaker, carrier: str):
    sample = asked("sagemaker://good", carrier)
    assert (sample.verdict, sample.detail, sample.status) == (Verdict.COMPLETE, None, 200)
    assert (sample.got.input_tokens, sample.got.new_tokens, sample.got.counted_by) == (4, TOKENS, "server")
    assert len(sample.events) == TOKENS
    assert sample.transport == carrier
    assert sample.started_ns is not None
    assert sample.started_ns <= sample.events[0][0]
    instants = [t for t, _, _ in sample.events]
    assert instants == sorted(instants)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_parts_that_cut_lines_and_characters_are_joined(cut: SageMaker, monkeypatch: pytest.MonkeyPatch, carrier: str):
    pointed_at(cut, monkeypatch)
    sample = asked("sagemaker://good", carrier)
    assert (sample.verdict, len(sample.events)) == (Verdict.COMPLETE, TOKENS)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_variant_component_and_request_id_reach_the_runtime(aws: SageMaker, carrier: str):
    aws.clear()
    asked("sagemaker://good?region=eu-west-1&variant=blue&inference-component=llama", carrier, id_="run-0-7")
    (record,) = aws.records()
    assert record["signed"]
    headers = record["headers"]
    assert headers["x-amzn-sagemaker-target-variant"] == "blue"
    assert headers["x-amzn-sagemaker-inference-component"] == "llama"
    assert headers["x-amzn-sagemaker-inference-id"] == "run-0-7"
    assert headers["x-amzn-sagemaker-accept"] == "text/event-stream"


FAULTS = [  # (endpoint, verdict, tokens that came before it, part of the detail)
    ("fault-model-stream-error-3", Verdict.ERROR_IN_STREAM, 3, "ModelStreamError: "),
    ("fault-time-exceeded-3", Verdict.ERROR_IN_STREAM, 3, "ModelStreamError: The model did not finish"),
    ("fault-internal-stream-failure-3", Verdict.ERROR_IN_STREAM, 3, "InternalStreamFailure: "),
    ("fault-error-message-3", Verdict.ERROR_IN_STREAM, 3, ""),
    ("fault-unknown-event-3", Verdict.COMPLETE, TOKENS, None),
    ("fault-end-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-bad-crc-3", Verdict.ERROR_IN_STREAM, 3, "hecksum"),
    ("fault-end-in-frame-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-cut-frame-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-not-streaming", Verdict.HTTP_ERROR, 0, "ValidationError: "),
    ("fault-cut-3", Verdict.CONNECTION, 3, "reset"),
    ("fault-stall-3", Verdict.TIMEOUT, 3, ""),
    ("fault-throttled", Verdict.OVERLOADED, 0, "HTTP 400: ThrottlingException: Rate exceeded"),
    ("fault-throttled-mute", Verdict.OVERLOADED, 0, "ThrottlingException: no message"),
    ("fault-429", Verdict.OVERLOADED, 0, "HTTP 424: ModelError: the container answered 429"),
    ("fault-503", Verdict.OVERLOADED, 0, "HTTP 424: ModelError: the container answered 503"),
    ("fault-500", Verdict.HTTP_ERROR, 0, "HTTP 424: ModelError: the container answered 500"),
    ("fault-timed-out", Verdict.HTTP_ERROR, 0, "HTTP 424: ModelError: the container answered 0"),
    ("fault-access-denied", Verdict.HTTP_ERROR, 0, "the policy needs sagemaker:InvokeEndpoint"),
    ("fault-slow-headers", Verdict.COMPLETE, TOKENS, None),
    ("nobody", Verdict.HTTP_ERROR, 0, "check the endpoint's name and the region"),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("name", "verdict", "tokens", "detail"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_each_fault_has_its_verdict_and_keeps_what_came_before(
    aws: SageMaker, carrier: str, name: str, verdict: Verdict, tokens: int, detail: str | None
):
    sample = asked(f"sagemaker://{name}", carrier)
    assert (sample.verdict, len(sample.events)) == (verdict, tokens), sample.detail
    assert (detail is None) == (sample.detail is None)
    assert (detail or "") in (sample.detail or "")
    assert asked("sagemaker://good", carrier).complete, "a fault costs its own request only"


# --- before anything is measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sagemaker://", "names no endpoint"),
        ("sagemaker://my_endpoint", "names no endpoint"),
        ("sagemaker://good/path", "names no endpoint"),
        ("sagemaker://good?regoin=eu-west-1", "says regoin, which is none of inference-component, region, variant"),
        ("sagemaker://good?region=eu_west", "eu_west"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_what_it_says(aws: SageMaker, url: str, message: str):
    with pytest.raises(EndpointError, match=message):
        asked(url, "gevent")


def test_a_region_comes_from_the_url_or_the_environment(aws: SageMaker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(EndpointError, match=r"there is no region: write sagemaker://good\?region=eu-west-1"):
        asked("sagemaker://good", "gevent")
    assert asked("sagemaker://good?region=eu-west-1", "gevent").complete
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert asked("sagemaker://good", "gevent").complete


def test_without_credentials_nothing_is_sent(aws: SageMaker, monkeypatch: pytest.MonkeyPatch):
    aws.clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(EndpointError, match="there are no AWS credentials: set AWS_PROFILE"):
        asked("sagemaker://good", "gevent")
    assert aws.records() == []


CREDENTIALS = [  # (variable, its value, part of the detail)
    ("AWS_SECRET_ACCESS_KEY", "a-secret-that-does-not-fit", "InvalidSignatureException"),
    ("AWS_ACCESS_KEY_ID", "AKIANOBODY0000000000", "UnrecognizedClientException"),
    ("AWS_SESSION_TOKEN", "expired-session-token", "the credentials have expired: fetch new ones"),
    ("AWS_REGION", "us-east-1", "InvalidSignatureException"),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("variable", "value", "detail"), CREDENTIALS, ids=[each[0] for each in CREDENTIALS])
def test_wrong_credentials_are_named_and_never_repeated(
    aws: SageMaker, monkeypatch: pytest.MonkeyPatch, carrier: str, variable: str, value: str, detail: str
):
    monkeypatch.setenv(variable, value)
    sample = asked("sagemaker://good", carrier)
    assert (sample.verdict, sample.status) == (Verdict.HTTP_ERROR, 403)
    assert detail in (sample.detail or "")
    shown = redaction.hide(sample.to_json())
    for secret in (aws.secret_key, aws.access_key, aws.session_token, "expired-session-token", "AKIANOBODY"):
        assert (secret or "") not in shown


@pytest.mark.parametrize("carrier", ["huggingface_hub"])
def test_a_transport_that_cannot_sign_is_refused(aws: SageMaker, carrier: str):
    with pytest.raises(EndpointError, match="use --transport gevent, httpx or boto3"):
        asked("sagemaker://good", carrier)


def test_boto3_carries_nothing_else():
    with pytest.raises(EndpointError, match="boto3 carries requests to sagemaker:// URLs only"):
        asked("http://127.0.0.1:1", "boto3")
