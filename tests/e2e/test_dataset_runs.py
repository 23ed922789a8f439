"""A run with a dataset sends the file's lines and nothing else, in every loop; a shared prefix is said where it counts.

Method: real processes against the truth server, which counts a prompt's words: the lines differ in length, so what a
sample got tells which line it was.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from loadtest.served import free_port
from loadtest.truth import Truth, truth
from tests.e2e.conftest import BIN, ROOT, Forked, tokenclock

pytestmark = pytest.mark.e2e

TEXTS = [{"prompt": "one " * k, "max_tokens": k + 10} for k in range(1, 6)] + [{"prompt": "one " * 6}]
CHATS = [{"messages": [{"role": "user", "content": "one " * k}], "output_tokens": k + 10} for k in range(1, 6)]
CHATS += [{"prompt": "one " * 6, "temperature": 0.5}]
IDS = [{"prompt": list(range(k)), "max_completion_tokens": k + 10} for k in range(1, 6)] + [{"prompt": [7] * 6}]
ROUTES = {"tgi": TEXTS, "openai-completions": IDS, "openai-chat": CHATS}
#: (prompt tokens, new tokens) of every line; the last one asks for what --new-tokens says.
PAIRS = {(1, 11), (2, 12), (3, 13), (4, 14), (5, 15), (6, 20)}


@pytest.fixture(scope="module")
def server() -> Iterator[Truth]:
    with truth(first=0.01, gap=0.001, openai=True) as running:
        yield running


def write(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def run(
    server: Truth, folder: Path, *more: str, by: Callable[..., subprocess.CompletedProcess[str]] = tokenclock
) -> subprocess.CompletedProcess[str]:
    results = str(folder / "results")
    where = ("--url", server.url, "-u", "3", "-t", "1s", "--results", results)
    return by("run", *where, "--new-tokens", "20", *more, *model_for(more))


def model_for(words: Iterable[str]) -> list[str]:
    """OpenAI's protocols name a model; TGI's has no place for one."""
    return ["--model", "truth"] if any(word.startswith("openai") for word in words) else []


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Samples and run.json, both valid, and the report."""
    (made,) = (folder / "results").iterdir()
    samples = [json.loads(line) for line in (made / "samples.jsonl").read_text().splitlines()]
    about = json.loads((made / "run.json").read_text())
    for name, values in (("samples", samples), ("run", [about])):
        schema = json.loads((ROOT / "loadtest" / f"{name}.schema.json").read_text())
        for value in values:
            jsonschema.Draft202012Validator(schema).validate(value)
    return samples, about, (made / "report.md").read_text()


def check(folder: Path, kind: str, order: str) -> list[dict[str, Any]]:
    samples, about, report = read(folder)
    assert len(samples) > 12
    assert {sample["verdict"] for sample in samples} == {"complete"}
    assert {(s["got"]["input_tokens"], s["got"]["new_tokens"]) for s in samples} == PAIRS
    for sample in samples:
        counted = sample["got"]["input_tokens"] if kind == "openai-completions" else None
        assert sample["asked"] == {"input_tokens": counted, "new_tokens": sample["got"]["new_tokens"]}
        assert len(sample["events"]) == sample["got"]["new_tokens"]
        cell = sample["cell"]
        assert (cell["input_tokens"], cell["new_tokens"], cell["dataset"]) == (None, None, "mine.jsonl")
    said = about["dataset"]
    assert (said["file"], said["lines"], said["different_prompts"], said["order"]) == ("mine.jsonl", 6, 6, order)
    assert said["drawn"] >= len(samples)
    (made,) = (folder / "results").iterdir()
    (entry,) = json.loads((made / "summary.json").read_text())["cells"]
    assert entry["label"].endswith(", dataset mine.jsonl")
    assert entry["metrics"]["throughput_total_tokens_per_s"]["mean"] > 0
    assert entry["off_plan"] == []
    assert "**On plan**" in report
    assert f"{len(samples)} requests used 6 lines with 6 different prompts" in report
    return samples


@pytest.mark.parametrize("kind", ROUTES)
@pytest.mark.parametrize("loop", [(), ("--rate", "30")], ids=["closed", "open"])
def test_a_run_sends_every_line_with_what_it_asks_for(server: Truth, tmp_path: Path, kind: str, loop: tuple[str, ...]):
    path = write(tmp_path, ROUTES[kind])
    done = run(server, tmp_path, "--dataset", path, "--endpoint-type", kind, *loop)
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    check(tmp_path, kind, "shuffle")
    assert "mine.jsonl: 6 lines (" in done.stderr
    assert ("mine.jsonl: fields that are not sent: temperature" in done.stderr) is (kind == "openai-chat")
    assert re.search(r"\d+ requests used 6 lines with 6 different prompts: a server that keeps prefixes", done.stderr)


