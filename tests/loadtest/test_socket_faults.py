"""What a server, a gateway or AWS can do to a request, each over real sockets and with the right verdict.

Method: a server that follows a script of bytes, waits and resets on each connection, once it has read the request;
asked over our own transports as a TGI endpoint, and over ours and unmodified boto3 as SageMaker's runtime, whose frames
are packed by the test. Verdicts are the same whoever carries the request, and a fault costs its own request only.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import pytest

from loadtest.endpoints.choice import Wanted, choose
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.sample import Sample
from loadtest.transport.base import ConnectionBroken, Target, Timeouts, causes
from loadtest.transport.choice import connecting, controlling
from loadtest.transport.tls import Tls
from loadtest.verdict import Verdict
from tests.loadtest.test_transports import Certificates, by_address, certificates  # noqa: F401  (fixtures)
from tests.sagemaker_faults import PART, STREAM_BROKEN, frame
from tests.schedule_server import framed

PLAIN = ("gevent", "httpx")
AWS = ("sagemaker://, gevent", "sagemaker://, boto3")
LIMITS = Timeouts(connect_s=5, first_byte_s=0.4, gap_s=0.4, total_s=5)
TOKENS = 4

Step = bytes | float | str  # to send; seconds to wait; "reset": RST, and the connection is gone


@contextmanager
def scripted(*connections: Sequence[Step], context: ssl.SSLContext | None = None) -> Iterator[Target]:
    """A port where each connection reads a request, follows the next script and closes; "early": before it reads."""
    listener = socket.create_server(("127.0.0.1", 0))

    def follow(plain: socket.socket, steps: Sequence[Step]) -> None:
        peer = plain if context is None else context.wrap_socket(plain, server_side=True)
        with peer:
            if steps[:1] != ["early"]:
                request = peer.recv(65536)
                while request and not request.endswith(b"}"):
                    request += peer.recv(65536)
            for step in steps:
                if isinstance(step, bytes):
                    peer.sendall(step)
                elif isinstance(step, float):
                    time.sleep(step)
                elif step == "reset":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
                peer.settimeout(2)
                peer.recv(1)  # until the client has read it all: an early close would reset what it has not

    def serve() -> None:
        for steps in connections:
            with suppress(OSError):  # a client may leave first, or want no TLS of ours
                follow(listener.accept()[0], steps)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Target("127.0.0.1", listener.getsockname()[1], tls=context is not None)
    listener.close()


@pytest.fixture(autouse=True)
def _an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    account = {"ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "SECRET_ACCESS_KEY": "a-secret-of-the-tests"}
    files = {"CONFIG_FILE": "/dev/null", "SHARED_CREDENTIALS_FILE": "/dev/null", "EC2_METADATA_DISABLED": "true"}
    for name, value in {**account, **files, "REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    """ask(carrier, target) is the sample of one request for TOKENS tokens."""

    def asked(carrier: str, target: Target, tls: Tls | None = None) -> Sample:
        order = Order("x", Cell(None, None, 1, 2, TOKENS), "steady", "one two", 0)
        by = carrier.rpartition(" ")[2]
        connect = connecting(by, tls or Tls())
        endpoint: object = TgiEndpoint()
        if carrier in AWS:
            monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", target.origin)
            chosen = choose("sagemaker://good", Wanted(transport=by), controlling(by, Tls()))
            target, endpoint, connect = chosen.target, chosen.endpoint, chosen.connect(connect)
        with closing(connect(target)) as connection:
            return measure(connection, endpoint, order, run="", process=0, user=0, timeouts=LIMITS)  # type: ignore[arg-type]

    return asked


def answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


def token(number: int) -> bytes:
    last = number == TOKENS
    details = f'{{"finish_reason":"length","generated_tokens":{TOKENS},"input_length":2}}'
    end = f'"generated_text":"é","details":{details}' if last else '"generated_text":null,"details":null'
    return f'data:{{"token":{{"id":{number},"text":" é{number}","special":false}},{end}}}\n\n'.encode()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
AWS_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ntransfer-encoding: chunked\r\n"
    b"x-amzn-sagemaker-content-type: text/event-stream\r\n\r\n"
)
END = b"0\r\n\r\n"
GOOD = b"".join(token(number) for number in range(1, TOKENS + 1))
MID_LINE = token(1) + token(2) + token(3)[:30]
MID_CHARACTER = token(1) + token(2) + token(3)[: token(3).index(b"\xa9")]
ERROR = b'data:{"error":"out of memory","error_type":"generation"}\n\n'


def streamed(carrier: str, *steps: Step) -> list[Step]:
    """Bytes of the container's, as its own chunks or as parts of AWS's event stream; what else there is, as it is."""
    aws = carrier in AWS

    def carried(step: Step) -> Step:
        if not isinstance(step, bytes) or step == END:
            return step
        return framed(frame(PART, step) if aws else step)

    return [AWS_HEAD if aws else HEAD, *map(carried, steps)]


PAGE = b"<html><body><h1>Bad things</h1></body></html>"
HTML, JSON = "content-type: text/html", "content-type: application/json"
LOCATION = "location: https://elsewhere.example/v2"
REFUSALS = [  # (name, reply, verdict, parts of the detail)
    ("401", answer("401 Unauthorized", b'{"error":"no key"}', JSON), Verdict.HTTP_ERROR, "HTTP 401: ", "no key"),
    ("403", answer("403 Forbidden", b'{"error":"not you"}', JSON), Verdict.HTTP_ERROR, "HTTP 403: ", "not you"),
    ("404", answer("404 Not Found", b'{"error":"no route"}', JSON), Verdict.HTTP_ERROR, "HTTP 404: ", "no route"),
    ("413", answer("413 Too Large", b'{"error":"2 MB"}', JSON), Verdict.HTTP_ERROR, "HTTP 413: ", "2 MB"),
    ("422", answer("422 Unprocessable", b'{"error":"too long"}', JSON), Verdict.HTTP_ERROR, "HTTP 422: ", "too long"),
    ("429", answer("429 Too Many", b'{"error":"slow down"}', JSON), Verdict.OVERLOADED, "HTTP 429: ", "slow down"),
    ("500", answer("500 Internal", b'{"error":"broken"}', JSON), Verdict.HTTP_ERROR, "HTTP 500: ", "broken"),
    ("502 page", answer("502 Bad Gateway", PAGE, HTML), Verdict.HTTP_ERROR, "HTTP 502: ", "Bad things"),
    ("503 page", answer("503 Unavailable", PAGE, HTML), Verdict.OVERLOADED, "HTTP 503: ", "Bad things"),
    ("504, no body", answer("504 Gateway Timeout", b""), Verdict.HTTP_ERROR, "HTTP 504: ", ""),
    ("307", answer("307 Temporary Redirect", b"", LOCATION), Verdict.HTTP_ERROR, "HTTP 307: ", "elsewhere.example"),
    ("301", answer("301 Moved", PAGE, LOCATION, HTML), Verdict.HTTP_ERROR, "HTTP 301: ", "elsewhere.example"),
]


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
@pytest.mark.parametrize(("name", "reply", "verdict", "status", "said"), REFUSALS, ids=[each[0] for each in REFUSALS])
def test_a_refusal_has_its_status_and_what_it_says(
    ask, carrier: str, name: str, reply, verdict, status: str, said: str
):
    with scripted([reply], [reply]) as target:
        sample = ask(carrier, target)
    assert (sample.verdict, sample.events) == (verdict, ()), sample.detail
    assert sample.detail.startswith(status)
    assert said in sample.detail
    assert sample.status == int(status[5:8])


NO_STREAM = [
    ("a page", answer("200 OK", PAGE, HTML), "text/html"),
    ("a whole reply", answer("200 OK", b'{"generated_text":"x"}', JSON), "application/json"),
    ("plain text", answer("200 OK", b"hello", "content-type: text/plain"), "text/plain"),
]


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
@pytest.mark.parametrize(("name", "reply", "kind"), NO_STREAM, ids=[each[0] for each in NO_STREAM])
def test_a_200_that_is_no_stream_is_an_error_that_names_its_type(ask, carrier: str, name: str, reply: bytes, kind: str):
    with scripted([reply]) as target:
        sample = ask(carrier, target)
    assert (sample.verdict, sample.events) == (Verdict.ERROR_IN_STREAM, ()), sample.detail
    assert kind in sample.detail


STAGES = [  # (name, what a connection does, verdict, tokens before it, part of the detail)
    ("reset at once", ["early", "reset"], Verdict.CONNECTION, 0, ""),
    ("reset before the headers", ["reset"], Verdict.CONNECTION, 0, ""),
    ("reset in the headers", [HEAD[:30], 0.05, "reset"], Verdict.CONNECTION, 0, ""),
    ("reset after the headers", [*streamed("gevent"), 0.05, "reset"], Verdict.CONNECTION, 0, "reset"),
    ("reset after two tokens", [token(1), token(2), 0.05, "reset"], Verdict.CONNECTION, 2, "reset"),
    ("reset in a line", [MID_LINE, 0.05, "reset"], Verdict.CONNECTION, 2, "reset"),
    ("closed before the headers", [0.05], Verdict.CONNECTION, 0, ""),
    ("closed in the headers", [HEAD[:24]], Verdict.CONNECTION, 0, ""),
    ("closed in a line", [MID_LINE], Verdict.TRUNCATED, 2, "after 2 of 4 tokens"),
    ("closed in a character", [MID_CHARACTER], Verdict.TRUNCATED, 2, "after 2 of 4 tokens"),
    ("ended in a line", [MID_LINE, END], Verdict.TRUNCATED, 2, "after 2 of 4 tokens"),
    ("ended in a character", [MID_CHARACTER, END], Verdict.TRUNCATED, 2, "after 2 of 4 tokens"),
    ("ended after two tokens", [token(1), token(2), END], Verdict.TRUNCATED, 2, "after 2 of 4 tokens"),
    ("an error after two tokens", [token(1) + token(2), ERROR, END], Verdict.ERROR_IN_STREAM, 2, "out of memory"),
    ("an error after every token", [GOOD[:-2] + b"\n\n", ERROR, END], Verdict.ERROR_IN_STREAM, 4, "out of memory"),
    ("silent before the headers", [0.9], Verdict.TIMEOUT, 0, ""),
    ("silent in the headers", [HEAD[:30], 0.9], Verdict.TIMEOUT, 0, ""),
    ("silent after two tokens", [token(1), token(2), 0.9], Verdict.TIMEOUT, 2, "nothing arrived for 0.4 s"),
    ("slow headers", [0.2, *streamed("gevent")], Verdict.COMPLETE, 4, None),
    ("good", [GOOD, END], Verdict.COMPLETE, 4, None),
    ("cut into single bytes", [*(GOOD[i : i + 1] for i in range(len(GOOD))), END], Verdict.COMPLETE, 4, None),
]


#: boto3's HTTP library takes a connection's end for the headers'.
OF_BOTO3 = {"closed in the headers": (Verdict.TRUNCATED, 0, "after 0 of 4 tokens")}


def script(carrier: str, name: str, steps: Sequence[Step]) -> list[Step]:
    """The steps as the carrier's server would take them: only those that stream have something to frame."""
    head = AWS_HEAD if carrier in AWS else HEAD
    if name == "slow headers":
        return [0.2, head[:30], 0.2, head[30:], *streamed(carrier, GOOD, END)[1:]]
    if name == "reset after the headers":
        return [head, 0.05, "reset"]
    if "headers" in name or name == "reset at once":
        return [head[: len(step)] if isinstance(step, bytes) else step for step in steps]
    return streamed(carrier, *steps)


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
@pytest.mark.parametrize(("name", "steps", "verdict", "tokens", "detail"), STAGES, ids=[each[0] for each in STAGES])
def test_a_stream_that_ends_at_any_stage_has_its_verdict_and_keeps_what_came(
    ask, carrier: str, name: str, steps: Sequence[Step], verdict: Verdict, tokens: int, detail: str | None
):
    if carrier.endswith("boto3"):
        verdict, tokens, detail = OF_BOTO3.get(name, (verdict, tokens, detail))
    steps = script(carrier, name, steps)
    with scripted(steps, steps) as target:
        sample = ask(carrier, target)
    assert (sample.verdict, len(sample.events)) == (verdict, tokens), sample.detail
    assert (detail is None) == (sample.detail is None)
    assert (detail or "") in (sample.detail or "")


