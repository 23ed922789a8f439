"""A run can be watched while it goes on: by Prometheus, in Grafana's panels, and in the tab "LLM" of locust's page.

Method: the real locust command against the real server; the files of docker/ in a real Prometheus; what is shown is
held against samples.jsonl, where there is one, and against locust's own rows. Headless Chromium reads the page.
"""

from __future__ import annotations

import csv
import html
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml

from loadtest.sample import read_samples
from loadtest.served import free_port
from loadtest.stats import itl_s, latency_s, tpot_s, ttft_s
from loadtest.verdict import Verdict
from tests.e2e.conftest import BIN, ROOT
from tests.e2e.scraping import prometheus, until

pytestmark = pytest.mark.e2e

PROMETHEUS, DASHBOARDS = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana" / "dashboards"
FINE = 0.0006  # of a quantile: see loadtest/live/histogram.py
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Locust:
    """The command, its page and its metrics."""

    def __init__(self, url: str, pid: int, page: str, metrics: str) -> None:
        self._url, self.pid, self.page, self.metrics = url, pid, page, metrics

    def start(self, users: int) -> None:
        asked = {"user_count": users, "spawn_rate": users, "host": self._url}
        assert httpx.post(f"{self.page}/swarm", data=asked).json()["success"]

    def stop(self) -> None:
        assert httpx.post(f"{self.page}/stop", timeout=60).json()["success"]

    def table(self) -> dict[str, dict[str, str]]:
        (ours,) = httpx.get(f"{self.page}/stats/requests").json()["extended_stats"]
        assert ours["key"] == "llm"
        return {row["what"]: row for row in ours["data"]}

    def figures(self) -> dict[str, dict[str, float]]:
        rows = csv.DictReader(httpx.get(f"{self.page}/stats/llm/csv").text.splitlines())
        return {row["what"]: {name: float(row[name]) for name in list(row)[1:] if row[name]} for row in rows}

    def scraped(self) -> dict[str, float]:
        return scraped(self.metrics)

    def own_rows(self) -> dict[str, dict[str, Any]]:
        time.sleep(2.1)  # locust keeps its answer for two seconds
        rows = httpx.get(f"{self.page}/stats/requests").json()["stats"]
        return {row["method"] or row["name"]: row for row in rows}


def scraped(address: str) -> dict[str, float]:
    """Every line of /metrics, by name and labels."""
    lines = httpx.get(f"http://{address}/metrics").raise_for_status().text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


