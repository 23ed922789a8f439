"""The stand-in is honest: boto3, as it is, sees in it what it would see of AWS's SageMaker runtime, errors included.

Method: the runtime runs as its own process before a container of known bytes, in which every chunk has characters of
several bytes, and once before this project's own server. boto3 is the client. What a signature must be is in
`test_sigv4`.
Tolerance: no upper bound on any time. That parts are passed on at once is shown by a container that goes on only when
the part before has arrived; the stamps of one system-wide monotonic clock have an order.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import boto3
import httpx
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.eventstream import ChecksumMismatch
from botocore.exceptions import ClientError, EventStreamError, ReadTimeoutError
from urllib3.exceptions import ProtocolError
from urllib3.exceptions import ReadTimeoutError as PartTimeoutError

from tests.loadtest.sagemaker_fixtures import SageMaker, runtime, signed
from tests.schedule_server import Request, framed
from tests.server.processes import process, wait_until_ready

CHUNKS = [f"data:{i} é時🕰\n\n".encode() for i in range(6)]
BODY = b"".join(CHUNKS)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
STS_TOKEN = "FwoGZXIvYXdzEJr//////////wEaDJ+/=="


@dataclass
class Container:
    """Answers `/invocations` with CHUNKS. The body `{"status": 422}` gets that status, and

    `{"breaks": k}`, `{"silent": k}`: after k chunks the connection closes, or nothing more comes; -1: no headers either
    `{"steps": true}`: each chunk waits until `go` is released once
    """

    port: int
    asked: list[Request] = field(default_factory=list)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as reader:  # the runtime may leave early
            while (request := Request.read(reader)) is not None:
                self.asked.append(request)
                if not self.answer(connection, **json.loads(request.body or b"{}")):
                    return

    def answer(
        self, connection: socket.socket, status: int = 200, breaks: int = 9, silent: int = 9, steps: bool = False
    ) -> bool:
        if status != 200:
            body = '{"error":"é no"}'.encode()
            connection.sendall(b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            return True
        if min(breaks, silent) >= 0:
            connection.sendall(STREAM_HEAD + b"x-amzn-sagemaker-custom-attributes: seen\r\n\r\n")
        for i, chunk in enumerate([b"", *CHUNKS], -1):
            if i == breaks:
                return False
            if i == silent:
                connection.recv(1)  # returns when the runtime leaves
                return False
            if steps and chunk:
                assert self.go.acquire(timeout=60)
            if chunk:
                connection.sendall(framed(chunk))
        connection.sendall(b"0\r\n\r\n")
        return True


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        container = Container(listener.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # the test is over
                threading.Thread(target=container.serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield container
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def shared(container: Container) -> Iterator[SageMaker]:
    with runtime(container.url) as sagemaker:
        yield sagemaker


@pytest.fixture
def sagemaker(shared: SageMaker, container: Container) -> SageMaker:
    shared.clear()
    container.asked.clear()
    return shared


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return boto3.Session()  # reads its descriptions of the services once


Connect = Callable[..., Any]


@pytest.fixture
def connect(session: boto3.Session) -> Iterator[Connect]:
    """connect(sagemaker) is boto3's own client; what is changed is a keyword of `client` or of `Config`."""
    with ExitStack() as opened:

        def client(
            sagemaker: SageMaker, read_timeout: float = 20, signature_version: Any = None, **changed: Any
        ) -> Any:
            config = Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                read_timeout=read_timeout,
                signature_version=signature_version,
            )
            known = {
                "endpoint_url": sagemaker.url,
                "region_name": sagemaker.region,
                "aws_access_key_id": sagemaker.access_key,
                "aws_secret_access_key": sagemaker.secret_key,
                "aws_session_token": sagemaker.session_token,
            }
            return opened.enter_context(closing(session.client("sagemaker-runtime", config=config, **known | changed)))

        yield client


