"""The report says, in text, tables and pictures, exactly what the samples amount to.

A whole run is made from chosen instants. In wave w of ten, everything is 1.2·w ms later, so that every median lies
5.4 ms after the first wave's figure and its 95 % interval (second to ninth wave) reaches from 1.2 to 9.6 ms after it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_hex

import loadtest
from loadtest.plan import CONFIGS, PLANS, Cell
from loadtest.report import tables, write
from loadtest.report.numbers import quantity, with_interval
from loadtest.sample import Got, Sample, write_samples
from loadtest.verdict import Verdict

MS = 1_000_000
UNTOUCHED = dict(matplotlib.rcParams)  # before any chart was drawn
TITLES = {
    "encoding_time": "Encoding time per input token",
    "latency": "End-to-end latency per generated tokens for 256 input tokens",
    "throughput": "Throughput per generated tokens for 256 input tokens",
}
#: First wave's figures, ms: prefill takes 0.5 ms for a token and one request after the other, a step 2 ms for all.
TTFT_MS, STEP_MS, LATER_MS = 0.5, 2, 1.2


def request(cell: Cell, wave: int, rank: int, phase: str = "steady") -> Sample:
    """Of a stream only the first and the last token event, which carries the other tokens: the figures need no more."""
    release = 1_000 + 60_000 * wave
    first = release + TTFT_MS * cell.input_tokens * (rank + 1) + LATER_MS * wave
    last = release + TTFT_MS * cell.input_tokens * cell.concurrency + LATER_MS * wave + STEP_MS * (cell.new_tokens - 1)
    events = [(int(first * MS), 1, 0)] + [(int(last * MS), cell.new_tokens - 1, 1)] * (cell.new_tokens > 1)
    return Sample(
        run="20261122-published",
        id=f"{cell.label}-{phase}-{wave}-{rank}",
        process=0,
        user=rank,
        cell=cell.in_wave(wave),
        phase=phase,
        got=Got(cell.input_tokens, cell.new_tokens, "server"),
        scheduled_ns=release * MS,
        connect_ns=None,
        started_ns=release * MS,
        sent_ns=release * MS,
        headers_ns=release * MS,
        events=tuple(events),
        first_text_ns=events[0][0],
        ended_ns=events[-1][0],
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
    )


def a_run(plan: str | None, *, waves: int = 10, configs: str = "LT") -> tuple[list[Sample], dict]:
    samples = [
        request(cell, wave, rank, phase)
        for name in configs
        for cell in PLANS[plan or "published"].cells(CONFIGS[name], CONFIGS[name].slots)
        for phase, number in (("warmup", 1), ("steady", waves))
        for wave in range(number)
        for rank in range(cell.concurrency)
    ]
    endpoint = {"url": "http://127.0.0.1:8080", "protocol": "tgi", "info": {"model_id": "demo|7b"}, "command": None}
    clocks = {"mono_ns": 0, "wall_ns": 1_795_384_500 * 10**9}
    return samples, {
        "schema": 1,
        "run": "20261122-published",
        "tool": {"name": "tokenclock", "version": "0.1.0"},
        "created": "2026-11-22T21:55:00Z",
        "command": ["tokenclock", "run"],
        "plan": plan,
        "configs": list(configs) if plan else [],
        "waves": waves,
        "seed": 1,
        "options": {"timeout_s": 60},
        "endpoints": [{"config": name, **endpoint} for name in configs],
        "machine": {"platform": "Linux", "cpu": "any", "cores": 2, "memory_bytes": None, "python": "3.11.7"},
        "versions": {"locust": "2.47.0"},
        "processes": [{"process": 0, "host": "here", "pid": 1, "start": clocks, "end": None}],
        "client": [],
        "open_loop": None,
        "interrupted": False,
    }


def written(folder: Path, samples: list[Sample], run: dict) -> str:
    write_samples(folder / "samples.jsonl", samples)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return write(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    written(folder, *a_run("published"))
    return folder


def row(report: str, title: str, label: str) -> list[str]:
    """The entries of one row of the table under a heading."""
    section = report.split(f"## {title}\n", 1)[1].split("\n#", 1)[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {label} |")]
    return [entry.strip() for entry in line.strip("|").split("|")][1:]


def texts(svg: Path) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


# The page's tables


def test_the_encoding_time_is_that_of_the_last_request_of_a_wave_with_its_interval(published: Path):
    report = (published / "report.md").read_text(encoding="utf-8")
    assert row(report, TITLES["encoding_time"], "256") == [
        "133.4 ms (95 % CI 129.2–137.6)",
        "517.4 ms (95 % CI 513.2–521.6)",
    ]


def test_latency_and_throughput_are_those_of_the_wave(published: Path):
    report = (published / "report.md").read_text(encoding="utf-8")
    assert row(report, TITLES["latency"], "512") == [
        "1.155 s (95 % CI 1.151–1.160)",  # 128 + 511 × 2 + 5.4 ms
        "1.539 s (95 % CI 1.535–1.544)",
    ]
    tokens = 4 * (256 + 512)
    expected = np.sort(tokens / wave_s(512, 4))
    assert row(report, TITLES["throughput"], "512")[1] == (
        f"{np.median(expected):.0f} tokens/s (95 % CI {expected[1]:.0f}–{expected[8]:.0f})"
    )


def test_below_ten_waves_the_mean_is_shown_and_called_a_mean(tmp_path: Path):
    report = written(tmp_path, *a_run("published", waves=3, configs="L"))
    assert row(report, TITLES["encoding_time"], "256") == ["129.2 ms (mean of 3)"]
    assert "bars: mean of 3 waves" in texts(tmp_path / "encoding_time.svg")


# The charts


def wave_s(new_tokens: int, users: int) -> np.ndarray:
    """Batch latency of each of the ten waves at 256 input tokens."""
    return 0.128 * users + 0.002 * (new_tokens - 1) + 0.0012 * np.arange(10)


def test_every_chart_carries_its_title_both_configurations_and_every_value(published: Path):
    grid = [(tokens, users) for tokens in (256, 512, 768) for users in (1, 4)]
    values = {
        "encoding_time": {f"{(0.5 * n * users + 5.4) / 1000:#.3g}" for n, users in grid},
        "latency": {f"{(128 * users + 2 * (m - 1) + 5.4) / 1000:#.3g}" for m, users in grid},
        "throughput": {f"{np.median(users * (256 + m) / wave_s(m, users)):.0f}" for m, users in grid},
    }
    for name, title in TITLES.items():
        shown = texts(published / f"{name}.svg")
        assert title in shown
        assert {"L · 1 slot, concurrency 1", "T · 4 slots, concurrency 4"} <= set(shown)
        assert values[name] <= set(shown)
    together = texts(published / "page.svg")
    assert set(TITLES.values()) | set.union(*values.values()) <= set(together)


def test_every_picture_is_a_png_of_more_than_background(published: Path):
    for name in (*TITLES, "page"):
        pixels = image.imread(published / f"{name}.png")
        assert min(pixels.shape[:2]) > 500
        assert {"#0072b2", "#e69f00"} <= _colours(pixels)


def _colours(pixels: np.ndarray) -> set[str]:
    """Colours that cover at least one pixel in a hundred."""
    found, counts = np.unique(pixels[..., :3].reshape(-1, 3), axis=0, return_counts=True)
    return {to_hex(colour) for colour in found[counts > counts.sum() / 100]}


def test_the_same_samples_give_the_same_bytes_and_leave_matplotlib_as_it_was(published: Path, tmp_path: Path):
    written(tmp_path, *a_run("published"))
    assert dict(matplotlib.rcParams) == UNTOUCHED
    files = sorted(path.name for path in published.iterdir())
    assert len(files) == 2 + 5 + 8
    assert [_digest(tmp_path / name) for name in files] == [_digest(published / name) for name in files]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_other_grid_has_its_own_titles_and_labels(tmp_path: Path):
    report = written(tmp_path, *a_run("to-1024", waves=10, configs="L"))
    assert row(report, "End-to-end latency to a total of 1024 tokens", "768→256") == ["899.4 ms (95 % CI 895.2–903.6)"]
    shown = texts(tmp_path / "latency.svg")
    assert {"256→768", "512→512", "768→256", "End-to-end latency to a total of 1024 tokens"} <= set(shown)
    assert not any("for 256 input tokens" in text for text in shown)


def test_a_free_run_gets_tables_and_no_charts(tmp_path: Path):
    samples, run = a_run(None, configs="L")
    report = written(tmp_path, [replace(s, cell=s.cell.in_wave(None)) for s in samples], run | {"waves": None})
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")]
    assert "![" not in report
    assert "requests_per_s" in report
    assert row(report, "Every cell", "L 256→1")[-1] == "0 of 10"


# Failures and doubts


def test_a_failure_is_named_with_its_detail_and_cannot_become_markup(tmp_path: Path):
    samples, run = a_run("published", waves=12, configs="L")
    at = next(i for i, s in enumerate(samples) if s.phase == "steady")
    samples[at] = replace(samples[at], verdict=Verdict.ERROR_IN_STREAM, detail="lost | <img src=x>\n# boo")
    report = written(tmp_path, samples, run)
    assert r"**error_in_stream** (1): lost \| \<img src=x\> # boo" in report
    assert row(report, "Verdicts", "error_in_stream") == ["1", "0", "1"]
    assert row(report, "Every cell", "L 256→1")[-1] == "1 of 12"
    assert "With failures counted as infinitely slow" in report
    assert "L 256→1: 11 of 12 waves count (1 failed, 0 unfinished)" in report


def test_every_report_says_how_far_to_trust_it(published: Path):
    report = (published / "report.md").read_text(encoding="utf-8")
    trust = report.split("## How far to trust these numbers", 1)[1].split("\n## ", 1)[0]
    for claim in (
        "not calibrated in this run",
        "The client was not the bottleneck",
        "The stream was not buffered",
        "the kernel's receive stamps (300 requests)",
        "On plan",
        "T encoding time is not comparable with the page's",
        "without HTTP",
        "Cold first call** (L 256→1): TTFT 128.0 ms",
    ):
        assert claim in trust


def test_what_speaks_against_the_numbers_is_said(tmp_path: Path):
    samples, run = a_run("published", configs="T")
    spoiled = [
        replace(
            s,
            started_ns=s.started_ns + 40 * MS,
            got=replace(s.got, input_tokens=s.cell.input_tokens + 1),
            events=tuple((t, n, 0) for t, n, _ in s.events),
        )
        for s in samples
        if (s.cell.input_tokens, s.cell.new_tokens) != (768, 1)
    ]
    report = written(tmp_path, spoiled, run | {"interrupted": True})
    assert "**The client was saturated**" in report
    assert "second largest of the requests' lag (n = 40) is 40.0 ms" in report
    assert "The stream was buffered on its way" in report
    assert "T 256→256: 40 of 40 complete requests had 257 input tokens, not 256" in report
    assert "the run was interrupted" in report
    assert "cells of the plan without a figure: T 768→1" in report
    assert row(report, TITLES["encoding_time"], "768") == ["–"]
    assert row(report, TITLES["encoding_time"], "256")[0].endswith("*")
    assert "not" in texts(tmp_path / "encoding_time.svg")


def test_the_terminal_shows_the_same_figures(published: Path):
    text = tables(json.loads((published / "summary.json").read_text(encoding="utf-8")))
    assert "133.4 ms (95 % CI 129.2–137.6)" in text
    assert re.search(r"^T 256→768 +40 +0 ", text, re.MULTILINE)
    assert "verdicts (all phases): complete 330" in text


# Numbers and formats


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0.1472, "147.2 ms"),
        (0.00123456, "1.235 ms"),
        (0.0000204, "0.020 ms"),
        (1.8484, "1.848 s"),
        (84.06, "84.06 s"),
        (0, "0.000 ms"),
    ],
)
def test_a_time_has_four_digits_and_milliseconds_below_one_second(value_s: float, text: str):
    assert quantity(value_s, "s") == text


def test_the_interval_has_the_unit_and_the_decimals_of_its_value():
    metric = {"unit": "s", "n": 10, "p50": 0.9994, "mean": 1, "ci95_of_median": [0.99, 1.00149]}
    assert with_interval(metric) == "999.4 ms (95 % CI 990.0–1001.5)"


def test_the_run_conforms_to_its_schema_and_the_schema_refuses_another():
    schema = json.loads((Path(loadtest.__file__).parent / "run.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    _, run = a_run("published")
    validator.validate(run)
    assert not validator.is_valid(run | {"plan": "another"})
    assert not validator.is_valid(run | {"extra": 1})
    assert not validator.is_valid({key: value for key, value in run.items() if key != "seed"})


def test_the_report_says_what_runs_the_model_as_far_as_the_endpoint_does(tmp_path: Path):
    samples, run = a_run(None)
    neuron = {
        "name": "neuron",
        "cores": 24,
        "batch_size": 4,
        "on_device_sampling": True,
        "dtype": "bfloat16",
        "versions": {"optimum-neuron": "0.4.5"},
    }
    for info, said in (
        ({"backend": neuron}, ": backend neuron, cores 24, batch size 4, on device sampling true, dtype bfloat16, "),
        ({"backend": {"name": "a|b", "versions": "?"}}, ": backend a\\|b"),
        ({"backend": "cuda"}, ""),
        ({}, ""),
        (None, ""),
    ):
        report = written(tmp_path, samples, run | {"endpoints": [run["endpoints"][0] | {"info": info}]})
        line = next(line for line in report.splitlines() if "http://127.0.0.1:8080 (tgi)" in line)
        assert line.endswith(f"(tgi){said}" + ("optimum-neuron 0.4.5" if info == {"backend": neuron} else ""))


def test_a_shared_prefix_is_told_with_what_it_may_save_a_server(tmp_path: Path):
    samples, run = a_run(None, configs="L")
    samples = [s for s in samples if s.cell.input_tokens == 256]
    report = written(tmp_path, samples, run | {"shared_prefix_tokens": 200})
    assert "- every prompt begins with the same 200 tokens\n" in report
    assert "**Shared prefix**: every prompt begins with the same 200 of its 256 tokens, so a server with a prefix" in (
        report
    )
    assert "Shared prefix" not in written(tmp_path, samples, run | {"shared_prefix_tokens": 0})
    assert "Shared prefix" not in written(tmp_path, samples, run), "an older run.json says nothing of it"


def test_an_open_loop_is_told_with_its_rate_and_what_came_late(tmp_path: Path):
    samples, run = a_run(None)
    loop = {
        "kind": "gamma",
        "rate_per_s": 2.5,
        "burstiness": 0.5,
        "run_time_s": 60.0,
        "users": 8,
        "taken": 151,
        "late": 3,
        "unsent": 0,
    }
    report = written(tmp_path, samples, run | {"open_loop": loop})
    said = "an open loop: 2.5 requests/s (gamma, burstiness 0.5) for 60 s, at most 8 in flight; 151 sent, 3 of them"
    assert f"{said} late" in report
    assert "outside waves Σ over complete requests / wall" in report, "what `the same with new tokens only` refers to"
    assert re.search(r"\*\*How fast\*\*: .* \(at most 4 at once\), the fastest cell", report)
    assert re.search(r"256→\d+, at most 4 at once<", (tmp_path / "report.html").read_text(encoding="utf-8"))
