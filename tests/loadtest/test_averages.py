"""The server's averages are Δsum / Δcount of what its page said before and after, and say what speaks against them.

Method: a real HTTP server, whose pages prometheus_client writes (vLLM's and SGLang's do it so) or are typed out as TGI
writes them, is read by a `Scrape` over a real connection. Averages agree to 1e-9 s.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

import loadtest
from loadtest.__main__ import parser
from loadtest.arguments import Usage
from loadtest.endpoints.base import EndpointError
from loadtest.plan import Cell
from loadtest.report import write
from loadtest.sample import Sample, write_samples
from loadtest.split import scrape
from loadtest.split.arguments import page
from loadtest.split.averages import averages
from loadtest.split.scrape import NoScrape, Page, Scrape, scraping
from loadtest.transport.base import Target
from loadtest.transport.choice import controlling
from loadtest.transport.tls import Tls
from tests.loadtest.test_split_by_request import RUN, sample, tells

CELL = Cell(None, None, 4, 100, 1)
KEY = {"config": None, "concurrency": 4, "input_tokens": 100, "new_tokens": 1}
STEADY = ["steady"]
CONTROL = controlling("gevent", Tls())


class Vllm:
    """vLLM's three histograms of one or two engines. Source: vllm-project/vllm, vllm/v1/metrics/loggers.py."""

    def __init__(self, started_s: float | None = 1e9) -> None:
        self.registry = CollectorRegistry()
        names = ("time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds")
        self.histograms = [Histogram(f"vllm:{n}", n, ["model_name", "engine"], registry=self.registry) for n in names]
        if started_s is not None:
            Gauge("process_start_time_seconds", "Start", registry=self.registry).set(started_s)

    def served(self, ttft_s: float, queue_s: float, prefill_s: float, engine: int = 0) -> Vllm:
        for histogram, value in zip(self.histograms, (ttft_s, queue_s, prefill_s), strict=True):
            histogram.labels('a "7b"\\', str(engine)).observe(value)
        return self

    def page(self) -> bytes:
        return generate_latest(self.registry)


TGI = """# TYPE tgi_request_queue_duration histogram
tgi_request_queue_duration_bucket{le="0.1"} 2
tgi_request_queue_duration_bucket{le="+Inf"} 3
tgi_request_queue_duration_sum 0.6
tgi_request_queue_duration_count 3

# TYPE tgi_batch_inference_duration histogram
tgi_batch_inference_duration_sum{method="prefill"} 0.08
tgi_batch_inference_duration_count{method="prefill"} 2
tgi_batch_inference_duration_sum{method="decode"} 9
tgi_batch_inference_duration_count{method="decode"} 900
"""


@dataclass
class Server:
    """What it answers next, and what it was asked."""

    url: str
    target: Target
    page: bytes = b""
    status: int = 200
    hold: threading.Event | None = None  # answers once it is set
    asked: list[dict[str, str]] = field(default_factory=list)

    def scrape(self, named: bool = False) -> Scrape:
        return Scrape(CONTROL, Target(self.target.host, self.target.port, "/metrics"), named)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            if state.hold is not None:
                state.hold.wait(30)
            self.send_response(state.status)
            self.send_header("content-length", str(len(state.page)))
            self.end_headers()
            try:
                self.wfile.write(state.page)
            except ConnectionError:  # the client had enough
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host, port = "127.0.0.1", http.server_address[1]
    state = Server(f"http://{host}:{port}", Target(host, port))
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "SETTLE_S", 0)


def pair(server: Server, before: bytes, after: bytes) -> dict[str, Any] | None:
    server.page = before
    read = server.scrape()
    read.before()
    server.page = after
    return read.after(CELL, STEADY)


def of(server: Server, before: bytes, after: bytes, ours: list[Sample]) -> dict[str, Any]:
    found = pair(server, before, after)
    assert found is not None
    said = averages(KEY, ours, [found])
    assert said is not None
    return said


