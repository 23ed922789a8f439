"""A figure stands beside a published one only where both mean the same; the rest is named with its reason.

Method: a whole run of the plan, whose figures are chosen, beside the shipped table; tables with one fault each; the
command as it is called.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.__main__ import main
from loadtest.compare.published import SELECTIONS, Beside, LeftOut, beside
from loadtest.compare.reference import COLUMNS, Row, TableError, read
from loadtest.compare.sides import Run
from loadtest.plan import CONFIGS, PLANS
from loadtest.sample import Sample, write_samples
from tests.loadtest.runs import a_run, in_waves, request

TABLE = Path(__file__).parents[2] / "loadtest" / "reference" / "published.csv"
PUBLISHED = read(TABLE.read_text(encoding="utf-8").splitlines(), "published.csv")


def measured(plan: str = "published", **changes: Any) -> list[Sample]:
    """Ten waves of every cell: first token after 1 ms a prompt token, then 10 ms a token."""
    return [
        request(cell.in_wave(wave), wave * 4 + rank, 20_000 * wave, float(cell.input_tokens or 0), 10, rank, **changes)
        for config in CONFIGS.values()
        for cell in PLANS[plan].cells(config, config.slots)
        for wave in range(10)
        for rank in range(config.concurrency)
    ]


def held(run: Run, name: str = "llama2-7b-inf2") -> tuple[list[Beside], list[LeftOut]]:
    return beside(SELECTIONS[name].rows(PUBLISHED), run.run, run.summary, batches=True)


def test_the_shipped_table_is_the_pages_own():
    """Figures read off the page's charts, and the page's own check: batch × total / latency is its throughput."""
    assert len(PUBLISHED) > 1700
    for name in ("llama2-7b-inf2", "llama2-13b-inf2"):
        rows = SELECTIONS[name].rows(PUBLISHED)
        assert len(rows) == 18
        by = {(row.metric, row.batch, row.lengths): row for row in rows}
        for (metric, batch, lengths), row in by.items():
            if metric == "throughput_input_plus_output":
                latency = by["end_to_end_latency", batch, lengths]
                total = batch * ((row.input_tokens or 0) + (row.new_tokens or 0))
                assert total / (latency.value + latency.rounding) <= row.value + row.rounding
                assert total / (latency.value - latency.rounding) >= row.value - row.rounding
    figures = {
        (row.batch, row.lengths): row.value for row in SELECTIONS["llama2-7b-inf2"].rows(PUBLISHED)
        if row.metric == "throughput_input_plus_output"
    }  # fmt: skip
    assert figures[4, "256→768"] == 632
    assert {len(SELECTIONS[name].rows(PUBLISHED)) for name in SELECTIONS} == {18}


def test_every_published_cell_finds_the_measured_one_of_the_same_meaning():
    found, left_out = held(a_run(measured()))
    assert (len(found), left_out) == (18, [])
    assert {each.row.metric: each.metric for each in found} == {
        "encoding_time": "encoding_time_s",
        "end_to_end_latency": "batch_latency_s",
        "throughput_input_plus_output": "throughput_total_tokens_per_s",
    }
    (one,) = [each for each in found if each.cell == "T 256→512" and each.metric == "batch_latency_s"]
    assert one.value == pytest.approx(0.256 + 5.11)
    assert one.ratio == pytest.approx(5.366 / 4.5)
    assert one.ratio_between == pytest.approx((5.366 / 4.55, 5.366 / 4.45))


def test_the_other_grid_shares_its_encoding_and_one_cell_and_nothing_is_derived():
    found, left_out = held(a_run(measured("to-1024"), plan="to-1024"))
    assert {each.cell for each in found} == {
        f"{c} {cell}" for c in "LT" for cell in ("256→1", "512→1", "768→1", "256→768")
    }
    whys = {each.what: each.why for each in left_out}
    assert whys["end_to_end_latency at batch 4, 256→512"] == "the run has no cell of 256→512 tokens"
    assert "the grids are not mixed" in whys["measured T 512→512"]


@pytest.mark.parametrize(
    ("of", "changes", "why"),
    [
        ({}, {"endpoints": [{"config": None, "url": "http://h", "protocol": "tgi", "info": {"router": "tokenclock"},
                             "command": None}]}, "the endpoint prefills one prompt after the other"),
        ({"slots": 8}, {}, "the endpoint served 8 slots, and steps of 8 cost others than of"),
        ({"concurrency": 2}, {}, "another batch: the run had 2 in flight"),
        ({"wave": None}, {"plan": None, "waves": None}, "requests of a closed loop don't begin together"),
        ({"got": 255}, {}, "off plan: "),
    ],
)  # fmt: skip
def test_what_means_another_thing_is_left_out_with_the_reason(of: dict[str, Any], changes: dict[str, Any], why: str):
    samples = [s for s in measured() if s.cell.config == "T"]
    if "got" in of:
        samples = [replace(s, got=replace(s.got, input_tokens=of["got"])) for s in samples]
    else:
        samples = [replace(s, cell=replace(s.cell, **of)) for s in samples]
    found, left_out = held(a_run(samples, **changes))
    reasons = {each.what: each.why for each in left_out}
    assert why in reasons["encoding_time at batch 4, 512→1"]
    assert not any(each.metric == "encoding_time_s" for each in found)


def lines(**changes: str) -> list[str]:
    row = dict.fromkeys(COLUMNS, "") | {
        "source": "ours", "model": "m", "hardware": "h", "batch": "4", "metric": "throughput_output_only",
        "unit": "tok/s", "input_tokens": "256", "new_tokens": "16", "value": "37",
    }  # fmt: skip
    return [",".join(COLUMNS), ",".join((row | changes)[column] for column in COLUMNS)]


def one(**changes: str) -> Row:
    (row,) = read(lines(**changes), "own.csv")
    return row


def test_ones_own_table_is_compared_in_its_own_units_and_digits():
    row = one(metric="time_per_output_token_p50", unit="ms", value="9.50")
    assert (row.value, row.rounding) == (pytest.approx(0.0095), pytest.approx(5e-6))
    run = a_run(in_waves(np.random.default_rng(1)))
    (found,), _ = beside([row], run.run, run.summary, batches=False)
    assert found.value == run.summary["cells"][0]["metrics"]["tpot_s"]["p50"]


def test_the_two_throughputs_are_never_mixed():
    run = a_run(in_waves(np.random.default_rng(1)))
    pairs = {"throughput_output_only": 16, "throughput_input_plus_output": 272}
    values = {}
    for metric in pairs:
        (found,), _ = beside([one(metric=metric)], run.run, run.summary, batches=False)
        values[metric] = found.value
    assert values["throughput_input_plus_output"] / values["throughput_output_only"] == pytest.approx(272 / 16)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": "inter_token_latency", "unit": "ms"}, "another definition: it divides by other tokens than ours"),
        ({"input_tokens": ""}, "its source doesn't say how many tokens went in"),
        ({"value": "0"}, "it is printed as 0"),
        ({"new_tokens": "17"}, "the run has no cell of 256→17 tokens"),
        ({"metric": "time_to_first_token_p99", "unit": "s"}, "40 observations are too few for a p99"),
    ],
)
def test_a_row_that_has_no_counterpart_says_why(changes: dict[str, str], why: str):
    run = a_run(in_waves(np.random.default_rng(1)))
    found, left_out = beside([one(**changes)], run.run, run.summary, batches=False)
    assert not found
    assert why in left_out[0].why


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (lines(batch="0"), "own.csv, line 2: batch '0' is no whole number from 1 up"),
        (lines(batch=""), "own.csv, line 2: batch '' is no whole number from 1 up"),
        (lines(input_tokens="many"), "own.csv, line 2: input_tokens 'many' is no whole number from 1 up; leave"),
        (lines(metric="speed"), "own.csv, line 2: metric 'speed' is none that can be compared: write one of"),
        (lines(unit="ms"), "own.csv, line 2: unit 'ms' is no unit of throughput_output_only: write tok/s"),
        (lines(value="fast"), "own.csv, line 2: value 'fast' is no number from 0 up, such as 1.8"),
        (lines(value="-1"), "own.csv, line 2: value '-1' is no number"),
        (lines(value="inf"), "own.csv, line 2: value 'inf' is no number"),
        (lines(source=""), "own.csv, line 2: source '' is empty: say where"),
        (lines(source="a,b"), "own.csv, line 2 has another number of values than of columns: quote"),
        ([lines()[0]], "own.csv has no figure"),
        ([], "own.csv, line 1 lacks source, commit"),
        (["source;value", "a;1"], "own.csv, line 1 lacks source, commit, date, model"),
        ([lines()[0] + ",note", lines()[1] + ",x"], "own.csv, line 1 has note: its columns must be"),
    ],
)  # fmt: skip
def test_a_fault_in_a_table_is_named_with_its_line_its_value_and_the_remedy(table: list[str], said: str):
    with pytest.raises(TableError) as refused:
        read(table, "own.csv")
    assert said in str(refused.value)


# The command


def stored(folder: Path, samples: list[Sample], **changes: Any) -> str:
    folder.mkdir(parents=True)
    write_samples(folder / "samples.jsonl", samples)
    (folder / "run.json").write_text(json.dumps(a_run(samples, folder.name, **changes).run))
    return str(folder)


def compare(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["compare", *words])
    return int(done.value.code or 0)


def test_a_run_beside_the_published_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = stored(tmp_path / "run", measured())
    assert compare(run, "--published", "llama2-7b-inf2", "--chart", str(tmp_path / "c.svg")) == 0
    shown = capsys.readouterr().out
    for words in ("632 tokens/s", "5.0 s", "no HTTP", "prefilled as one batch", "doubtful", "of one run"):
        assert words in shown
    assert "L 256→768  throughput_total_tokens_per_s" in (tmp_path / "c.svg").read_text(encoding="utf-8")
    assert compare(run, "--published", "llama2-13b-inf2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["compared"]) == 18
    assert {each["model"] for each in said["compared"]} == {"Llama-2-13B"}


def test_runs_against_runs_and_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(5)
    slow = [stored(tmp_path / f"a{n}", in_waves(rng, shift=1.3)) for n in range(5)]
    fast = [stored(tmp_path / f"b{n}", in_waves(rng)) for n in range(5)]
    gate = ("--fail-on", "ttft_p50 > 5%")
    assert compare(*slow, "--to", *fast, *gate, "--chart", str(tmp_path / "c.png")) == 1
    assert "FAILS: ttft_p50 > 5%, T 256→16" in capsys.readouterr().out
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert compare(*fast, "--to", *slow, *gate, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["verdict"] for each in said["differences"] if each["measure"] == "ttft_p50"} == {"better"}
    assert [each["fired"] for each in said["gate"]] == [False]
    assert [(each["cell"], each["measure"]) for each in said["measures_left_out"]] == [("T 256→16", "itl_p99")]
    assert compare(slow[0], "--to", fast[0], *gate) == 0
    assert "too noisy to say" in capsys.readouterr().out
    assert compare(slow[0], "--to", fast[0], *gate, "--trust-within-run") == 1


def test_a_gate_on_fewer_than_ten_waves_names_the_measure_that_it_can_be_held_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(7)
    slow = [stored(tmp_path / f"a{n}", in_waves(rng, waves=4, shift=1.3)) for n in range(5)]
    fast = [stored(tmp_path / f"b{n}", in_waves(rng, waves=4)) for n in range(5)]
    assert compare(*slow, "--to", *fast, "--fail-on", "throughput_output < -5%") == 2
    why = "4 observations, p50 takes 10 (every run): measure longer, or ask for throughput_output_mean"
    shown = capsys.readouterr()
    assert f"not compared: T 256→16 throughput_output: {why}" in shown.out
    assert f"so the rule would never fire: {why}" in shown.err
    assert compare(*slow, "--to", *fast, "--fail-on", "throughput_output_mean < -5%") == 1
    assert "FAILS: throughput_output_mean < -5%, T 256→16" in capsys.readouterr().out


def test_what_cannot_be_compared_exits_with_2_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(6)
    a, b = stored(tmp_path / "a", in_waves(rng)), stored(tmp_path / "b", in_waves(rng, users=8))
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe")
    for words, said in (
        ((a, "--to", b), "no cell can be compared"),
        ((a, "--to", a), "a in B is the run that is already there as a in A"),
        ((a, "--to", str(tmp_path / "nowhere")), "nowhere can't be compared"),
        ((a, "--reference", str(tmp_path / "nowhere.csv")), "nowhere.csv: No such file"),
        ((a, "--reference", str(tmp_path / "bad.csv")), "isn't UTF-8 at byte 0"),
        ((a, "--published", "llama2-7b-inf2"), "none of these figures can be compared"),
        ((a, b, "--published", "llama2-7b-inf2"), "stand beside one run, 2 are named"),
        ((a, "--published", "llama2-7b-inf2", "--margin", "5%"), "--margin is for runs against runs"),
        ((a, "--to", b, "--fail-on", "ttft_p50 > 5"), "--fail-on 'ttft_p50 > 5' is no rule"),
        ((a, "--to", b, "--chart", "x.jpg"), "its name must end in .png, .svg, .pdf"),
    ):
        assert compare(*words) == 2, words
        assert said in capsys.readouterr().err