@pytest.mark.parametrize("carrier", AWS)
def test_an_exception_of_awss_after_good_tokens_is_told_by_its_name(ask, carrier: str):
    with scripted([*streamed(carrier, token(1), token(2)), framed(STREAM_BROKEN), END]) as target:
        sample = ask(carrier, target)
    assert (sample.verdict, len(sample.events)) == (Verdict.ERROR_IN_STREAM, 2)
    assert sample.detail.startswith("ModelStreamError: ")


@pytest.mark.parametrize("carrier", AWS)
def test_a_host_that_is_not_there_makes_one_ask_for_the_region(ask, carrier: str):
    sample = ask(carrier, Target("runtime.sagemaker.eu-wets-1.invalid", 443))
    assert (sample.verdict, sample.status) == (Verdict.CONNECTION, None)
    assert sample.detail.startswith("no connection to runtime.sagemaker.eu-wets-1.invalid:443: ")
    assert sample.detail.endswith("; is eu-west-1 the region, and spelt so?")


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
def test_nobody_listening_is_said_with_the_address(ask, carrier: str):
    with scripted() as target:
        pass
    sample = ask(carrier, target)
    assert sample.verdict is Verdict.CONNECTION
    assert sample.detail == f"no connection to 127.0.0.1:{target.port}: Connection refused"


