"""report.html says what the samples amount to, needs nothing but itself, and lets no stranger's text be markup.

Method: folders with samples of known or random instants. Figures are computed once more by pandas
(tests/recomputed.py); the page is read as a browser would, by the standard library's parser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest

import loadtest
from loadtest.arguments import Usage
from loadtest.plan import Asked, Cell
from loadtest.report import write, write_together
from loadtest.report.arguments import named, output_of
from loadtest.report.export import vllm
from loadtest.report.side_by_side import SideBySideError
from loadtest.sample import Got, Sample, write_samples
from loadtest.verdict import Verdict
from tests.loadtest.test_report import MS, a_run, written
from tests.recomputed import Tables, agree

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"' onload=alert(3) ![p](//e.org/p.png) {{7*7}} $x_$ & \x1b"
)


def stream(number: int, user: int, began: float, gaps: list[float], phase: str = "steady", **changes: Any) -> Sample:
    """A request that began so many ms after the run, and the ms to its first token and between the others."""
    at = np.cumsum([began, *gaps])[1:]
    events = tuple((int(t * MS), 1, i) for i, t in enumerate(at))
    cell = Cell(None, 4, 3, 256, len(gaps))
    begun = int(began * MS)
    sample = Sample(
        run="r", id=f"{phase}-{number}", process=0, user=user, cell=cell, phase=phase,
        got=Got(256, len(gaps), "server"), scheduled_ns=begun, connect_ns=None, started_ns=begun, sent_ns=begun,
        headers_ns=begun, events=events, first_text_ns=events[0][0], ended_ns=events[-1][0] + MS, clock="kernel",
        transport="gevent", verdict=Verdict.COMPLETE, detail=None, status=200,
        server={"queue_s": 0.002, "prefill_s": 0.003, "decode_s": 0.1, "batch_sizes": {"3": len(gaps)}},
    )  # fmt: skip
    return replace(sample, **changes)


def a_free_run(requests: int = 60, tokens: int = 20) -> tuple[list[Sample], dict[str, Any]]:
    """Three users in a closed loop, with ramp and drain, some failures, and one stall of 400 ms."""
    draw = random.Random(7)
    free = [0.0, 3.0, 6.0]
    samples = []
    for number in range(requests):
        user = number % 3
        gaps = [draw.uniform(8, 40), *(draw.gammavariate(9, 1) for _ in range(tokens - 1))]
        if number == requests // 2:
            gaps[tokens // 2] = 400.0
        phase = "ramp" if number < 3 else "drain" if number >= requests - 3 else "steady"
        sample = stream(number, user, free[user], gaps, phase)
        if number % 17 == 5:
            sample = replace(sample, verdict=Verdict.TRUNCATED, detail="cut", events=sample.events[:5])
        samples.append(sample)
        free[user] = sample.ended_ns / MS + draw.uniform(0, 2)
    _, run = a_run(None, configs="L")
    return samples, run | {"waves": None, "configs": [], "endpoints": [run["endpoints"][0] | {"config": None}]}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and what scripts say."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.script = self.text = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.script += data
        elif self._tag != "style":
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("free")
    written(folder, *a_free_run())
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    written(folder, *a_run("published", waves=11))
    return folder


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


# Figures


def test_every_figure_is_what_pandas_makes_of_the_samples(free: Path, published: Path):
    assert agree(free) > 60
    assert agree(published) > 500


def test_a_wrong_figure_would_be_noticed(free: Path, tmp_path: Path):
    for name in ("samples.jsonl", "summary.json", "report.md", "report.html"):
        text = (free / name).read_text(encoding="utf-8")
        if name == "report.html":
            row, *_ = re.findall(r"256→20</td>\s*<td[^>]*>([\d.]+) / ", text)
            text = text.replace(f">{row} / ", f">{float(row) + 0.3:.1f} / ")
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        agree(tmp_path)


def test_the_summary_obeys_the_shipped_schema_which_refuses_another(free: Path, published: Path):
    schema = json.loads((Path(loadtest.__file__).parent / "summary.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for folder in (free, published):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        validator.validate(summary)
        assert not validator.is_valid(summary | {"extra": 1})
        assert not validator.is_valid(summary | {"cells": [summary["cells"][0] | {"metrics": {"speed": {}}}]})


def test_the_csv_has_a_line_for_every_metric_of_every_cell(published: Path):
    table = pd.read_csv(published / "summary.csv")
    summary = json.loads((published / "summary.json").read_text(encoding="utf-8"))
    told = {(entry["label"], name): metric for entry in summary["cells"] for name, metric in entry["metrics"].items()}
    assert len(table) == len(told) > 60
    for row in table.itertuples():
        metric = told[row.cell, row.metric]
        assert row.mean == pytest.approx(metric["mean"])
        assert (row.p99 == pytest.approx(metric["p99"])) if metric["p99"] is not None else pd.isna(row.p99)
        assert row.ci95_low == pytest.approx((metric["ci95_of_median"] or [np.nan])[0], nan_ok=True)


def test_the_flat_keys_are_vllms_in_milliseconds_and_over_the_whole_wall(free: Path):
    (flat,) = map(json.loads, (free / "summary.vllm.jsonl").read_text(encoding="utf-8").splitlines())
    samples, _ = a_free_run()
    steady = [s for s in samples if s.phase == "steady"]
    done = [s for s in steady if s.complete]
    ttft_ms = [(s.events[0][0] - s.started_ns) / MS for s in done]
    gaps_ms = [(b[0] - a[0]) / MS for s in done for a, b in zip(s.events, s.events[1:], strict=False)]
    wall_s = (max(s.ended_ns for s in steady) - min(s.scheduled_ns for s in steady)) / 1e9
    assert (flat["completed"], flat["failed"], flat["num_prompts"]) == (len(done), len(steady) - len(done), len(steady))
    for key, value in {
        "mean_ttft_ms": np.mean(ttft_ms),
        "median_ttft_ms": np.median(ttft_ms),
        "std_ttft_ms": np.std(ttft_ms),
        "p90_itl_ms": np.percentile(gaps_ms, 90),
        "p99_itl_ms": np.percentile(gaps_ms, 99),
        "duration": wall_s,
        "output_throughput": 20 * len(done) / wall_s,
        "total_token_throughput": 276 * len(done) / wall_s,
        "request_throughput": len(done) / wall_s,
    }.items():
        assert flat[key] == pytest.approx(value), key
    assert "p99_ttft_ms" not in flat, "50 requests have no p99"


def test_the_exports_of_a_run_without_a_complete_request_have_counts_and_no_times(tmp_path: Path):
    samples, run = a_free_run(9)
    text = written(tmp_path, [replace(s, verdict=Verdict.TIMEOUT, events=()) for s in samples], run)
    assert "**No request was complete**" in text
    assert "No request was complete." in page_of(tmp_path)
    (flat,) = map(json.loads, (tmp_path / "summary.vllm.jsonl").read_text(encoding="utf-8").splitlines())
    assert (flat["completed"], flat["output_throughput"]) == (0, 0)
    assert "mean_ttft_ms" not in flat


# The page


def test_the_verdict_line_comes_first_and_says_how_fast_how_sure_and_what_limited_it(published: Path, free: Path):
    text = Elements(page_of(published)).text
    begin = text[text.index("tokenclock report\n") :][:900]
    assert "output tokens/s (95 % CI" in begin
    assert "with the prompts" in begin
    assert re.search(r"T 256→\d+, 4 at once", begin)
    assert "with reservations" in begin
    assert "the client's own error was not measured" in begin
    assert "passed before its first token and" in begin
    assert "4 of 60 requests were not complete" in Elements(page_of(free)).text


def test_the_page_needs_nothing_but_itself(free: Path, published: Path):
    for folder in (free, published):
        page = page_of(folder)
        elements = Elements(page)
        for tag, attributes in elements.found:
            assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
            for name, value in attributes.items():
                assert name not in ("src", "srcset", "action", "data"), (tag, name)
                if "href" in name:
                    assert (value or "").startswith("#"), value
        assert re.findall(r"url\((?!#)", page) == []
        assert "@import" not in page
        (policy,) = [a["content"] or "" for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
        digest = base64.b64encode(hashlib.sha256(elements.script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none'")


def test_what_strangers_wrote_is_text_everywhere(tmp_path: Path):
    samples, run = a_free_run(30)
    cell = replace(samples[0].cell, dataset=HOSTILE, input_tokens=None, new_tokens=None)
    samples = [replace(s, cell=cell, asked=Asked(256, 20), detail=None if s.complete else HOSTILE) for s in samples]
    endpoint = {"config": None, "url": f"http://{HOSTILE}", "protocol": HOSTILE, "command": HOSTILE}
    backend = {"name": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    endpoint["info"] = {"model_id": HOSTILE, HOSTILE: HOSTILE, "backend": backend}
    machine = run["machine"] | {"cpu": HOSTILE}
    hostile = {"run": HOSTILE, "endpoints": [endpoint], "machine": machine, "options": {HOSTILE: HOSTILE}}
    written(tmp_path, samples, run | hostile | {"command": [HOSTILE], "versions": {HOSTILE: HOSTILE}})
    elements = Elements(page_of(tmp_path))
    assert elements.text.count("alert(1)") > 10
    assert "{{7*7}}" in elements.text
    assert [tag for tag, _ in elements.found if tag in ("img", "iframe")] == []
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert "alert" not in elements.script
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []


def test_every_drawing_has_a_text_and_a_table_and_refers_to_what_is_there(free: Path, published: Path):
    for folder in (free, published):
        elements = Elements(page_of(folder)).found
        drawings = [attributes for tag, attributes in elements if tag == "svg"]
        assert len(drawings) >= 4
        for attributes in drawings:
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 20
        names = [attributes["id"] for _, attributes in elements if attributes.get("id")]
        assert len(names) == len(set(names))
        referred = set(re.findall(r"url\(#([^)]+)\)", page_of(folder)))
        referred |= {(a["href"] or "")[1:] for _, a in elements if a.get("href")}
        assert referred <= set(names)
        figures, tables = ([t for t, _ in elements].count(tag) for tag in ("figure", "table"))
        assert tables >= figures >= len(drawings) - 1


def test_text_and_lines_stand_out_from_the_page_light_and_dark():
    style = (Path(loadtest.__file__).parent / "report" / "page" / "style.css").read_text(encoding="utf-8")
    light, dark, *_ = re.findall(r":root \{(.*?)\}", style, re.S)
    for theme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for name in ("ink", "muted", "link", "sound", "doubted", "unsound"):
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("stall", *(f"series-{n}" for n in range(1, 7))):
            assert contrast(colours[name], colours["page"]) >= 3, name


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_timeline_is_of_the_longest_gap_and_says_what_it_leaves_out(free: Path):
    text = Elements(page_of(free)).text
    assert re.search(r"\d+ of 60 requests, around the longest gap between two tokens, 400 ms\.", text)
    assert "A stall is a gap above 4 times the usual one" in text
    rows = Tables(page_of(free)).tables["Requests, one by one"]
    assert "400 ms" in {row[5] for row in rows}
    assert {row[2] for row in rows[1:]} == {"2.00 ms"}, "the queue, as the server told it"


def test_throughput_over_time_holds_every_token_and_names_ramp_and_drain(free: Path):
    samples, _ = a_free_run()
    rows = Tables(page_of(free)).tables["Over time"][1:]
    width_s = float(rows[1][0].split()[0]) - float(rows[0][0].split()[0])
    whole_s = max(s.ended_ns for s in samples) / 1e9
    tokens = sum(len(s.events) for s in samples)
    shown = sum(float(rate) for _, rate, _ in rows) * whole_s / len(rows)
    assert len(rows) >= 10
    assert width_s > 0
    assert shown == pytest.approx(tokens, rel=0.1)
    assert {"ramp", "drain"} <= set(re.findall(r">(ramp|drain)</text>", page_of(free)))


# Several runs


def test_several_runs_stand_side_by_side_under_their_names(tmp_path: Path):
    for name, model in (("7b", "llama-7b"), ("13b", "llama-13b")):
        samples, run = a_run("published", waves=10)
        (tmp_path / name).mkdir()
        endpoints = [each | {"info": {"model_id": model}} for each in run["endpoints"]]
        shift = 0 if name == "7b" else 50 * MS
        slower = [replace(s, events=tuple((t + shift, n, r) for t, n, r in s.events)) for s in samples]
        write_samples(tmp_path / name / "samples.jsonl", slower)
        (tmp_path / name / "run.json").write_text(json.dumps(run | {"endpoints": endpoints}), encoding="utf-8")
    write_together({"7B": tmp_path / "7b", "13B": tmp_path / "13b"}, tmp_path / "both")
    report = (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    table = Tables(page_of(tmp_path / "both")).tables["Encoding time per input token"]
    assert [name.split(" · ")[0] for name in table[0][1:]] == ["7B-L", "7B-T", "13B-L", "13B-T"]
    assert [text.split(" (")[0] for text in table[1][1:]] == ["133.4 ms", "517.4 ms", "183.4 ms", "567.4 ms"]
    assert "| 13B-T 256→768 |" in report
    assert "## 13B: Machine and settings" in report
    text = Elements(page_of(tmp_path / "both")).text
    assert "llama-7b at" in text
    assert "llama-13b at" in text
    assert (tmp_path / "7b" / "report.html").exists()
    assert (tmp_path / "both" / "page.png").stat().st_size > 5_000


def test_grids_are_never_mixed(tmp_path: Path):
    for plan in ("published", "to-1024"):
        samples, run = a_run(plan, waves=2, configs="L")
        (tmp_path / plan).mkdir()
        write_samples(tmp_path / plan / "samples.jsonl", samples)
        (tmp_path / plan / "run.json").write_text(json.dumps(run), encoding="utf-8")
    with pytest.raises(SideBySideError, match=r"A: published, B: to-1024.*report them apart"):
        write_together({"A": tmp_path / "published", "B": tmp_path / "to-1024"}, tmp_path / "both")


def test_the_export_knows_the_schedule_of_an_open_loop(free: Path):
    summary = json.loads((free / "summary.json").read_text(encoding="utf-8"))
    run = json.loads((free / "run.json").read_text(encoding="utf-8"))
    loop = {"rate_per_s": 2.5, "burstiness": 0.5, "kind": "gamma"}
    (flat,) = vllm(summary, run | {"open_loop": loop})
    assert (flat["request_rate"], flat["burstiness"]) == (2.5, 0.5)
    (flat,) = vllm(summary, run)
    assert (flat["request_rate"], flat["burstiness"]) == ("inf", 1.0)


def test_a_report_computed_again_is_the_same_page(free: Path):
    before = page_of(free)
    write(free)
    assert page_of(free) == before


@pytest.mark.parametrize(
    ("folders", "output", "sentence"),
    [
        (["nowhere"], None, r"'nowhere' is no folder of a run: say DIR, or NAME=DIR"),
        (["=a"], None, r"'=a' is no folder of a run"),
        (["a", "b/a"], None, r"two runs are called 'a': give one of them another name, NAME="),
        (["a"], "out", r"leave it out"),
        (["a", "X=b/a"], "a", r"a is the folder of a run, whose own report is there: choose another --output"),
    ],
)
def test_folders_that_cannot_be_named_are_refused(
    folders: list[str], output: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "b" / "a").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Usage, match=sentence):
        output_of(named(folders), Path(output) if output else None)
    assert output_of(named(["a", "X=b/a"]), None) == Path("side-by-side")
