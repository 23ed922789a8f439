"""What is kept of an interrupted run, what is left of its plan, and which words are refused when it goes on.

Method: samples in chosen waves, and run.json as a run writes it; only files, no process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.__main__ import dispatch, parser
from loadtest.arguments import Usage
from loadtest.endpoints.base import EndpointError
from loadtest.kept import NOTHING, kept
from loadtest.plan import Cell
from loadtest.record import Recorder
from loadtest.resume import asked_again, reopened
from loadtest.sample import Got, Sample, read_samples
from loadtest.summary import summarise
from loadtest.verdict import Verdict

CELL = Cell("T", 4, 4, 256, 1)
BEGUN = {"config": "T", "protocol": "tgi", "url": "http://x", "info": {"model_id": "m", "created": 1}, "command": None}
MS = 1_000_000


def request(wave: int, user: int, process: int = 0, phase: str = "steady", at_ms: int = 0, cell: Cell = CELL) -> Sample:
    begin = (1000 + 100 * wave + at_ms) * MS
    return Sample(
        run="r",
        id=f"{process}-{phase}-{wave}-{user}",
        process=process,
        user=user,
        cell=cell.in_wave(wave),
        phase=phase,
        got=Got(256, 1, "server"),
        scheduled_ns=begin,
        connect_ns=None,
        started_ns=begin,
        sent_ns=begin,
        headers_ns=begin,
        events=((begin + 5 * MS, 1, 0),),
        first_text_ns=begin + 5 * MS,
        ended_ns=begin + 6 * MS,
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
    )


def wave(number: int, users: int = 4, **more: Any) -> list[Sample]:
    return [request(number, user, **more) for user in range(users)]


# What is kept, what is left


def test_a_wave_counts_when_every_request_of_it_is_there_whatever_came_of_it():
    timed_out = [replace(each, verdict=Verdict.TIMEOUT) for each in wave(1)]
    found = kept([*wave(0), *timed_out, *wave(2, users=3)], [BEGUN])
    assert found.lacking([CELL], 10) == [(CELL, 8, 3)], "the number of the wave that was cut isn't used again"
    assert found.lacking([CELL], 2) == []


def test_requests_of_warm_up_and_drain_make_no_wave_and_use_their_numbers():
    found = kept([*wave(0, phase="warmup"), *wave(5, phase="drain")], [BEGUN])
    assert found.lacking([CELL], 2) == [(CELL, 2, 6)]


def test_requests_of_two_processes_make_no_wave():
    found = kept([*wave(0, users=2), *(request(0, user, process=1) for user in (2, 3))], [BEGUN])
    assert found.lacking([CELL], 2) == [(CELL, 2, 1)]


def test_a_plan_of_which_there_is_nothing_lacks_everything():
    other = replace(CELL, new_tokens=2)
    assert NOTHING.lacking([CELL, other], 3) == [(CELL, 3, 0), (other, 3, 0)]


@pytest.mark.parametrize(
    ("protocol", "info", "slots", "said"),
    [
        ("openai-chat", {"model_id": "m"}, 4, "it speaks openai-chat, not tgi"),
        ("tgi", {"model_id": "n"}, 4, "its model_id is 'n', not 'm'"),
        ("tgi", {"model_id": "m"}, 1, "it has 1 slot, not 4 slots"),
        ("tgi", None, None, "it has an unknown number of slots, not 4 slots; its model_id is None, not 'm'"),
    ],
)
def test_an_endpoint_that_is_another_is_refused(protocol: str, info: Any, slots: int | None, said: str):
    found = kept(wave(0), [BEGUN])
    with pytest.raises(
        EndpointError, match=f"http://y is not the endpoint that T was begun with: {said}; bring that one"
    ):
        found.check("T", "http://y", protocol, info, slots)


def test_what_changes_with_every_answer_makes_no_other_endpoint_and_one_without_samples_may_be_any():
    found = kept(wave(0), [BEGUN])
    found.check("T", "http://y", "tgi", {"model_id": "m", "created": 2}, 4)
    found.check("L", "http://y", "openai-chat", None, 1)


# The folder


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., Path]:
    """A folder as a killed run leaves it, of `tokenclock run` and these words."""

    def folder(*words: str, plan: str | None = "published") -> Path:
        asked = parser().parse_args(["run", "--url", "http://127.0.0.1:1", *words])
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
        recorder = Recorder(tmp_path, "x", plan=plan, configs=["T"], waves=2, seed=7, options=options)
        recorder.endpoint("T", "http://127.0.0.1:1", "tgi", {"model_id": "m"}, None)
        for each in wave(0):
            recorder.add(each)
        recorder.release()  # and nothing else: it was killed
        return recorder.folder

    return folder


def test_half_a_last_line_is_cut_off_and_the_rest_stays(begun: Callable[..., Path]):
    folder = begun()
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"half')
    recorder, found = reopened(folder)
    assert recorder.go_on() == len('{"half')
    recorder.add(request(1, 0, process=1))
    recorder.close(interrupted=True)
    assert [each.id for each in read_samples(folder / "samples.jsonl")] == [
        *(each.id for each in wave(0)),
        "1-steady-1-0",
    ]
    about = json.loads((folder / "run.json").read_text())
    assert [each["process"] for each in about["processes"]] == [0, 1]
    assert about["processes"][0]["end"] is None
    assert about["processes"][1]["end"] is not None
    assert found.lacking([CELL], 2) == [(CELL, 1, 1)]


def test_a_run_without_a_single_sample_goes_on_from_the_beginning(begun: Callable[..., Path]):
    folder = begun()
    (folder / "samples.jsonl").write_bytes(b"")
    recorder, found = reopened(folder)
    assert recorder.go_on() == 0
    assert found.lacking([CELL], 2) == [(CELL, 2, 0)]
    recorder.close(interrupted=True)


def test_a_folder_that_a_process_still_writes_in_is_refused(begun: Callable[..., Path]):
    folder = begun()
    recorder, _ = reopened(folder)
    with pytest.raises(Usage, match=r"a process still measures in .*: wait for its end, or interrupt it"):
        reopened(folder)
    recorder.close(interrupted=True)
    reopened(folder)[0].close(interrupted=True)


def test_a_line_that_is_no_sample_is_refused(begun: Callable[..., Path]):
    folder = begun()
    with (folder / "samples.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(Usage, match=r"samples\.jsonl, line 5: not a sample: .*begin a new one"):
        reopened(folder)


def test_nothing_measured_leaves_run_json_as_it_was(begun: Callable[..., Path]):
    folder = begun()
    before = (folder / "run.json").read_bytes()
    recorder, _ = reopened(folder)
    recorder.go_on()
    assert (folder / "run.json").read_bytes() != before
    recorder.close(interrupted=True)
    recorder.discard()
    assert (folder / "run.json").read_bytes() == before


# The words


def again(folder: Path, *words: str) -> Any:
    return asked_again(folder, lambda begun: parser(begun).parse_args(["run", "--resume", str(folder), *words]))


def test_options_are_those_of_the_run(begun: Callable[..., Path]):
    said = ("--plan", "published", "--config", "T", "-n", "2", "--timeout", "90s", "--extra-body", '{"a": [1]}')
    asked = again(begun(*said, "--allow", "timeout"), "--allow", "saturated", "--no-calibrate", "--timeout", "1m30s")
    assert (asked.url, asked.plan, asked.config, asked.waves) == ("http://127.0.0.1:1", "published", "T", 2)
    assert (asked.timeout, asked.extra_body, asked.seed) == (90.0, {"a": [1]}, 7)
    assert (asked.allow, asked.no_calibrate) == (["timeout", "saturated"], True)


@pytest.mark.parametrize(
    ("begin", "words", "sentence"),
    [
        ([], ["-n", "9"], "--waves 9 isn't what the run was begun with (nothing), and what is measured can't change"),
        (["--transport", "httpx"], ["--transport", "gevent"], "--transport gevent isn't what the run was begun with"),
        ([], ["--url", "http://127.0.0.1:2"], "--url http://127.0.0.1:2 isn't what the run was begun with (http://127"),
        ([], ["--seed", "8"], "--seed 8 isn't what the run was begun with (7)"),
        ([], ["-u", "3"], "--users 3 isn't what the run was begun with (nothing)"),
        ([], ["--results", "there"], "--results there isn't what the run was begun with (results)"),
        (
            ["--api-key", "sk-abcdef"],
            [],
            "begun with --api-key, and keys are never stored: say it again, or set $HF_TOKEN",
        ),
        (["--header", "x-key: abcdef"], [], "begun with --header x-key, whose values are never stored: say it again"),
        (["--header", "x-key: abcdef"], ["--header", "y-key: abcdef"], '--header [["y-key", "[hidden]"]] isn\'t what'),
        (
            ["--extra-body", '{"api_key": "abcdef"}'],
            [],
            "--extra-body of the run held a key, and keys are never stored",
        ),
    ],
)
def test_words_that_would_change_the_run_are_refused(
    begun: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    begin: list[str],
    words: list[str],
    sentence: str,
):
    for variable in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    words = ["run", "--resume", str(begun(*begin)), *words]
    assert dispatch(parser().parse_args(words), words) == 2
    assert sentence in capsys.readouterr().err


def test_keys_that_are_said_again_are_taken(begun: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    keys = ["--api-key", "sk-abcdef", "--header", "x-key: abcdef", "--extra-body", '{"api_key": "ghijkl"}']
    folder = begun(*keys)
    assert "abcdef" not in (folder / "run.json").read_text()
    asked = again(folder, *keys)
    assert (asked.api_key, asked.header, asked.extra_body) == (
        "sk-abcdef",
        [("x-key", "abcdef")],
        {"api_key": "ghijkl"},
    )
    monkeypatch.setenv("HF_TOKEN", "hf_123456")
    assert again(folder, *keys[2:]).api_key is None, "the environment's is taken where it is needed"


def test_what_is_no_interrupted_plan_is_refused(begun: Callable[..., Path], tmp_path: Path):
    with pytest.raises(Usage, match=r"nowhere can't be gone on with: .*it needs samples.jsonl and run.json of a run"):
        again(tmp_path / "nowhere")
    with pytest.raises(
        Usage, match="is a free run, whose rates are those of one uninterrupted stretch: `tokenclock rep"
    ):
        again(begun("-u", "2", plan=None))
    folder = begun()
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"tool": {"name": "tokenclock", "version": "0.0.1"}}))
    with pytest.raises(Usage, match=r"was begun with version 0\.0\.1, this is .*: go on with that one"):
        again(folder)


# The figures


def test_a_cell_in_two_parts_is_one_cell_and_the_first_call_is_that_of_the_first_boot():
    """The second process's monotonic clock began anew: the machine was started again between."""
    old = [*wave(0, phase="warmup", at_ms=50_000), *wave(0, at_ms=50_000), *wave(1, users=3, at_ms=50_000)]
    new = [each for phase, number in (("warmup", 2), ("steady", 2)) for each in wave(number, process=1, phase=phase)]
    slow = [replace(each, events=((each.scheduled_ns + 40 * MS, 1, 0),)) for each in new]
    clocks = [{"mono_ns": 50_000 * MS, "wall_ns": 10**18}, {"mono_ns": 1_000 * MS, "wall_ns": 10**18 + 60 * 10**9}]
    seen = {"config": "T", "concurrency": 4, "input_tokens": 256, "new_tokens": 1, "hub_lag_p50_s": 0.0, "cpu": 0.1}
    about = {
        "run": "r",
        "plan": "published",
        "configs": ["T"],
        "waves": 2,
        "options": {},
        "processes": [
            {"process": n, "host": "h", "pid": n, "start": each, "end": None} for n, each in enumerate(clocks)
        ],
        "client": [
            seen | {"hub_lag_p99_s": lag, "hub_lag_max_s": lag, "hub_lag_samples": 1000} for lag in (0.5, 0.001)
        ],
        "resumed": [{"process": 1, "at": "2026-11-28T08:00:00Z", "command": [], "cut_bytes": 9, "machine": None}],
        "interrupted": False,
    }
    summary = summarise([*slow, *old], about)
    (entry,) = summary["cells"]
    assert entry["waves"] == {"counted": 2, "failed": 0, "unfinished": 1}
    assert entry["metrics"]["encoding_time_s"]["max"] == pytest.approx(0.040), "no instants of two processes met"
    assert summary["cold"][0]["ttft_s"] == pytest.approx(0.005)
    assert entry["client"]["hub_lag_p99_s"] == 0.5, "the worse of the two parts"
    assert "T 256→1 (2)" in next(note for note in summary["notes"] if note.startswith("measured in parts"))
    assert any("went on at 2026-11-28T08:00:00Z as process 1; half a last line, 9 bytes" in n for n in summary["notes"])