def ours(n: int, ttft_ms: float = 100.0) -> list[Sample]:
    return [sample(i, ttft_ms, None) for i in range(n)]


def test_averages_are_of_what_was_counted_between_the_two_reads(server: Server):
    vllm = Vllm().served(9.0, 8.0, 1.0)  # before the cell
    before = vllm.page()
    for ttft_s, queue_s in ((0.05, 0.01), (0.09, 0.03)):
        vllm.served(ttft_s, queue_s, 0.04)
    said = of(server, before, vllm.page(), ours(2))
    assert {name: each["mean_s"] for name, each in said["of"].items()} == pytest.approx(
        {"ttft_s": 0.07, "queue_s": 0.02, "prefill_s": 0.04}
    )
    assert (said["counted"], said["sent"], said["complete"]) == (2, 2, 2)
    assert said["client_ttft_s"] == pytest.approx(0.1)
    assert said["rest_s"] == pytest.approx(0.03)
    assert (said["reason"], said["doubts"]) == (None, [])


def test_a_run_that_went_on_compares_the_requests_of_the_process_that_read(server: Server):
    vllm = Vllm()
    found = pair(server, vllm.page(), vllm.served(0.05, 0.01, 0.02).served(0.05, 0.01, 0.02).page())
    assert found is not None
    samples = [replace(each, process=min(number, 1)) for number, each in enumerate(ours(3))]
    said = averages(KEY, samples, [found | {"process": 1}])
    assert said is not None
    assert (said["sent"], said["counted"], said["doubts"]) == (2, 2, [])


def test_others_requests_are_told_and_leave_no_difference_to_believe_in(server: Server):
    vllm = Vllm()
    before = vllm.page()
    for engine in (0, 1, 1):
        vllm.served(0.05, 0.01, 0.02, engine)
    said = of(server, before, vllm.page(), ours(2))
    assert said["of"]["queue_s"]["mean_s"] == pytest.approx(0.01)
    assert said["rest_s"] is None
    assert said["doubts"] == ["the server counted 3 requests, and we sent 2: others' are among them"]


def test_fewer_requests_than_ours_are_told(server: Server):
    vllm = Vllm()
    said = of(server, vllm.page(), vllm.served(0.05, 0.01, 0.02).page(), ours(2))
    assert said["doubts"] == [
        "the server counted 1 of our 2 complete requests: one of several replicas answers, or it counts late"
    ]


def test_a_page_that_counts_nothing_meanwhile_is_anothers(server: Server):
    page = Vllm().served(0.05, 0.01, 0.02).page()
    said = of(server, page, page, ours(2))
    assert (
        said["reason"]
        == "the server counted no request meanwhile: these are another server's metrics, or they come late"
    )
    assert said["rest_s"] is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([0, 0], [0], id="fewer than before"),
        pytest.param([0, 1, 1], [0, 0, 0, 0, 1], id="one engine of two"),
        pytest.param([0, 1], [0, 0, 0], id="one engine gone"),
    ],
)
def test_counters_that_went_back_give_no_figure(server: Server, before: list[int], after: list[int]):
    pages = []
    for engines in (before, after):
        vllm = Vllm(started_s=None)
        for engine in engines:
            vllm.served(0.05, 0.01, 0.02, engine)
        pages.append(vllm.page())
    said = of(server, *pages, ours(2))
    assert said["reason"] == "the server was restarted meanwhile: its counters began anew, so there is no average"
    assert said["of"] == {}


def test_a_restart_is_seen_by_its_time_where_all_counters_are_higher_again(server: Server):
    before, after = Vllm(started_s=1e9), Vllm(started_s=1e9 + 60)
    for _ in range(3):
        after.served(0.05, 0.01, 0.02)
    said = of(server, before.served(0.05, 0.01, 0.02).page(), after.page(), ours(3))
    assert "restarted" in said["reason"]


