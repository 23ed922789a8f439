"""Where the time to first token went: a real queue is seen by request, and a page of vLLM's text as averages.

Method: real runs. One against this project's server with one slot and four users: three of four wait, so queueing is
the greater part; parts are recomputed here from samples.jsonl. The others against a server that tells nothing of its
requests, with a page beside it in vLLM's names whose counts and times are those that the server itself has recorded.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tests.e2e.conftest import tokenclock
from tests.e2e.test_run import free_run, only_folder, samples_of, schedule_server, schema

pytestmark = pytest.mark.e2e


def finished(done: subprocess.CompletedProcess[str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """summary.json's only cell, and run.json, which conforms to its schema."""
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    run = json.loads((folder / "run.json").read_text())
    schema("run.schema.json").validate(run)
    (cell,) = json.loads((folder / "summary.json").read_text())["cells"]
    return cell, run


def test_a_queue_of_a_real_server_is_the_greater_part_of_the_bar(tmp_path: Path):
    server = f"{shlex.quote(sys.executable)} -m server serve --slots 1 --port {{port}} --threads 1"
    load = ("-u", "4", "-t", "2s", "--input-tokens", "32", "--new-tokens", "16")
    done = tokenclock("run", "--serve", server, *load, "--results", str(tmp_path))
    folder = only_folder(tmp_path)
    cell, _ = finished(done, folder)
    split, said = cell["split"], cell["averages"]
    every = samples_of(folder)
    counted = [s for s in every if s["phase"] == "steady"]
    assert (split["of"], split["n"]) == ("ttft_s", len(counted))
    queued = [s["server"]["queue_s"] for s in counted]
    ttfts = [(s["events"][0][0] - s["started_ns"]) / 1e9 for s in counted]
    assert split["mean_s"] == pytest.approx(sum(ttfts) / len(ttfts))
    assert split["parts"]["queue_s"] == pytest.approx(sum(queued) / len(queued))
    assert sum(split["parts"].values()) == pytest.approx(split["mean_s"])
    assert split["parts"]["queue_s"] > split["mean_s"] / 2
    assert "![What the TTFT consists of](split.png)" in (folder / "report.md").read_text()
    assert (folder / "split.png").stat().st_size > 10_000
    # The same server's page, of all phases: it counted each of our requests once, and nobody else's.
    assert said["reason"] is None
    assert said["counted"] == said["sent"] == said["complete"] == len(every)
    assert 0 < said["of"]["queue_s"]["mean_s"] < said["of"]["ttft_s"]["mean_s"] < said["client_ttft_s"]


@contextmanager
def vllms_page(of: str, hold: threading.Event | None = None) -> Iterator[tuple[str, list[str]]]:
    """A page in vLLM's names of what a schedule server has recorded, and the paths it was asked for. With `hold` only
    the first two are answered before it is set.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if hold is not None and len(asked) > 2:
                hold.wait(60)
                return
            registry = CollectorRegistry()
            names = ("time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds")
            ttft, queue, prefill = (Histogram(f"vllm:{n}", n, ["model_name"], registry=registry) for n in names)
            for record in httpx.get(f"{of}/truth").json():
                first_s = (record["sends"][0][0] - record["received_ns"]) / 1e9
                for histogram, value in ((ttft, first_s), (queue, 0.25 * first_s), (prefill, 0.75 * first_s)):
                    histogram.labels("m").observe(value)
            page = generate_latest(registry)
            self.send_response(200)
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics", asked
        server.shutdown()


def test_averages_of_vllms_page_agree_with_what_the_server_recorded(tmp_path: Path):
    with schedule_server(first_s=0.03) as url, vllms_page(url) as (page, asked):
        done = free_run(url, tmp_path, "3", "2s", "8", "4", "--metrics-url", page)
        records = httpx.get(f"{url}/truth").json()
    folder = only_folder(tmp_path)
    cell, run = finished(done, folder)
    said, every = cell["averages"], samples_of(folder)
    first_s = [(record["sends"][0][0] - record["received_ns"]) / 1e9 for record in records]
    assert len(asked) == 3, "once to see that it is there, once before, once after"
    assert said["counted"] == said["sent"] == len(every) == len(records) > 10
    assert said["of"]["ttft_s"]["mean_s"] == pytest.approx(sum(first_s) / len(first_s))
    assert said["of"]["queue_s"]["mean_s"] == pytest.approx(0.25 * said["of"]["ttft_s"]["mean_s"])
    assert said["rest_s"] == pytest.approx(said["client_ttft_s"] - said["of"]["ttft_s"]["mean_s"])
    assert said["rest_s"] > 0
    assert cell["split"] is None
    assert run["options"]["metrics_url"] == page
    assert "## The server's averages" in (folder / "report.md").read_text()


def test_a_page_that_hangs_delays_no_request_and_not_the_end_of_the_run(tmp_path: Path):
    hold = threading.Event()
    with schedule_server() as url, vllms_page(url, hold) as (page, asked):
        done = free_run(url, tmp_path, "3", "1s", "8", "4", "--metrics-url", page)
        assert not hold.is_set(), "the run has ended, and the page still hangs"
        hold.set()
    folder = only_folder(tmp_path)
    cell, run = finished(done, folder)
    (read,) = run["server_metrics"]
    assert "it took longer than" in read["reason"]
    assert cell["averages"]["reason"] == read["reason"]
    assert len(asked) == 3
    assert {sample["verdict"] for sample in samples_of(folder)} == {"complete"}


def test_an_endpoint_without_a_page_is_measured_as_before(tmp_path: Path):
    with schedule_server() as url:
        done = free_run(url, tmp_path, "2", "1s", "8", "4")
        refused = free_run(url, tmp_path, "2", "1s", "8", "4", "--metrics-url", f"{url}/metrics")
    cell, run = finished(done, only_folder(tmp_path))
    assert (cell["averages"], run["server_metrics"]) == (None, [])
    assert "metrics" not in done.stderr
    assert refused.returncode == 2
    assert f"--metrics-url {url}/metrics: it answers 404; name a page of Prometheus text" in refused.stderr