def ask(client: Any, endpoint: str = "good", body: dict[str, Any] | None = None, **more: Any) -> Any:
    content = json.dumps(body or {}).encode()
    return client.invoke_endpoint_with_response_stream(
        EndpointName=endpoint, Body=content, ContentType="application/json", **more
    )


def parts(reply: Any) -> list[bytes]:
    with closing(reply["Body"]) as body:
        return [event["PayloadPart"]["Bytes"] for event in body]


def parts_until(error: type[Exception], reply: Any, message: str | None = None) -> tuple[list[bytes], Exception]:
    """What arrived before the error, and the error."""
    arrived: list[bytes] = []
    with closing(reply["Body"]) as body, pytest.raises(error, match=message) as raised:
        arrived.extend(event["PayloadPart"]["Bytes"] for event in body)  # keeps what comes before an exception
    return arrived, raised.value


def said(error: ClientError) -> tuple[str, str, int]:
    return error.response["Error"]["Code"], error.response["Error"]["Message"], status_of(error)


def status_of(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


# What goes well


def test_a_stream_is_the_containers_bytes_a_part_per_chunk(sagemaker: SageMaker, connect: Connect):
    reply = ask(connect(sagemaker))
    assert parts(reply) == CHUNKS
    assert (reply["ContentType"], reply["CustomAttributes"]) == ("text/event-stream", "seen")
    assert reply["InvokedProductionVariant"] == "AllTraffic"
    assert reply["ResponseMetadata"]["HTTPHeaders"]["content-type"] == "application/vnd.amazon.eventstream"


def test_a_part_is_passed_on_before_the_container_sends_the_next(
    sagemaker: SageMaker, container: Container, connect: Connect
):
    seen = 0
    with closing(ask(connect(sagemaker), body={"steps": True})["Body"]) as body:
        events = iter(body)
        for chunk in CHUNKS:
            container.go.release()
            assert next(events)["PayloadPart"]["Bytes"] == chunk
            seen += 1
        assert next(events, None) is None
    assert seen == len(CHUNKS)


def test_an_answer_in_one_piece_passes_as_it_is(sagemaker: SageMaker, connect: Connect):
    reply = connect(sagemaker).invoke_endpoint(EndpointName="good", Body=b"{}", Accept="text/plain")
    assert reply["Body"].read() == BODY
    assert (reply["ContentType"], reply["CustomAttributes"]) == ("text/event-stream", "seen")


def test_the_container_gets_the_body_and_only_the_headers_that_aws_passes_on(
    sagemaker: SageMaker, container: Container, connect: Connect
):
    more = {"CustomAttributes": "a  b", "InferenceId": "one", "TargetVariant": "blue", "Accept": "text/event-stream"}
    reply = ask(connect(sagemaker), body={"breaks": 9}, **more)
    assert parts(reply) == CHUNKS
    assert reply["InvokedProductionVariant"] == "blue"
    (asked,) = container.asked
    assert asked.body == b'{"breaks": 9}'
    assert {name: value for name, value in asked.headers.items() if name not in ("host", "content-length")} == {
        "accept-encoding": "identity",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "x-amzn-sagemaker-custom-attributes": "a  b",
        "x-amzn-sagemaker-inference-id": "one",
        "x-amzn-sagemaker-target-variant": "blue",
    }


@pytest.mark.parametrize("cut", [1, 7, 37, 10_000])
def test_parts_can_be_cut_anywhere(cut: int, container: Container, connect: Connect):
    with runtime(container.url, cut=cut) as sagemaker:
        arrived = parts(ask(connect(sagemaker)))
        fewer, _ = parts_until(EventStreamError, ask(connect(sagemaker), "fault-model-stream-error-1"))
        broken, _ = parts_until(EventStreamError, ask(connect(sagemaker), body={"breaks": 3}))
    assert arrived == [BODY[at : at + cut] for at in range(0, len(BODY), cut)]
    assert fewer == arrived[:1]
    assert b"".join(broken) == b"".join(CHUNKS[:3])
    if cut == 7:
        assert any(part.decode(errors="replace").encode() != part for part in arrived), "no character was cut"
        assert any(b"\n" in part[:-1] for part in arrived), "no part holds the end of a line and the next"


def to_the_digits(content: bytes) -> bytes:
    """A reply whose logprobs have three decimals: their last bits depend on the slot, and on who is in the others."""
    return re.sub(rb'(?<="logprob":)-?[0-9.e-]+', lambda found: b"%.3f" % float(found[0]), content)


@pytest.mark.e2e
def test_a_real_server_streams_through_it(connect: Connect):
    asked = {"inputs": "The clock", "parameters": {"max_new_tokens": 8, "details": True}, "stream": True}
    with process("--slots", "2", "--threads", "1") as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        wait_until_ready(client, "/ping")
        own = client.post("/invocations", json=asked)
        whole = client.post("/invocations", json=asked | {"stream": False})
        with runtime(url) as sagemaker, runtime(url, cut=3) as cutting:
            streams = [ask(connect(through), body=asked) for through in (sagemaker, cutting)]
            joined = [b"".join(parts(reply)) for reply in streams]
            reply = connect(sagemaker).invoke_endpoint(
                EndpointName="good", Body=json.dumps(asked | {"stream": False}), ContentType="application/json"
            )
            once = reply["Body"].read()
            with pytest.raises(ClientError) as refused:
                ask(connect(sagemaker), body={"inputs": ""})
            (record,) = [record for record in sagemaker.records() if record["sends"]]
    assert own.content.count(b"data:") == 8
    assert [to_the_digits(each) for each in joined] == [to_the_digits(own.content)] * 2
    assert {reply["ContentType"] for reply in streams} == {own.headers["content-type"]}
    assert (to_the_digits(once), reply["ContentType"]) == (to_the_digits(whole.content), whole.headers["content-type"])
    assert len(record["sends"]) >= 2, "a server that is behind writes several tokens at once, but never all"
    assert (said(refused.value)[0], refused.value.response["OriginalStatusCode"]) == ("ModelError", 422)
    assert "`inputs` cannot be empty" in refused.value.response["OriginalMessage"]


# What breaks after good parts


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("model-stream-error", EventStreamError, r"\(ModelStreamError\) .*: The connection to the model was reset"),
        ("time-exceeded", EventStreamError, r"\(ModelStreamError\) .*: The model did not finish"),
        ("internal-stream-failure", EventStreamError, r"\(InternalStreamFailure\) .*: The stream processing failed"),
        ("error-message", EventStreamError, r"\(InternalError\) .*: on demand"),
        ("bad-crc", ChecksumMismatch, "Checksum mismatch"),
        ("cut-frame", ProtocolError, "Response ended prematurely"),
        ("cut", ProtocolError, "Connection reset by peer"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_a_fault_comes_after_as_many_good_parts_as_it_says(
    fault: str, error: type[Exception], message: str, after: int, sagemaker: SageMaker, connect: Connect
):
    reply = ask(connect(sagemaker), f"fault-{fault}-{after}")
    assert parts_until(error, reply, message)[0] == CHUNKS[:after]


def test_a_stream_can_stall(sagemaker: SageMaker, connect: Connect):
    reply = ask(connect(sagemaker, read_timeout=2), "fault-stall-3")
    assert parts_until(PartTimeoutError, reply, "Read timed out")[0] == CHUNKS[:3]
    assert sagemaker.records()[0]["ended_ns"] is None


@pytest.mark.parametrize("fault", ["end", "end-in-frame"])
def test_boto3_takes_a_stream_that_ends_too_early_for_a_whole_one(fault: str, sagemaker: SageMaker, connect: Connect):
    assert parts(ask(connect(sagemaker), f"fault-{fault}-3")) == CHUNKS[:3]


def test_an_event_that_boto3_does_not_know_is_passed_over(sagemaker: SageMaker, connect: Connect):
    assert parts(ask(connect(sagemaker), "fault-unknown-event-3")) == CHUNKS
    (record,) = sagemaker.records()
    assert [carried for _, carried in record["sends"]] == [*map(len, CHUNKS[:3]), 0, *map(len, CHUNKS[3:])]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("model-stream-error", EventStreamError), ("bad-crc", ChecksumMismatch), ("cut", ProtocolError)],
)
def test_in_a_shorter_stream_a_fault_comes_at_the_end(
    fault: str, error: type[Exception], sagemaker: SageMaker, connect: Connect
):
    assert parts_until(error, ask(connect(sagemaker), f"fault-{fault}-99"))[0] == CHUNKS