def test_series_that_come_with_their_first_request_began_at_nothing(server: Server):
    """TGI's page is empty until then; its prefill is counted by step, and decoding is none of it."""
    said = of(server, b"", TGI.encode(), ours(3))
    assert said["of"]["queue_s"] == {
        "mean_s": pytest.approx(0.2),
        "n": 3,
        "counts": "request",
        "series": "tgi_request_queue_duration",
    }
    assert said["of"]["prefill_s"] == {
        "mean_s": pytest.approx(0.04),
        "n": 2,
        "counts": "step",
        "series": "tgi_batch_inference_duration",
    }
    assert (said["counted"], said["rest_s"]) == (3, None)


def test_sglangs_prefill_is_one_stage_of_several(server: Server):
    registry = CollectorRegistry()
    stages = Histogram("sglang:per_stage_req_latency_seconds", "", ["stage", "tp_rank"], registry=registry)
    for stage, value in (("prefill_forward", 0.03), ("request_process", 7.0), ("chunked_prefill", 5.0)):
        stages.labels(stage, "0").observe(value)
    said = of(server, b"", generate_latest(registry), ours(1))
    assert said["of"]["prefill_s"]["mean_s"] == pytest.approx(0.03)
    assert said["doubts"] == ["the server doesn't say of how many requests: others' may be among them"]


# Pages that can't be read


@pytest.mark.parametrize(
    ("status", "page"),
    [
        (404, b"not found"),
        (401, b""),
        (302, b""),
        (200, b"<!doctype html><html>"),
        (200, b"llamacpp:prompt_seconds_total 4\n"),
    ],
)
def test_an_endpoint_without_metrics_that_are_known_is_told_of_by_nobody(server: Server, status: int, page: bytes):
    server.status = status
    assert pair(server, page, page) is None


GARBAGE = [
    (b"vllm:time_to_first_token_seconds_sum NaN\n", "vllm:time_to_first_token_seconds_sum is nan"),
    (b"vllm:time_to_first_token_seconds_sum 1e999\n", "vllm:time_to_first_token_seconds_sum is inf"),
    (b"vllm:time_to_first_token_seconds_sum{a=\xff 1\n", "it is no Prometheus text"),
    (b"vllm:time_to_first_token_seconds_sum\n", "it is no Prometheus text"),
    (
        b'tgi_request_queue_duration_sum{i="x"} 1\n' * 3000,
        "it has 3,000 lines of the histograms that are read; 2,048 are",
    ),
    (b"#" * (9 * 2**20), "it is longer than 8,388,608 bytes"),
]


@pytest.mark.parametrize(("page", "why"), GARBAGE, ids=[why[-20:] for _, why in GARBAGE])
def test_garbage_after_a_cell_is_a_reason_and_no_figure(server: Server, page: bytes, why: str):
    found = pair(server, Vllm().page(), page)
    assert found is not None
    assert why in found["reason"]
    said = averages(KEY, ours(2), [found])
    assert said is not None
    assert (said["reason"], said["of"]) == (found["reason"], {})


@pytest.mark.parametrize(
    ("status", "page", "why"), [(404, b"", "it answers 404"), *((200, page, why) for page, why in GARBAGE[:4])]
)
def test_a_page_that_the_user_names_must_be_one(server: Server, status: int, page: bytes, why: str):
    server.status, server.page = status, page
    with pytest.raises(EndpointError) as refused:
        server.scrape(named=True)
    assert str(refused.value).startswith(f"--metrics-url {server.url}/metrics: {why}")
    assert str(refused.value).endswith("; name a page of Prometheus text, or leave it out")


def test_a_page_that_is_slow_is_given_up_and_not_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scrape, "LONGEST_S", 0.3)
    server.page = Vllm().page()
    read = server.scrape()
    read.before()
    server.hold = threading.Event()
    found = read.after(CELL, STEADY)
    assert found is not None
    assert "it took longer than" in found["reason"]
    asked = len(server.asked)
    read.before()
    assert read.after(CELL, STEADY) is None
    assert len(server.asked) == asked == 3
    server.hold.set()