@contextmanager
def locust(url: str, results: Path, *options: str) -> Iterator[Locust]:
    page, metrics = free_port(), free_port()
    command = [BIN / "locust", "--host", url, "--web-port", str(page), "--results-dir", results, *options]
    log = (results.parent / f"{results.name}.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        [*command, "--input-tokens", "30", "--new-tokens", "20"],
        stderr=log,
        cwd=ROOT,
        env=os.environ | {"TOKENCLOCK_METRICS_PORT": str(metrics)},
    )
    made = Locust(url, process.pid, f"http://127.0.0.1:{page}", f"127.0.0.1:{metrics}")

    def up() -> bool:
        try:
            return httpx.get(made.page).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(up, "locust's page never came")
        yield made
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def panels() -> Iterator[tuple[str, str]]:
    """Title and PromQL of everything that a dashboard draws."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}: {target['refId']}", target["expr"]


def configured(folder: Path, targets: Mapping[str, str]) -> None:
    """docker/prometheus as it is, but for addresses, and for how long a test may last."""
    for name in ("recording.yml", "alerts.yml"):
        shutil.copy(PROMETHEUS / name, folder)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")


def calibrated(results: Path) -> None:
    """A run that was calibrated on this machine, as far as the exporter reads it."""
    (results / "20260101-000000-calibrated").mkdir(parents=True)
    spread = {"p50": 1e-5, "p99": 4e-5, "max": 2e-4}
    load = {"shape": {"concurrency": 2}, "errors": dict.fromkeys(("ttft_s", "itl_s", "latency_s"), spread)}
    run = {"processes": [{"host": socket.gethostname()}], "calibration": {"loads": [load]}}
    (results / "20260101-000000-calibrated" / "run.json").write_text(json.dumps(run), encoding="utf-8")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus")
@pytest.mark.timeout(240)
def test_every_panel_shows_data_and_the_sums_are_those_of_the_samples(server: str, tmp_path: Path):
    results, folder = tmp_path / "results", tmp_path / "prometheus"
    folder.mkdir()
    calibrated(results)
    with locust(server, results) as running:
        configured(folder, {"server": server.removeprefix("http://"), "loadtest": running.metrics})
        with prometheus(folder) as ask:

            def last(series: str, by: str = "") -> list[float]:
                """What was scraped last, though a scrape may fail on a busy machine."""
                return list(ask(f"sum by ({by}) (last_over_time({series}[1m]))").values())

            until(lambda: last("tokenclock_users") != [], "it never scraped")
            assert last("tokenclock_requests_total", "verdict") == [0.0] * len(Verdict), "all are there from the start"
            running.start(2)
            queries = dict(panels())
            assert len(queries) > 40

            def empty() -> list[str]:
                for title, query in list(queries.items()):
                    values = ask(query).values()
                    if values and all(map(math.isfinite, values)):
                        del queries[title]
                return list(queries)

            until(lambda: not empty(), empty)
            assert last("tokenclock_users") == [2]
            assert last("tokenclock:ttft_client_over_server:ratio{quantile='0.5'}")[0] > 0
            running.stop()
            until(lambda: list(results.glob("*-users/report.md")) != [], "no report")
            ended = time.time()
            until(lambda: max(ask("timestamp(tokenclock_users)").values(), default=0) > ended, "it scraped no more")
            (path,) = results.glob("*-users/samples.jsonl")
            samples = list(read_samples(path))
            complete = [each for each in samples if each.complete]
            assert len(complete) > 10
            exact = {
                "ttft": [ttft for each in samples if (ttft := ttft_s(each)) is not None],
                "itl": [gap_s for each in complete for gap_s in itl_s(each)],
                "tpot": [tpot_s(each) for each in complete],
                "e2e": [latency_s(each) for each in complete],
            }
            for name, values_s in exact.items():
                assert last(f"tokenclock_{name}_seconds_count") == [len(values_s)]
                assert last(f"tokenclock_{name}_seconds_sum") == [pytest.approx(sum(values_s))]
            for verdict, n in Counter(each.verdict for each in samples).items():
                assert last(f'tokenclock_requests_total{{verdict="{verdict}"}}') == [n]
            assert last("tokenclock_requests_total") == [len(samples)]
            tokens = sum(each.got.new_tokens for each in samples)
            assert last('tokenclock_tokens_total{kind="output"}') == [tokens]
            for name, row in running.figures().items():
                if (values_s := exact.get(name.lower())) is not None:
                    shown = {q: row[q] for q in ("p50", "p95", "p99") if q in row}
                    truth = {q: float(np.quantile(values_s, int(q[1:]) / 100)) for q in shown}
                    assert shown == pytest.approx(truth, rel=FINE), name
            assert "p50" in running.figures()["ITL"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.timeout(180)
def test_the_tab_shows_what_all_processes_saw_though_one_is_killed(server: str, tmp_path: Path):
    port = str(free_port())
    with locust(
        server, tmp_path / "r", "--processes", "2", "--master-bind-port", port, "--master-port", port
    ) as running:
        until(lambda: httpx.get(f"{running.page}/worker-count").json()["worker_count"] == 2, "where are the workers?")
        running.start(2)
        until(
            lambda: int(running.table()["requests: complete"]["count"]) > 20,
            lambda: (running.table(), (tmp_path / "r.log").read_text()),
        )
        assert {"tokenclock_users": 2.0} | running.scraped() == running.scraped()
        assert len([key for key in running.scraped() if key.startswith("tokenclock_client_cpu_seconds_total")]) == 2
        before = running.figures()
        os.kill(psutil.Process(running.pid).children()[0].pid, signal.SIGKILL)
        until(
            lambda: running.figures()["requests: complete"]["count"] > before["requests: complete"]["count"] + 20,
            "nobody went on",
        )
        running.stop()
        time.sleep(3.5)  # the last report of the other one
        own, ours, sums = running.own_rows(), running.figures(), running.scraped()
        assert own["Aggregated"]["num_requests"] == own["POST"]["num_requests"] > 40, (
            "our rows were counted as requests"
        )
        assert ours["TTFT"]["count"] - own["TTFT"]["num_requests"] in (0, 1), "one may have been killed after its first"
        for name in ("ITL", "E2E"):
            assert ours[name]["count"] == own[name]["num_requests"]
            mean_s = sums[f"tokenclock_{name.lower()}_seconds_sum"] / ours[name]["count"]
            assert mean_s == pytest.approx(own[name]["avg_response_time"] / 1e3), name
        assert ours["ITL"]["p50"] == pytest.approx(own["ITL"]["median_response_time"] / 1e3, rel=0.01)
        shown = subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}",
             "--virtual-time-budget=8000", "--dump-dom", f"{running.page}/?tab=llm"],
            capture_output=True, text=True, timeout=90, check=True,
        ).stdout  # fmt: skip
        cells = [html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", shown)]
        for what, row in running.table().items():
            at = cells.index(what)
            assert cells[at + 1] == row.get("count", ""), what
            if "p50" in row:
                assert cells[at + 3 : at + 7] == [row[name] for name in ("p50", "p95", "p99", "max")]


def test_a_run_in_two_processes_is_watched_as_one(server: str, tmp_path: Path):
    port = free_port()
    command = [sys.executable, "-m", "loadtest", "run", "--url", server, "-u", "2", "-t", "5s", "--processes", "2"]
    seen: dict[str, float] = {}
    with subprocess.Popen(
        [*command, "--input-tokens", "30", "--new-tokens", "20", "--no-calibrate", "--results", tmp_path],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TOKENCLOCK_METRICS_PORT": str(port)},
    ) as running:
        try:
            while running.poll() is None:
                with suppress(httpx.TransportError):
                    seen = scraped(f"127.0.0.1:{port}") or seen
                time.sleep(0.1)
        finally:
            running.kill()
        _, said = running.communicate()
    assert f"metrics: http://127.0.0.1:{port}/metrics" in said
    cpu = [f'tokenclock_client_cpu_seconds_total{{process="{process}"}}' for process in (0, 1)]
    assert all(seen[name] > 0 for name in cpu)
    (path,) = tmp_path.glob("*/samples.jsonl")
    samples = list(read_samples(path))
    assert 0 < seen['tokenclock_requests_total{verdict="complete"}'] <= len(samples)