# --- TLS -------------------------------------------------------------------------------------------------------------

REMEDY = {
    **dict.fromkeys(("gevent", "httpx", "sagemaker://, gevent"), "name its authority with --cacert, or say --insecure"),
    "sagemaker://, boto3": "name its authority in SSL_CERT_FILE and AWS_CA_BUNDLE",
}


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
def test_a_certificate_of_an_unknown_authority_is_refused_with_the_remedy_that_reaches_the_transport(
    ask,
    carrier: str,
    by_address: ssl.SSLContext,  # noqa: F811
):
    with scripted([], [], context=by_address) as target:
        sample = ask(carrier, target)
    assert (sample.verdict, sample.status) == (Verdict.CONNECTION, None)
    assert f"127.0.0.1:{target.port} isn't trusted: " in sample.detail
    assert sample.detail.endswith(REMEDY[carrier])


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
def test_a_certificate_for_another_host_is_refused(
    ask,
    carrier: str,
    certificates: Certificates,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates.authority))
    with scripted([], [], context=certificates.served("DNS:elsewhere.example")) as target:
        sample = ask(carrier, target, Tls(certificates.authority))
    assert sample.verdict is Verdict.CONNECTION
    assert "isn't trusted: " in sample.detail


@pytest.mark.parametrize("carrier", AWS)
def test_a_named_authority_is_trusted(
    ask,
    carrier: str,
    certificates: Certificates,  # noqa: F811
    by_address: ssl.SSLContext,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates.authority))
    with scripted(streamed(carrier, GOOD, END), context=by_address) as target:
        assert ask(carrier, target, Tls(certificates.authority)).complete


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
def test_tls_with_a_server_that_speaks_none_is_a_connection_that_failed(ask, carrier: str):
    with scripted(["early", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ["early", b"no TLS here"]) as target:
        sample = ask(carrier, Target(target.host, target.port, tls=True))
    assert (sample.verdict, sample.status) == (Verdict.CONNECTION, None)
    assert "TLS" in sample.detail or "SSL" in sample.detail
    assert "https" in sample.detail


@pytest.mark.parametrize("carrier", [*PLAIN, *AWS])
def test_plain_http_with_a_server_that_wants_tls_is_a_failure_too(
    ask,
    carrier: str,
    by_address: ssl.SSLContext,  # noqa: F811
):
    with scripted([], [], context=by_address) as target:
        sample = ask(carrier, Target(target.host, target.port))
    assert sample.verdict in (Verdict.CONNECTION, Verdict.ERROR_IN_STREAM)
    assert sample.detail


@pytest.mark.parametrize("transport", ["boto3", "huggingface_hub"])
def test_what_is_asked_before_such_a_run_names_the_remedy_that_reaches_it(
    transport: str,
    by_address: ssl.SSLContext,  # noqa: F811
):
    from loadtest.transport.authorities import AUTHORITIES
    from loadtest.transport.base import ConnectionBroken, HttpRequest, fetch

    with (
        scripted([], [], context=by_address) as target,
        closing(controlling(transport, Tls())(target)) as connection,
        pytest.raises(ConnectionBroken) as refused,
    ):
        fetch(connection, HttpRequest("GET", "/info"))
    assert str(refused.value).endswith(f"name its authority in {AUTHORITIES[transport]}")


def test_an_error_that_led_to_itself_is_told_once():
    error = ConnectionBroken("once")
    error.__cause__ = error
    assert list(causes(error)) == [error]


def test_a_library_run_says_that_nobody_listens_and_keeps_the_cause(unused_port: int):
    target = Target("127.0.0.1", unused_port)
    with closing(controlling("boto3", Tls())(target)) as connection, pytest.raises(ConnectionBroken) as raised:
        connection.ready(5)
    assert raised.value.__cause__ is not raised.value
    assert any(isinstance(each, ConnectionRefusedError) for each in causes(raised.value))


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
