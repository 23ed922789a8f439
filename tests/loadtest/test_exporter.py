"""Metrics are served to whoever asks rightly, and what goes wrong there is a sentence that ends no test.

Method: real sockets; the asking is done by a thread, since the server is a greenlet of this one.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import httpx
import pytest
from gevent.event import Event
from prometheus_client.parser import text_string_to_metric_families

from loadtest.breath import breathe
from loadtest.live import exporter
from loadtest.live.counting import Live
from loadtest.live.exporter import HOST, PORT, Exporter, NoMetrics, exported
from loadtest.live.processes import Alone
from tests.loadtest.test_live import drawn, seen_live


def aside(call: Any, *arguments: Any, **named: Any) -> Any:
    return gevent.get_hub().threadpool.apply(call, arguments, named)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Exporter]:
    made = Exporter(Alone(seen_live(drawn(1, 50))), tmp_path, {PORT: "0"})
    yield made
    made.close()


def test_prometheus_own_parser_reads_what_is_served(serving: Exporter):
    reply = aside(httpx.get, serving.url)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = {
        each.name + str(sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(reply.text)
        for each in family.samples
    }
    assert values["tokenclock_ttft_seconds_count[]"] == 50
    assert values["tokenclock_tokens_total[('kind', 'output')]"] == 600
    assert values["tokenclock_ttft_seconds_bucket[('le', '+Inf')]"] == 50
    assert serving.url.startswith("http://127.0.0.1:")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_promtool_finds_nothing_to_say(serving: Exporter):
    page = aside(httpx.get, serving.url).content
    judged = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, b"", b"")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)])
def test_what_is_asked_wrongly_is_refused(serving: Exporter, method: str, path: str, status: int):
    url = serving.url.removesuffix("/metrics") + path
    assert aside(httpx.request, method, url).status_code == status
    head = aside(httpx.head, serving.url)
    assert (head.status_code, head.content) == (200, b"")


def test_who_stalls_is_cut_off_and_keeps_nobody_from_asking(serving: Exporter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporter, "PATIENCE_S", 0.3)
    address = ("127.0.0.1", int(re.findall(r":(\d+)/", serving.url)[0]))
    silent = [socket.create_connection(address) for _ in range(exporter.CONNECTIONS + 2)]
    silent[0].sendall(b"GET /met")
    silent[1].sendall(b"\x16\x03garbage\r\n\r\n")
    assert aside(httpx.get, serving.url, timeout=30).status_code == 200
    for each in silent:
        each.settimeout(30)
        assert aside(each.recv, 4096)[:12] in (b"", b"HTTP/1.1 400")
        each.close()


def test_a_scrape_that_runs_when_all_is_over_may_finish(serving: Exporter, monkeypatch: pytest.MonkeyPatch):
    began = Event()

    def slow() -> None:
        began.set()
        gevent.sleep(0.01)
        breathe()

    monkeypatch.setattr(exporter, "breathe", slow)
    reply = gevent.spawn(aside, httpx.get, serving.url)
    assert began.wait(30)
    serving.close()
    assert reply.get(timeout=30).status_code == 200


def test_the_end_waits_for_a_prometheus_that_scraped_and_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(PORT, "0")
    live, sentences = Live(), list[str]()
    ask = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}

    def heard_last(headers: dict[str, str]) -> str:
        """What whoever asks with these headers hears at the end; empty where nobody waits for that."""

        def scrape() -> str:
            return str(aside(httpx.get, url, headers=headers).text)

        def scrape_at_the_end() -> str:
            while "once more" not in sentences[-1]:
                gevent.sleep(0.001)
            return scrape()

        with exported(Alone(live), tmp_path, sentences.append):
            url = sentences[-1].removeprefix("metrics: ")
            scrape()
            live.kept(next(each for each in drawn(2, 50) if each.complete))
            last = gevent.spawn(scrape_at_the_end)
        waited = "once more" in sentences[-1]
        heard = last.get(timeout=30) if waited else ""
        last.kill()
        return heard

    assert heard_last({}) == ""
    assert 'tokenclock_requests_total{verdict="complete"} 2.0' in heard_last(ask)


def test_the_wait_for_a_prometheus_that_never_comes_back_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(PORT, "0")
    monkeypatch.setattr(exporter, "LAST_S", 0.5)
    live, sentences = Live(), list[str]()
    with gevent.Timeout(30), exported(Alone(live), tmp_path, sentences.append):
        url = sentences[-1].removeprefix("metrics: ")
        aside(httpx.get, url, headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
        live.kept(next(each for each in drawn(2, 50) if each.complete))
    assert sentences[-1] == "metrics: Prometheus has heard of 0 of 1 requests: it did not scrape again"


def said(tmp_path: Path) -> list[str]:
    sentences: list[str] = []
    with exported(Alone(), tmp_path, sentences.append):
        pass
    return sentences


def test_a_port_in_use_is_a_sentence(serving: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    port = re.findall(r":(\d+)/", serving.url)[0]
    monkeypatch.setenv(PORT, port)
    assert said(tmp_path) == [
        f"no metrics: 127.0.0.1:{port} can't be listened on (Address already in use); set {PORT} to another port or to "
        f"off, or {HOST} to an address of this machine"
    ]


@pytest.mark.parametrize("port", ["65536", "-1", "http", "９"])
def test_what_is_no_port_is_named_with_the_remedy(port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PORT, port)
    assert said(tmp_path) == [
        f"no metrics: {PORT} is {port!r}, which is no port: set it to a number up to 65535, or to off"
    ]


def test_metrics_can_be_turned_off_and_bound_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PORT, "off")
    assert said(tmp_path) == []
    monkeypatch.setenv(PORT, "0")
    monkeypatch.setenv(HOST, "::1")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert re.fullmatch(r"metrics: http://\[::1\]:\d+/metrics", said(tmp_path)[0])


def test_an_address_of_another_machine_is_a_sentence(tmp_path: Path):
    with pytest.raises(NoMetrics, match=r"192\.0\.2\.1:0 can't be listened on \(Cannot assign requested address\)"):
        Exporter(Alone(), tmp_path, {PORT: "0", HOST: "192.0.2.1"})
