"""A SageMaker endpoint gives the samples that its container would, and each of AWS's faults has its verdict.

Method: real HTTP through a stand-in of the runtime that checks signatures and frames the stream (tests/
sagemaker_runtime.py), in front of a server of known schedule; our transports and boto3 are held to one story.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from loadtest import redaction
from loadtest.endpoints.base import EndpointError
from loadtest.endpoints.choice import Wanted, choose
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sagemaker.boto3_client import Boto3Connection
from loadtest.sagemaker.runtime import Runtime, parse
from loadtest.sample import Sample
from loadtest.transport.base import HttpRequest, Seen, Timeouts, monotonic_ns
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls
from loadtest.truth import Truth
from loadtest.truth import truth as truth_server
from loadtest.verdict import Verdict
from tests.loadtest.sagemaker_fixtures import SageMaker, runtime

CARRIERS = ("gevent", "httpx", "boto3")
TOKENS = 8
ROOT = Path(__file__).parents[2]
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


def asked(url: str, carrier: str, timeouts: Timeouts = SHORT, id_: str = "x", **wanted: Any) -> Sample:
    chosen = choose(url, Wanted(transport=carrier, **wanted), controlling(carrier, Tls()))
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


@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_users_headers_reach_the_runtime_under_the_signature(aws: SageMaker, carrier: str):
    aws.clear()
    headers = (("x-amzn-sagemaker-custom-attributes", "accept_eula=true"), ("x-way", "there"), ("x-way", "back"))
    assert asked("sagemaker://good", carrier, headers=headers).complete
    (record,) = aws.records()
    assert record["signed"]
    assert record["headers"]["x-amzn-sagemaker-custom-attributes"] == "accept_eula=true"
    assert record["headers"]["x-way"] == "there, back"
    named = dict(Runtime(parse("sagemaker://good"), headers).signed(b"{}", streamed=True, request_id="x").headers)
    assert {"x-amzn-sagemaker-custom-attributes", "x-way"} <= set(
        named["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    )


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "name", ["authorization", "Host", "x-amz-date", "x-amz-security-token", "content-type", "content-length"]
)
def test_a_header_that_the_signature_is_made_of_is_refused_and_its_value_not_shown(
    aws: SageMaker, carrier: str, name: str
):
    aws.clear()
    with pytest.raises(EndpointError, match=f"--header {name.lower()}") as refused:
        asked("sagemaker://good", carrier, headers=((name, "never-shown"),))
    assert "never-shown" not in str(refused.value)
    assert aws.records() == []


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_connection_that_does_not_open_is_told_as_that_and_not_as_silence(
    aws: SageMaker, monkeypatch: pytest.MonkeyPatch, carrier: str
):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port, crowd = full.getsockname()[1], []
        for _ in range(4):  # nobody accepts, and more than the kernel keeps waiting
            crowd.append(socket.socket())
            crowd[-1].settimeout(0.1)
            with suppress(TimeoutError):
                crowd[-1].connect(("127.0.0.1", port))
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{port}")
        sample = asked("sagemaker://good", carrier, Timeouts(connect_s=0.5, first_byte_s=9))
        for each in crowd:
            each.close()
    assert sample.verdict is Verdict.TIMEOUT
    assert sample.detail is not None
    assert sample.detail.startswith(f"no connection to 127.0.0.1:{port} in 0.5 s")


def test_a_whole_reply_over_boto3_is_stamped_when_it_is_there(aws: SageMaker, monkeypatch: pytest.MonkeyPatch):
    from botocore.response import StreamingBody

    whole, read_at = StreamingBody.read, []

    def read(body: Any, *amount: Any) -> Any:
        data = whole(body, *amount)
        read_at.append(monotonic_ns())
        return data

    monkeypatch.setattr(StreamingBody, "read", read)
    connection, seen = Boto3Connection(Runtime(parse("sagemaker://good"))), Seen()
    request = HttpRequest("POST", "", (("accept", "application/json"), ("x-request-id", "x")), b'{"inputs": "one two"}')
    (reply,) = connection.exchange(request, seen, SHORT)
    assert (seen.status, len(read_at)) == (200, 1)
    assert seen.headers_ns is not None
    assert seen.ended_ns is not None
    assert seen.headers_ns <= read_at[0] <= reply.t_ns <= seen.ended_ns


FAULTS = [  # (endpoint, verdict, tokens that came before it, part of the detail)
    ("fault-model-stream-error-3", Verdict.ERROR_IN_STREAM, 3, "ModelStreamError: "),
    ("fault-time-exceeded-3", Verdict.ERROR_IN_STREAM, 3, "ModelStreamError: The model did not finish"),
    ("fault-internal-stream-failure-3", Verdict.ERROR_IN_STREAM, 3, "InternalStreamFailure: "),
    ("fault-error-message-3", Verdict.ERROR_IN_STREAM, 3, ""),
    ("fault-unknown-event-3", Verdict.COMPLETE, TOKENS, None),
    ("fault-end-0", Verdict.TRUNCATED, 0, f"0 of {TOKENS} tokens"),
    ("fault-cut-0", Verdict.CONNECTION, 0, "reset"),
    ("fault-end-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-bad-crc-3", Verdict.ERROR_IN_STREAM, 3, "hecksum"),
    ("fault-end-in-frame-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-cut-frame-3", Verdict.TRUNCATED, 3, f"3 of {TOKENS} tokens"),
    ("fault-not-streaming", Verdict.HTTP_ERROR, 0, "(ask for whole replies with --no-stream)"),
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
        ("sagemaker://[NAME]?region=eu-west-1", "names no endpoint"),
        ("sagemaker://good/path", "names no endpoint"),
        ("sagemaker://good?regoin=eu-west-1", "says regoin, which is none of inference-component, region, variant"),
        ("sagemaker://good?region=eu_west", "eu_west"),
        ("sagemaker://good#blue", "names no endpoint"),
        ("sagemaker://good?region=", "says region twice, or without a value"),
        ("sagemaker://good?variant=a&variant=b", "says variant twice, or without a value"),
        ("sagemaker://someone:hunter2@good", "sagemaker://…@good names no endpoint"),
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


@pytest.mark.parametrize("carrier", CARRIERS)
def test_without_credentials_nothing_is_sent(aws: SageMaker, monkeypatch: pytest.MonkeyPatch, carrier: str):
    aws.clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(EndpointError, match="there are no AWS credentials: set AWS_PROFILE"):
        asked("sagemaker://good", carrier)
    assert aws.records() == []


def test_a_profile_that_is_not_there_is_a_sentence(aws: SageMaker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(EndpointError, match=r"AWS can't be asked: .*\(nope\) could not be found"):
        asked("sagemaker://good", "gevent")


@pytest.mark.parametrize("carrier", ["gevent", "httpx"])
def test_no_half_of_a_secret_is_shown_where_a_page_that_is_not_aws_is_cut(
    aws: SageMaker, monkeypatch: pytest.MonkeyPatch, raw_server: Any, carrier: str
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIACUTINTWO00000000")
    page = b"<html>" + b"x" * 184 + b"AKIACUTINTWO00000000"  # 200 bytes end inside of it
    reply = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page)
    with raw_server(reply) as target:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", target.origin)
        sample = asked("sagemaker://good", carrier)
    assert sample.status == 403
    assert "<html>x" in (sample.detail or "")
    assert "AKIACUT" not in (sample.detail or "")


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


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["-k"], ["--cacert", "/etc/hosts"]])
@pytest.mark.parametrize("verb", [["run", "-u", "1", "-t", "1s", "--url"], ["probe"]], ids=["run", "probe"])
def test_options_that_boto3_would_not_see_are_refused_with_the_remedy(verb: list[str], options: list[str]):
    command = [sys.executable, "-m", "loadtest", *verb, "sagemaker://good", "--transport", "boto3", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    said = "tokenclock: --cacert and --insecure don't reach boto3: set SSL_CERT_FILE and AWS_CA_BUNDLE\n"
    assert (done.returncode, done.stderr) == (2, said)


MISSING = [  # (module, options that need it, the extra that brings it)
    ("boto3", ["sagemaker://good"], "sagemaker"),
    ("botocore", ["sagemaker://good"], "sagemaker"),
    ("tokenizers", ["http://127.0.0.1:1", "--tokenizer", "tokenizer.json"], "tokenizer"),
    ("huggingface_hub", ["http://127.0.0.1:1", "--transport", "huggingface_hub"], "hub"),
    ("httptools", ["http://127.0.0.1:1"], "loadtest"),
    ("orjson", ["http://127.0.0.1:1"], "loadtest"),
]


@pytest.mark.parametrize(("module", "words", "extra"), MISSING, ids=[each[0] for each in MISSING])
@pytest.mark.parametrize("verb", [["run", "-u", "1", "-t", "1s", "--url"], ["probe"]], ids=["run", "probe"])
def test_what_is_not_installed_is_one_sentence_with_its_extra_and_leaves_nothing_behind(
    verb: list[str], module: str, words: list[str], extra: str, tmp_path: Path
):
    command = ["tokenclock", *verb, *words]
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules[{module!r}] = None; "
        f"sys.argv = {command!r}; import loadtest.__main__ as command; command.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    said = f"tokenclock: {module} is not installed: pip install 'tokenclock[{extra}]'\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_refused_where_the_container_takes_none_and_sent_where_it_does(aws: SageMaker):
    with pytest.raises(EndpointError, match="leave --model m out, or say --endpoint-type openai-chat"):
        asked("sagemaker://good", "gevent", model="m")
    aws.clear()
    asked("sagemaker://good", "gevent", kind="openai-chat", model="m")
    assert json.loads(aws.records()[0]["body"])["model"] == "m"


def test_an_api_key_is_not_taken_where_aws_signs(aws: SageMaker):
    with pytest.raises(EndpointError, match="AWS takes no --api-key"):
        choose("sagemaker://good", Wanted(api_key="sk-12345678"), controlling("gevent", Tls()))


def test_credentials_that_can_no_longer_be_had_are_a_samples_failure(aws: SageMaker, monkeypatch: pytest.MonkeyPatch):
    from botocore.exceptions import NoCredentialsError

    chosen = choose("sagemaker://good", Wanted(), controlling("gevent", Tls()))

    def gone(_: Runtime) -> None:
        raise NoCredentialsError

    monkeypatch.setattr(Runtime, "keys", gone)
    order = Order("x", Cell(None, None, 1, 4, TOKENS), "steady", "one two", 0)
    with closing(chosen.connect(connecting("gevent", Tls()))(chosen.target)) as connection:
        sample = measure(connection, chosen.endpoint, order, run="test", process=0, user=0, timeouts=SHORT)
    assert sample.verdict is Verdict.CONNECTION
    assert "the request can't be signed" in (sample.detail or "")