def test_a_server_that_is_gone_is_a_reason(server: Server, raw_server: Callable[..., Any]):
    page = Vllm().page()
    whole = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(page) + page
    with raw_server(whole, whole, whole[:-200]) as target:
        read = Scrape(CONTROL, Target(target.host, target.port, "/metrics"))
        read.before()
        found = read.after(CELL, STEADY)
    assert found is not None
    assert "it doesn't answer" in found["reason"]
    assert found["before"] is not None
    assert found["after"] is None


# Whom is asked


def test_the_endpoints_own_page_is_below_its_base_and_gets_its_key(server: Server):
    endpoint = Target(server.target.host, server.target.port, "/team/model", headers=(("authorization", "Bearer k"),))
    scraping(CONTROL, endpoint, Page())
    scraping(CONTROL, endpoint, Page(f"{server.url}/internal/metrics"))
    scraping(CONTROL, endpoint, Page(server.url))
    elsewhere = Target("localhost", 1, headers=(("authorization", "Bearer k"),))
    scraping(CONTROL, elsewhere, Page(server.url))
    assert [(each["path"], each.get("authorization")) for each in server.asked] == [
        ("/team/model/metrics", "Bearer k"),
        ("/internal/metrics", "Bearer k"),
        ("/metrics", "Bearer k"),
        ("/metrics", None),
    ]
    assert isinstance(scraping(CONTROL, endpoint, None), NoScrape)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--url", "http://h"], Page()),
        (["--serve", "x {port}"], Page()),
        (["--url", "http://h", "--metrics-url", "http://h:9000/metrics"], Page("http://h:9000/metrics")),
        (["--url", "http://h", "--no-server-metrics"], None),
        (["--url", "sagemaker://name"], None),
        (["--url", "sagemaker://name", "--metrics-url", "http://h:9000"], Page("http://h:9000")),
    ],
)
def test_the_endpoints_own_page_is_read_unless_told_otherwise(words: list[str], read: Page | None):
    assert page(parser().parse_args(["run", *words])) == read


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--metrics-url", "http://h", "--no-server-metrics"], "--metrics-url and --no-server-metrics contradict each"),
        (
            ["--metrics-url", "ftp://h/metrics"],
            "--metrics-url: ftp://h/metrics asks for ftp: only http:// and https://",
        ),
        (["--metrics-url", "http://u:p@h/m"], "--metrics-url: http://…@h/m holds a name or password"),
    ],
)
def test_words_about_metrics_that_fit_together_with_nothing_are_refused(words: list[str], sentence: str):
    with pytest.raises(Usage) as refused:
        page(parser().parse_args(["run", "--url", "http://h", *words]))
    assert sentence in str(refused.value)


# What a reader sees


def test_the_report_calls_them_averages_of_everybodys_requests(server: Server, tmp_path: Path):
    vllm = Vllm()
    before = vllm.page()
    for _ in range(2):
        vllm.served(0.07, 0.02, 0.04)
    found = pair(server, before, vllm.page())
    run = {**RUN, "server_metrics": [found], "endpoints": []}
    schema = json.loads((Path(loadtest.__file__).parent / "run.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema["properties"]["server_metrics"]).validate([found])

    def reported(samples: list[Sample]) -> str:
        write_samples(tmp_path / "samples.jsonl", samples)
        (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
        return write(tmp_path).read_text(encoding="utf-8")

    report = reported(ours(2))
    section = report.split("## The server's averages\n")[1].split("\n## ")[0]
    assert f"{server.url}/metrics was read before and after each cell" in section
    assert "**all requests that the server saw meanwhile, others' included**" in section
    assert "| 4 users 100→1 | 2 of 2 | 2 | 100 ms | 70.0 ms | 30.0 ms | 20.0 ms | 40.0 ms |" in section
    assert "others' are among them" in reported(ours(1))
    assert "The server's averages" not in reported([sample(i, 100.0, tells(1, 2)) for i in range(2)])
