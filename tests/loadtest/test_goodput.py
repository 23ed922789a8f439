"""Goodput counts the requests that met every objective, and demands what it was told to.

Method: a closed loop of chosen times, counted by hand; the report of its folder as the command writes it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.goodput import GoodputError, goodput, misses, parse
from loadtest.plan import Cell
from loadtest.sample import Sample, write_samples
from loadtest.verdict import Verdict
from tests.loadtest.runs import a_run, request

CELL = Cell(None, 1, 1, 256, 11)


def loop(n: int = 10) -> list[Sample]:
    """One request a second, n s of wall in all: TTFT 100, 200, … ms, then ten steps of 10, 20, … ms."""
    made = [request(CELL, i, 1000 * i, 100.0 * (i + 1), 10.0 * (i + 1), 0) for i in range(n)]
    return [*made[:-1], replace(made[-1], ended_ns=n * 1_000_000_000)]


def test_a_request_is_good_where_it_met_every_objective_and_a_limit_is_met_by_what_equals_it():
    found = goodput(loop(), {}, parse(["ttft:500", "tpot:40", "e2el:1600"]))
    assert found == {
        "met": 4,
        "of": 10,
        "share": 0.4,
        "missed": {"ttft": 5, "tpot": 6, "e2el": 2},
        "not_complete": 0,
        "goodput_rps": pytest.approx(0.4),
    }


def test_a_request_that_failed_met_nothing_but_took_its_time():
    samples = loop()
    samples[0] = replace(samples[0], verdict=Verdict.TRUNCATED)
    found = goodput(samples, {}, parse(["ttft:500"]))
    assert (found["met"], found["not_complete"], found["goodput_rps"]) == (4, 1, pytest.approx(0.4))


def test_machines_clocks_are_not_mixed():
    there = [replace(s, process=1, scheduled_ns=s.scheduled_ns + 10**15, ended_ns=s.ended_ns + 10**15) for s in loop()]
    found = goodput([*loop(), *there], {0: "here", 1: "there"}, parse(["ttft:500"]))
    assert found["goodput_rps"] == pytest.approx(1.0)


def test_waves_have_a_share_and_no_rate_and_one_token_meets_any_tpot():
    cell = replace(CELL, new_tokens=1)
    samples = [request(cell.in_wave(i), i, 1000 * i, 100, 10, 0) for i in range(10)]
    found = goodput(samples, {}, parse(["tpot:1"]))
    assert (found["share"], found["goodput_rps"]) == (1, None)


def test_a_reply_that_came_whole_has_no_first_token_to_judge():
    whole = replace(loop(1)[0], streamed=False)
    assert misses(whole, parse(["e2el:1"])) == ["e2el"]
    with pytest.raises(GoodputError, match="leave ttft out"):
        misses(whole, parse(["ttft:500"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ttft"], "'ttft' is no objective: write objectives as ttft:500 tpot:50 e2el:5000"),
        (["itl:5"], "'itl:5' is no objective"),
        (["ttft:0"], "'0' is no time above 0"),
        (["ttft:1s"], "'1s' is no time above 0"),
        (["ttft:nan"], "'nan' is no time above 0"),
        (["ttft:1", "ttft:2"], "ttft is there twice"),
    ],
)
def test_what_is_no_objective_is_refused_with_one_that_is(words: list[str], said: str):
    with pytest.raises(GoodputError) as refused:
        parse(words)
    assert said in str(refused.value)


def report(folder: Path, *words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["report", str(folder), *words])
    return int(done.value.code or 0)


def test_a_report_counts_by_other_objectives_and_fails_where_fewer_are_met_than_demanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    samples = loop()
    write_samples(tmp_path / "samples.jsonl", samples)
    said = {**a_run(samples).run, "options": {"goodput": ["ttft:500"]}}
    (tmp_path / "run.json").write_text(json.dumps(said))
    assert report(tmp_path) == 0
    assert "| 1 user 256→11 | 5 | 10 | 50.0 % | 0.500 requests/s | 5 | 0 |" in (tmp_path / "report.md").read_text()
    assert report(tmp_path, "--goodput", "ttft:900", "--goodput-share", "90%") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["goodput"] == {
        "objectives_s": {"ttft": 0.9},
        "demanded_share": 0.9,
    }
    assert report(tmp_path, "--goodput", "ttft:900", "--goodput-share", "0.91") == 1
    assert (
        "not good enough: 1 user 256→11: 9 of 10 requests (90.0 %) met every objective, 91 % are demanded"
        in capsys.readouterr().err
    )
    assert report(tmp_path, "--goodput", "ttft:") == 2


def test_a_share_of_nothing_and_a_first_token_of_whole_replies_are_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
):
    free = ["run", "--url", "http://127.0.0.1:1", "-u", "1", "-t", "1s"]
    for words, said in (
        (["--goodput-share", "95%"], "add it, or leave the share out"),
        (["--no-stream", "--goodput", "ttft:5"], "leave one of them out"),
    ):
        with pytest.raises(SystemExit) as done:
            main([*free, *words])
        assert done.value.code == 2
        assert said in capsys.readouterr().err