def test_lines_are_sent_in_the_files_order_where_that_is_asked_for(server: Truth, tmp_path: Path):
    path = write(tmp_path, TEXTS)
    done = run(server, tmp_path, "--dataset", path, "--dataset-order", "sequential", "--rate", "30")
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    samples = sorted(check(tmp_path, "tgi", "sequential"), key=lambda sample: sample["scheduled_ns"])
    assert [sample["got"]["input_tokens"] for sample in samples] == [1 + k % 6 for k in range(len(samples))]
    assert "6 lines (text), in the file's order" in done.stderr


@pytest.mark.parametrize("kind", ROUTES)
def test_locust_sends_every_line_with_what_it_asks_for(server: Truth, tmp_path: Path, kind: str):
    path = write(tmp_path, ROUTES[kind])
    command = [BIN / "locust", "--headless", "-t", "3s", "-u", "3", "--host", server.url, "--new-tokens", "20"]
    what = ["--dataset", path, "--endpoint-type", kind, "--results-dir", tmp_path / "results", *model_for([kind])]
    done = subprocess.run([*command, *what], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    check(tmp_path, kind, "shuffle")
    assert "requests used 6 lines with 6 different prompts" in done.stderr


def test_locusts_workers_deal_the_lines_out_among_them(server: Truth, tmp_path: Path):
    port = str(free_port())
    command = [BIN / "locust", "--headless", "--processes", "2", "--master-port", port, "--master-bind-port", port]
    command += ["-t", "5s", "-u", "2", "-r", "2", "--host", server.url, "--results-dir", tmp_path / "results"]
    what = ["--dataset", write(tmp_path, TEXTS), "--new-tokens", "20"]
    done = subprocess.run([*command, *what], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    samples = check(tmp_path, "tgi", "shuffle")
    asked = {number: {s["got"]["input_tokens"] for s in samples if s["process"] == number} for number in (0, 1)}
    assert [len(each) for each in asked.values()] == [3, 3], "every line has another length, and each its half of them"
    assert asked[0].isdisjoint(asked[1])


def test_where_the_endpoint_counts_no_prompts_that_is_said_before_and_after(server: Truth, tmp_path: Path):
    kind = ("--endpoint-type", "openai-completions", "--extra-body", '{"stream_options": null}')
    done = run(server, tmp_path, "--dataset", write(tmp_path, TEXTS), *kind)
    assert "the endpoint counts no prompts (text): there will be no total throughput" in done.stderr
    samples, _, report = read(tmp_path)
    assert len(samples) > 6
    assert {sample["got"]["input_tokens"] for sample in samples} == {None}
    assert "nobody counted the prompts' tokens, so there is no total throughput" in report


def refused(forked: Forked, server: Truth, folder: Path, sentence: str, *more: str) -> None:
    server.clear()
    done = run(server, folder, *more, by=forked)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert server.records() == [], "nothing was asked for"
    assert not any((folder / "results").glob("*"))


@pytest.mark.parametrize(
    ("kind", "lines", "sentence"),
    [
        ("tgi", CHATS, "mine.jsonl, line 1: TGI's protocol takes a text for a prompt: use --endpoint-type openai-chat"),
        ("tgi", IDS, "mine.jsonl, line 1: TGI's protocol takes a text for a prompt"),
        ("openai-completions", CHATS, "mine.jsonl, line 1: completions take no messages: use --endpoint-type"),
        ("openai-chat", IDS, "mine.jsonl, line 1: a chat takes no token ids: use --endpoint-type openai-completions"),
        ("tgi", [*TEXTS, {"prompt": ""}], 'mine.jsonl, line 7: prompt is ""; it must be a text or a list of token ids'),
        ("tgi", [], "mine.jsonl has no lines"),
        ("tgi", [{"prompt": "a", "max_tokens": 10**6}], "mine.jsonl, line 1, needs 1000001 or more: serve a longer"),
    ],
)
def test_lines_that_cannot_be_sent_are_refused_before_anything_is_asked(
    forked: Forked, server: Truth, tmp_path: Path, kind: str, lines: list[dict[str, Any]], sentence: str
):
    refused(forked, server, tmp_path, sentence, "--dataset", write(tmp_path, lines), "--endpoint-type", kind)


def test_a_kind_of_line_that_comes_later_is_tried_too(server: Truth, tmp_path: Path):
    path = write(tmp_path, [*TEXTS, IDS[0]])
    done = run(server, tmp_path, "--dataset", path, "--endpoint-type", "openai-chat")
    assert done.returncode == 2
    assert "mine.jsonl, line 7: a chat takes no token ids" in done.stderr


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--dataset", "/no/such.jsonl"], "/no/such.jsonl can't be read: No such file or directory"),
        (["--dataset", "/"], "/ can't be read: Is a directory"),
        (["--dataset", "a", "--input-tokens", "9"], "--input-tokens is for prompts that are made, --dataset brings"),
        (["--dataset", "a", "--shared-prefix-tokens", "9"], "--shared-prefix-tokens is for prompts that are made"),
        (["--dataset", "a", "--tokenizer", "b"], "--tokenizer is for prompts that are made"),
        (["--dataset-order", "sequential"], "--dataset-order belongs to --dataset: add it, or leave it out"),
        (["--dataset", "a", "--dataset-order", "random"], "invalid choice: 'random'"),
        (["--shared-prefix-tokens", "256"], "--shared-prefix-tokens 256 leaves nothing of 256 input tokens that could"),
        (["--shared-prefix-tokens", "9", "--input-tokens", "9"], "leaves nothing of 9 input tokens"),
        (["--shared-prefix-tokens", "0"], "'0' is not a whole number from 1 up"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence_and_exit_code_2(
    forked: Forked, server: Truth, tmp_path: Path, more: list[str], sentence: str
):
    refused(forked, server, tmp_path, sentence, *more)


@pytest.mark.parametrize(
    "option", [("--dataset", "a"), ("--dataset-order", "shuffle"), ("--shared-prefix-tokens", "9")]
)
def test_a_plan_has_prompts_of_its_own(forked: Forked, option: tuple[str, str], tmp_path: Path):
    done = forked("run", "--url", "http://127.0.0.1:1", "--plan", "published", "--results", str(tmp_path), *option)
    assert done.returncode == 2
    assert f"--plan fixes users and tokens, {option[0]} is for a free run: leave one of them out" in done.stderr


@pytest.mark.parametrize("kind", ["tgi", "openai-chat"])
def test_a_shared_prefix_is_said_and_prompts_stay_exact(server: Truth, tmp_path: Path, kind: str):
    done = run(server, tmp_path, "--endpoint-type", kind, "--input-tokens", "40", "--shared-prefix-tokens", "30")
    assert done.returncode == 0 or "the client was the bottleneck" in done.stderr, done.stderr
    samples, about, report = read(tmp_path)
    assert len(samples) > 6
    assert {(s["verdict"], s["got"]["input_tokens"], s["got"]["new_tokens"]) for s in samples} == {("complete", 40, 20)}
    assert {sample["asked"] for sample in samples} == {None}
    assert (about["shared_prefix_tokens"], about["dataset"]) == (30, None)
    assert "all prompts share their first 30 tokens; the rest is never twice the same" in done.stderr
    assert "**Shared prefix**: every prompt begins with the same 30 of its 40 tokens" in report


def test_locust_shares_a_prefix_too_and_refuses_what_does_not_fit(server: Truth, tmp_path: Path):
    def locust(*more: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "locust", "--headless", "-t", "3s", "-u", "2", "--host", server.url, "--new-tokens", "20"]
        results = ["--results-dir", str(tmp_path / "results"), *more]
        return subprocess.run([*command, *results], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    done = locust("--input-tokens", "40", "--shared-prefix-tokens", "30")
    assert done.returncode == 0, done.stderr
    samples, about, report = read(tmp_path)
    assert {sample["got"]["input_tokens"] for sample in samples} == {40}
    assert about["shared_prefix_tokens"] == 30
    assert "**Shared prefix**" in report
    for more, sentence in (
        (["--shared-prefix-tokens", "300"], "--shared-prefix-tokens 300 leaves nothing of 256 input tokens"),
        (["--shared-prefix-tokens", "-1"], "--shared-prefix-tokens -1 leaves nothing"),
        (["--dataset", "/no/such.jsonl"], "/no/such.jsonl can't be read"),
        (["--dataset", "a", "--input-tokens", "9"], "--input-tokens is for prompts that are made"),
    ):
        done = locust(*more)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
