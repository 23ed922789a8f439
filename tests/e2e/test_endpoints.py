"""One server over every protocol gives the same counts, through every transport that can carry it.

Method: real processes, from the command line to the raw samples: the project's server with the demonstration model, and
the stand-in of AWS's runtime in front of its /invocations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import tokenclock
from tests.loadtest.sagemaker_fixtures import SageMaker, runtime

pytestmark = pytest.mark.e2e

INPUT, NEW = 24, 12
TYPES = ("tgi", "openai-completions", "openai-chat", "sagemaker")


@pytest.fixture(scope="module")
def aws(server: str) -> Iterator[SageMaker]:
    with runtime(server) as standing_in:
        yield standing_in


def samples(results: Path, url: str, *more: str) -> list[dict[str, Any]]:
    sizes = ("-u", "2", "-t", "1s", "--input-tokens", str(INPUT), "--new-tokens", str(NEW), "--seed", "1")
    done = tokenclock("run", "--url", url, *sizes, "--results", str(results), *more)
    assert "complete" in done.stdout, done.stderr
    (folder,) = results.iterdir()
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def agree(found: list[dict[str, Any]], carrier: str) -> None:
    """Every request is complete, and its counts are what was asked for, whoever counted."""
    assert found
    for sample in found:
        assert (sample["verdict"], sample["detail"]) == ("complete", None)
        assert sample["got"] == {"input_tokens": INPUT, "new_tokens": NEW, "counted_by": "server"}
        assert sample["transport"] == carrier


@pytest.mark.parametrize("carrier", ["gevent", "httpx"])
@pytest.mark.parametrize("kind", TYPES)
def test_counts_agree_over_every_protocol(server: str, tmp_path: Path, kind: str, carrier: str):
    found = samples(tmp_path, server, "--endpoint-type", kind, "--transport", carrier)
    agree(found, carrier)
    assert all(sum(tokens for _, tokens, _ in sample["events"]) == NEW for sample in found)


@pytest.mark.parametrize("kind", TYPES)
def test_replies_that_come_whole_have_the_same_counts_and_no_first_token(server: str, tmp_path: Path, kind: str):
    found = samples(tmp_path, server, "--endpoint-type", kind, "--no-stream")
    agree(found, "gevent")
    for sample in found:
        assert sample["streamed"] is False
        assert [tokens for _, tokens, _ in sample["events"]] == [NEW]
        assert sample["first_text_ns"] is None
    (folder,) = tmp_path.iterdir()
    (cell,) = json.loads((folder / "summary.json").read_text())["cells"]
    assert "latency_s" in cell["metrics"]
    assert not {"ttft_s", "ttft_text_s", "tpot_s", "itl_s"} & {
        name for name, metric in cell["metrics"].items() if metric["n"]
    }
    report = (folder / "report.md").read_text()
    assert "**Nothing was streamed**" in report
    assert cell["split"]["of"] == "latency_s"
    assert cell["split"]["parts"].keys() == {"network_s", "queue_s", "prefill_s", "decode_s"}
    assert sum(cell["split"]["parts"].values()) == pytest.approx(cell["metrics"]["latency_s"]["mean"])
    assert "## What the latency consists of" in report


@pytest.mark.parametrize("carrier", ["gevent", "httpx", "boto3"])
@pytest.mark.parametrize("kind", ["sagemaker", "openai-chat", "openai-completions"])
def test_counts_agree_through_sagemaker(
    aws: SageMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, carrier: str
):
    for name, value in aws.environ().items():
        monkeypatch.setenv(name, value)
    agree(samples(tmp_path, "sagemaker://good", "--endpoint-type", kind, "--transport", carrier), carrier)


@pytest.mark.parametrize("carrier", ["gevent", "boto3"])
def test_a_sagemaker_endpoint_that_cannot_stream_has_a_latency(
    aws: SageMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, carrier: str
):
    for name, value in aws.environ().items():
        monkeypatch.setenv(name, value)
    found = samples(tmp_path, "sagemaker://fault-not-streaming", "--no-stream", "--transport", carrier)
    assert {sample["verdict"] for sample in found} == {"complete"}
    assert {sample["got"]["new_tokens"] for sample in found} == {NEW}


def test_a_plan_has_first_tokens_so_it_is_not_measured_from_whole_replies(server: str, tmp_path: Path):
    done = tokenclock("run", "--url", server, "--plan", "published", "--no-stream", "--results", str(tmp_path))
    assert done.returncode == 2
    assert "--no-stream leaves a plan without first tokens" in done.stderr
