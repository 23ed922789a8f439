"""A real Prometheus scrapes a real server and a run against it, and what it says afterwards is what was sent.

Method: one slot and two texts at most, so that what is served, refused and given up is known; token counts from the
replies and from /tokenize; then sums, counts and TGI's own queries over Prometheus' HTTP API. Of the run: its figures,
once more with pandas (tests/recomputed.py), from samples.jsonl, beside PromQL's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from loadtest.served import free_port
from tests.e2e.conftest import ROOT
from tests.e2e.scraping import prometheus, until
from tests.recomputed import agree, agree_with_prometheus
from tests.server.processes import process, wait_until_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"),
]
EVERY = "200ms"
CONFIG = """
global: {{scrape_interval: {every}, scrape_timeout: {every}}}
scrape_configs:
  - job_name: tokenclock
    static_configs: [{{targets: ["{target}"], labels: {{container: served}}}}]
"""
PROMPT = "the quick brown fox"
LONG = 1500  # tokens of the text that others wait behind
#: Histograms of TGI's dashboard, and what its queries say beside the container.
PANELS = {
    "tgi_request_duration": "",
    "tgi_request_queue_duration": "",
    "tgi_request_mean_time_per_token_duration": "",
    "tgi_request_generated_tokens": "",
    "tgi_request_input_length": "",
    "tgi_batch_inference_duration": 'method="prefill",',
    "tgi_batch_forward_duration": 'method="decode",',
    "tgi_batch_decode_duration": 'method="decode",',
    "tgi_batch_filter_duration": 'method="decode",',
}


@pytest.mark.timeout(240)
def test_what_prometheus_scraped_is_what_was_sent(tmp_path: Path):
    options = ["--served-model-name", "demo", "--slots", "1", "--threads", "1"]
    with (
        process(*options, "--max-concurrent-requests", "2") as (_, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        wait_until_ready(client)
        config = CONFIG.format(every=EVERY, target=url.removeprefix("http://"))
        (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
        with prometheus(tmp_path) as ask:
            until(lambda: ask("tgi_request_count") != {}, "it never scraped")

            def generate(new_tokens: int, prompt: str = PROMPT) -> httpx.Response:
                parameters = {"max_new_tokens": new_tokens, "ignore_eos": True}
                return client.post("/generate", json={"inputs": prompt, "parameters": parameters})

            began = time.monotonic()
            for new_tokens in (1, 2, 3, 5, 8):
                assert generate(new_tokens).headers["x-generated-tokens"] == str(new_tokens)
            chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "ignore_eos": True}
            chat_tokens = client.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"]
            assert generate(1, prompt="").status_code == 422

            # One text decodes, one waits and is given up, a third one is refused.
            body = {"inputs": PROMPT, "parameters": {"max_new_tokens": LONG, "ignore_eos": True}}
            with client.stream("POST", "/generate_stream", json=body) as running:
                events = running.iter_lines()
                next(events)
                with httpx.Client(base_url=url) as leaver, leaver.stream("POST", "/generate_stream", json=body):
                    until(lambda: "\ntgi_queue_size 1.0\n" in client.get("/metrics").text, "nobody waited")
                    assert generate(1).status_code == 429
                until(lambda: 'err="dropped"} 1.0' in client.get("/metrics").text, "it was not given up")
                assert sum(line.startswith("data:") for line in events) == LONG - 1
            took_s = time.monotonic() - began

            ended = time.time()
            until(lambda: ask("timestamp(tgi_request_count)").popitem()[1] > ended, "it scraped no more")
            each = len(client.post("/tokenize", json={"inputs": PROMPT}).json())
            prompt_tokens = 6 * each + chat_tokens
            new_tokens = 1 + 2 + 3 + 5 + 8 + 4 + LONG
            expected = {
                "sum(tgi_request_count)": 7 + 3,
                "sum(tgi_request_success)": 7,
                "sum(tgi_request_failure)": 3,
                'tgi_request_failure{err="validation"}': 1,
                'tgi_request_failure{err="overloaded"}': 1,
                'tgi_request_failure{err="dropped"}': 1,
                'sum(tokenclock_aborted_requests_total{cause="dropped"})': 1,
                "sum(tokenclock_aborted_requests_total)": 1,
                "tgi_request_generated_tokens_sum": new_tokens,
                "tokenclock_output_tokens_total": new_tokens,
                "tokenclock_input_tokens_total": prompt_tokens,
                'tgi_request_input_length_bucket{le="+Inf"}': 8,
                "tgi_request_input_length_sum": prompt_tokens + each,
                "tgi_request_max_new_tokens_sum": new_tokens + LONG,
                "tgi_request_duration_count": 7,
                "tgi_request_queue_duration_count": 7,
                "sum(gen_ai_server_time_to_first_token_seconds_count)": 7,
                'gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat"}': 1,
                "sum(gen_ai_server_time_per_output_token_seconds_count)": 6,
                "sum(gen_ai_server_request_duration_seconds_count)": 8,
                'sum(gen_ai_server_request_duration_seconds_count{error_type="dropped"})': 1,
                "tokenclock_inter_token_latency_seconds_count": new_tokens - 7,
                'tgi_batch_inference_success{method="prefill"}': 7,
                'tgi_batch_inference_success{method="decode"}': new_tokens - 7,
                'tokenclock_step_duration_seconds_count{step="decode"}': new_tokens - 7,
                "tokenclock_decode_batch_size_sum": new_tokens - 7,
                "sum(tgi_batch_inference_failure)": 0,
                "tgi_queue_size": 0,
                "tgi_batch_current_size": 0,
                "tgi_batch_current_max_tokens": 0,
                "tokenclock_slots_in_use": 0,
                "tokenclock_slots": 1,
                'tokenclock_build_info{backend="cpu",model="demo"}': 1,
                'up{job="tokenclock"}': 1,
            }
            said = {query: list(ask(query).values()) for query in expected}
            assert said == {query: [value] for query, value in expected.items()}

            # TGI's panels: its queries, over the last minute.
            quantile = "histogram_quantile(0.5, sum by (le) (rate({}_bucket{{{}}}[1m])))"
            for name, labels in PANELS.items():
                [value] = ask(quantile.format(name, f'{labels}container="served"')).values()
                assert 0 < value < (took_s if "duration" in name else 4096), name
            by_cause = ask('sum(increase(tgi_request_failure{container="served"}[1m])) by (err)')
            assert {cause for cause, value in by_cause.items() if value > 0} == {
                "err=dropped",
                "err=overloaded",
                "err=validation",
            }
            mean = 'sum((rate(tgi_request_generated_tokens_sum{container="served"}[1m]) / '
            mean += 'rate(tgi_request_generated_tokens_count{container="served"}[1m]))>0)'
            assert list(ask(mean).values()) == [pytest.approx(new_tokens / 7)]
            assert list(ask('count(tgi_request_count{container="served"})').values()) == [1]


@pytest.mark.timeout(120)
def test_reports_and_prometheus_say_what_pandas_makes_of_a_runs_samples(tmp_path: Path):
    """Bursts, so that some requests are refused whatever the machine: failures are counted, and timed nowhere."""
    port = free_port()
    config = CONFIG.format(every="1s", target=f"127.0.0.1:{port}")
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    load = ["-u", "8", "-t", "3s", "--rate", "30", "--arrivals", "gamma", "--burstiness", "0.1", "--seed", "1"]
    load += ["--input-tokens", "30", "--new-tokens", "20", "--no-calibrate"]
    with (
        prometheus(tmp_path) as ask,
        process("--slots", "2", "--threads", "1", "--max-concurrent-requests", "4") as (_, url),
    ):
        with httpx.Client(base_url=url, timeout=60) as client:
            wait_until_ready(client)
        until(lambda: ask("up") != {}, "it never tried to scrape")
        done = subprocess.run(
            [sys.executable, "-m", "loadtest", "run", "--url", url, *load, "--results", tmp_path / "results"],
            env=os.environ | {"TOKENCLOCK_METRICS_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=ROOT,
        )
        (folder,) = (tmp_path / "results").iterdir()
        assert agree(folder) > 50
        (complete,), (refused,) = (
            ask(f'last_over_time(tokenclock_requests_total{{verdict="{verdict}"}}[5m])').values() or (0,)
            for verdict in ("complete", "overloaded")
        )
        assert complete > 10, done.stderr
        assert refused > 5, done.stderr
        assert agree_with_prometheus(folder, ask) > 25