def test_exceptions_of_the_stream_have_the_codes_that_boto3_leaves_out(sagemaker: SageMaker, connect: Connect):
    codes = {"model-stream-error": "StreamBroken", "time-exceeded": "ModelInvocationTimeExceeded"}
    for fault, code in codes.items():
        with closing(ask(connect(sagemaker), f"fault-{fault}-0")["Body"]) as body:
            assert f'"ErrorCode": "{code}"'.encode() in body._raw_stream.read()
        _, error = parts_until(EventStreamError, ask(connect(sagemaker), f"fault-{fault}-0"))
        assert set(error.response["Error"]) == {"Code", "Message"}


# What is answered with an error


@pytest.mark.parametrize(
    ("fault", "status", "code", "message"),
    [
        ("throttled", 400, "ThrottlingException", "Rate exceeded"),
        ("throttled-mute", 400, "ThrottlingException", None),
        ("unavailable", 503, "ServiceUnavailable", "The service is unavailable. Try your call again."),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_refusals_have_awss_status_name_and_words(
    fault: str, status: int, code: str, message: str | None, streamed: bool, sagemaker: SageMaker, connect: Connect
):
    client = connect(sagemaker)
    call = client.invoke_endpoint_with_response_stream if streamed else client.invoke_endpoint
    with pytest.raises(ClientError) as raised:
        call(EndpointName=f"fault-{fault}", Body=b"{}")
    assert said(raised.value) == (code, message, status)
    headers = raised.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-errortype"].startswith(f"{code}:http://internal.amazon.com/coral/")
    assert raised.value.response["ResponseMetadata"]["RequestId"] == headers["x-amzn-requestid"]


def test_who_may_not_invoke_is_told_which_action(sagemaker: SageMaker, connect: Connect):
    with pytest.raises(ClientError, match=r"\(AccessDeniedException\).*sagemaker:InvokeEndpoint") as raised:
        ask(connect(sagemaker), "fault-access-denied")
    assert status_of(raised.value) == 403


def test_a_model_that_cannot_stream_answers_in_one_piece(sagemaker: SageMaker, connect: Connect):
    client = connect(sagemaker)
    with pytest.raises(client.exceptions.ValidationError, match="does not support response streaming"):
        ask(client, "fault-not-streaming")
    assert client.invoke_endpoint(EndpointName="fault-not-streaming", Body=b"{}")["Body"].read() == BODY


@pytest.mark.parametrize(
    "endpoint",
    ["nobody", "goods", "fault", "fault-", "fault-cut", "fault-throttled-3", "fault-200", "fault-600", "fault-flood-3"],
)
def test_an_endpoint_that_is_not_there_is_a_validation_error(endpoint: str, sagemaker: SageMaker, connect: Connect):
    client = connect(sagemaker)
    with pytest.raises(client.exceptions.ValidationError) as raised:
        ask(client, endpoint)
    told = f"Endpoint {endpoint} of account 123456789012 not found."
    assert said(raised.value) == ("ValidationError", told, 400)


def test_headers_can_be_late(sagemaker: SageMaker, connect: Connect):
    assert parts(ask(connect(sagemaker), "fault-slow-headers")) == CHUNKS
    (record,) = sagemaker.records()
    assert record["headers_ns"] - record["received_ns"] >= 1e9
    with pytest.raises(ReadTimeoutError):
        ask(connect(sagemaker, read_timeout=0.2), "fault-slow-headers")


# What the container does wrong


def refused_424(client: Any, endpoint: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    with pytest.raises(client.exceptions.ModelError) as raised:
        ask(client, endpoint, body)
    assert status_of(raised.value) == 424
    response = raised.value.response
    assert response["LogStreamArn"].endswith(f":123456789012:log-group:/aws/sagemaker/Endpoints/{endpoint}")
    assert "See https://eu-west-1.console.aws.amazon.com/cloudwatch/" in response["Error"]["Message"]
    return response


@pytest.mark.parametrize(("status", "side"), [(400, "client"), (429, "client"), (500, "server"), (503, "server")])
def test_a_containers_error_is_a_model_error_around_its_own(
    status: int, side: str, sagemaker: SageMaker, connect: Connect
):
    response = refused_424(connect(sagemaker), "good", {"status": status})
    assert (response["OriginalStatusCode"], response["OriginalMessage"]) == (status, '{"error":"é no"}')
    told = f'Received {side} error ({status}) from primary with message "{{"error":"é no"}}". See'
    assert response["Error"]["Message"].startswith(told)


@pytest.mark.parametrize("status", [429, 503])
def test_a_containers_error_can_be_had_without_it(
    status: int, sagemaker: SageMaker, container: Container, connect: Connect
):
    assert refused_424(connect(sagemaker), f"fault-{status}")["OriginalStatusCode"] == status
    assert refused_424(connect(sagemaker), "fault-timed-out")["OriginalStatusCode"] == 0
    assert container.asked == []


def test_a_container_that_breaks_is_told_of_in_the_stream(sagemaker: SageMaker, connect: Connect):
    arrived, error = parts_until(EventStreamError, ask(connect(sagemaker), body={"breaks": 3}))
    assert arrived == CHUNKS[:3]
    assert "(ModelStreamError)" in str(error)
    assert refused_424(connect(sagemaker), "good", {"breaks": -1})["OriginalStatusCode"] == 0
    client = connect(sagemaker)
    with pytest.raises(client.exceptions.ModelError, match="could not load the entire response body"):
        client.invoke_endpoint(EndpointName="good", Body=b'{"breaks": 3}')


def test_a_container_that_is_silent_for_too_long_is_told_of(container: Container, connect: Connect):
    with runtime(container.url, patience_s=2) as sagemaker:
        arrived, error = parts_until(EventStreamError, ask(connect(sagemaker), body={"silent": 3}))
        response = refused_424(connect(sagemaker), "good", {"silent": -1})
    assert arrived == CHUNKS[:3]
    assert "(ModelStreamError) when" in str(error)
    assert "did not finish its response within the time allowed" in str(error)
    assert response["OriginalStatusCode"] == 0
    assert "Your invocation timed out while waiting for a response from container primary" in str(response["Error"])


# Who is let in


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        (
            {"aws_secret_access_key": "other"},
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        ),
        (
            {"aws_access_key_id": "AKIAOTHER"},
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            {"aws_session_token": "other"},
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            {"aws_session_token": "expired-session-token"},
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ),
        (
            {"region_name": "us-east-1"},
            "InvalidSignatureException",
            "Credential should be scoped to a valid region, not 'us-east-1'.",
        ),
        ({"signature_version": UNSIGNED}, "MissingAuthenticationTokenException", "Missing Authentication Token"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_who_is_refused_and_in_which_words(
    changed: dict[str, Any],
    code: str,
    message: str,
    streamed: bool,
    sagemaker: SageMaker,
    container: Container,
    connect: Connect,
):
    client = connect(sagemaker, **changed)
    call = client.invoke_endpoint_with_response_stream if streamed else client.invoke_endpoint
    with pytest.raises(ClientError) as raised:
        call(EndpointName="good", Body=b"{}")
    assert (said(raised.value)[0], status_of(raised.value)) == (code, 403)
    assert said(raised.value)[1].startswith(message)
    (record,) = sagemaker.records()
    assert (record["endpoint"], record["signed"], record["error"]) == ("good", False, code)
    assert container.asked == []


def test_a_session_token_is_needed_signed_and_repeated_in_the_refusal(container: Container, connect: Connect):
    with runtime(container.url, session_token=STS_TOKEN) as sagemaker:
        assert sagemaker.session_token == STS_TOKEN
        assert parts(ask(connect(sagemaker))) == CHUNKS
        with pytest.raises(ClientError, match="UnrecognizedClientException"):
            ask(connect(sagemaker, aws_session_token=None))
        with pytest.raises(ClientError, match="InvalidSignatureException") as raised:
            ask(connect(sagemaker, aws_secret_access_key="other"))
        assert f"\nx-amz-security-token:{STS_TOKEN}\n" in str(raised.value)
        kept = json.dumps(sagemaker.records())
    assert kept.count("x-amz-date") == 3
    for secret in (STS_TOKEN, "x-amz-security-token", "authorization", "AWS4-HMAC"):
        assert secret not in kept


@pytest.mark.parametrize(("clock_s", "message"), [(400, "Signature expired: "), (-400, "Signature not yet current: ")])
def test_clocks_may_differ_by_five_minutes(clock_s: int, message: str, container: Container, connect: Connect):
    with runtime(container.url, clock_s=clock_s) as sagemaker, pytest.raises(ClientError) as raised:
        ask(connect(sagemaker))
    assert said(raised.value)[0] == "InvalidSignatureException"
    assert said(raised.value)[1].startswith(message)
    with runtime(container.url, clock_s=clock_s / 2) as sagemaker:
        assert parts(ask(connect(sagemaker))) == CHUNKS


def test_the_environment_is_all_that_a_process_needs(sagemaker: SageMaker):
    program = (
        "import boto3, os, sys; client = boto3.client('sagemaker-runtime', region_name=os.environ['AWS_REGION']); "
        "reply = client.invoke_endpoint_with_response_stream(EndpointName='good', Body=b'{}'); "
        "sys.stdout.buffer.write(b''.join(event['PayloadPart']['Bytes'] for event in reply['Body']))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | sagemaker.environ(), capture_output=True, check=False, timeout=60
    )
    assert (done.stdout, done.returncode) == (BODY, 0), done.stderr


# What is recorded


def test_the_record_is_what_was_sent_and_when(sagemaker: SageMaker, connect: Connect):
    assert parts(ask(connect(sagemaker), body={"breaks": 9}, InferenceId="one")) == CHUNKS
    (record,) = sagemaker.records()
    assert (record["endpoint"], record["signed"], record["error"]) == ("good", True, None)
    assert record["path"] == "/endpoints/good/invocations-response-stream"
    assert record["body"] == '{"breaks": 9}'
    assert record["headers"]["x-amzn-sagemaker-inference-id"] == "one"
    assert [carried for _, carried in record["sends"]] == [len(chunk) for chunk in CHUNKS]
    stamps = [record["received_ns"], record["headers_ns"], *(ns for ns, _ in record["sends"]), record["ended_ns"]]
    assert stamps == sorted(stamps)
    sagemaker.clear()
    assert sagemaker.records() == []


def test_a_connection_stays_open_after_an_error_and_after_a_stream(sagemaker: SageMaker):
    with closing(HTTPConnection(sagemaker.url.removeprefix("http://"), timeout=20)) as connection:
        connection.connect()
        port = connection.sock.getsockname()[1]
        for endpoint, status in (("nobody", 400), ("good", 200), ("fault-model-stream-error-1", 200), ("good", 200)):
            path = f"/endpoints/{endpoint}/invocations-response-stream"
            connection.request("POST", path, b"{}", signed(sagemaker.url + path, b"{}"))
            response = connection.getresponse()
            response.read()
            assert (response.status, connection.sock and connection.sock.getsockname()[1]) == (status, port)
        connection.request("POST", "/endpoints/good/nothing", b"{}")
        assert connection.getresponse().status == 404
