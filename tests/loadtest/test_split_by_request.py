"""The split of TTFT by request: parts add up to what the client measured, in the summary, the table and the picture.

Method: samples of chosen instants with chosen server times, through samples.jsonl and `report.write`. Sums agree to
1e-12 s; printed figures to their last digit.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import image
from matplotlib.colors import to_hex

from loadtest.endpoints.openai import OpenAiEndpoint
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.endpoints.timing import told
from loadtest.plan import Asked, Cell
from loadtest.report import write
from loadtest.sample import Got, Sample, write_samples
from loadtest.split.by_request import split
from loadtest.sse import ServerSentEvent
from loadtest.verdict import Verdict

MS = 1_000_000
RUN = {
    "schema": 1,
    "run": "r",
    "tool": {"name": "tokenclock", "version": "0"},
    "created": "2026-11-28T00:00:00Z",
    "command": ["tokenclock", "run"],
    "plan": None,
    "configs": [],
    "waves": None,
    "seed": 1,
    "options": {},
    "endpoints": [],
    "machine": {},
    "versions": {},
    "processes": [{"process": 0, "host": "here", "pid": 1, "start": {"mono_ns": 0, "wall_ns": 0}, "end": None}],
    "client": [],
    "open_loop": None,
    "interrupted": False,
}


def sample(number: int, ttft_ms: float, server: object, users: int = 4, *, streamed: bool = True) -> Sample:
    """A complete request whose only token came after `ttft_ms`."""
    begun = 1_000 * number * MS
    end = begun + int(ttft_ms * MS)
    return Sample(
        run="r",
        id=str(number),
        process=0,
        user=0,
        cell=Cell(None, None, users, 100, 1),
        phase="steady",
        got=Got(100, 1, "server"),
        scheduled_ns=begun,
        connect_ns=None,
        started_ns=begun,
        sent_ns=begun,
        headers_ns=begun,
        events=((end, 1, 1),),
        first_text_ns=end,
        ended_ns=end,
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
        server=server,  # type: ignore[arg-type]
        streamed=streamed,
    )


def tells(queue_ms: float, prefill_ms: float) -> dict[str, float]:
    return {"queue_s": queue_ms / 1e3, "prefill_s": prefill_ms / 1e3, "decode_s": 0.0}


def written(folder: Path, samples: list[Sample]) -> str:
    write_samples(folder / "samples.jsonl", samples)
    (folder / "run.json").write_text(json.dumps(RUN), encoding="utf-8")
    return write(folder).read_text(encoding="utf-8")


def texts(svg: Path) -> list[str]:
    nodes = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()).strip() for node in nodes]


#: Ten times nobody waits, once somebody waits for very long: no sum of medians is a median.
SKEWED = [sample(i, 30.0 + 2 * i, tells(0.5, 28.0 + i)) for i in range(10)] + [sample(10, 900.0, tells(850.0, 29.0))]


def test_the_parts_add_up_to_the_mean_of_the_same_requests():
    found = split([*SKEWED, sample(11, 5_000.0, None)])
    assert found is not None
    assert (found["of"], found["n"]) == ("ttft_s", 11)
    assert found["mean_s"] == pytest.approx((10 * 39 + 900) / 11 / 1e3, abs=1e-12)
    assert sum(found["parts"].values()) == pytest.approx(found["mean_s"], abs=1e-12)
    assert found["parts"]["queue_s"] == pytest.approx((10 * 0.5 + 850) / 11 / 1e3, abs=1e-12)
    assert found["parts"]["network_s"] == pytest.approx((10 * 1.5 + 45 + 21) / 11 / 1e3, abs=1e-12)
    assert found["negative"] == {"n": 0, "least_s": None}


def test_a_server_that_tells_more_than_the_client_waited_is_told_and_not_cut_to_nothing(tmp_path: Path):
    report = written(tmp_path, [sample(i, 30.0, tells(1.0, 20.0 if i else 36.0)) for i in range(4)])
    (cell,) = json.loads((tmp_path / "summary.json").read_text())["cells"]
    assert cell["split"]["negative"] == {"n": 1, "least_s": pytest.approx(-0.007, abs=1e-12)}
    assert cell["split"]["parts"]["network_s"] == pytest.approx((3 * 0.009 - 0.007) / 4, abs=1e-12)
    assert "4 users 100→1: of 1 of 4 requests the server tells more than the client waited, by up to 7.00 ms" in report


def test_a_bar_whose_remainder_is_negative_still_adds_up(tmp_path: Path):
    report = written(tmp_path, [sample(0, 30.0, tells(2.0, 36.0))])
    assert "30.00 = −8.00 + 2.00 + 36.00" in texts(tmp_path / "split.svg")
    assert "| 4 users 100→1 | 1 | 30.00 ms | -8.00 ms (-27 %) | 2.00 ms (7 %) | 36.00 ms (120 %) |" in report


def test_the_picture_and_the_table_show_the_means_of_every_cell_that_was_told(tmp_path: Path):
    alone = [replace(s, id=f"a{s.id}", cell=Cell(None, None, 1, 100, 1), server=tells(0.0, 20.0)) for s in SKEWED[:10]]
    silent = sample(20, 1.0, None, users=9)
    report = written(tmp_path, [*SKEWED, *alone, silent])
    assert "![What the TTFT consists of](split.png)" in report
    assert "| 4 users 100→1 | 11 | 117.3 ms | 7.4 ms (6 %) | 77.7 ms (66 %) | 32.2 ms (27 %) |" in report
    assert "| 1 user 100→1 | 10 | 39.00 ms | 19.00 ms (49 %) | 0.00 ms (0 %) | 20.00 ms (51 %) |" in report
    shown = texts(tmp_path / "split.svg")
    assert {"117.3 = 7.4 + 77.7 + 32.2", "39.00 = 19.00 + 0.00 + 20.00"} <= set(shown)
    assert {"network + client", "queue", "prefill", "mean of requests (ms)"} <= set(shown)
    assert not any("9 users" in text for text in shown)
    pixels = image.imread(tmp_path / "split.png")
    seen = {to_hex(colour) for colour in pixels[::2, ::2, :3].reshape(-1, 3)}
    assert {"#56b4e9", "#e69f00", "#0072b2"} <= seen
    again = tmp_path / "again"
    again.mkdir()
    written(again, [*SKEWED, *alone, silent])
    assert all(
        (again / f"split.{kind}").read_bytes() == (tmp_path / f"split.{kind}").read_bytes() for kind in ("png", "svg")
    )


def test_a_label_with_what_matplotlib_takes_for_a_formula_is_drawn_as_it_is(tmp_path: Path):
    cell = Cell(None, None, 4, None, None, dataset="a$b^{$.jsonl")
    written(tmp_path, [replace(sample(0, 30.0, tells(2.0, 3.0)), cell=cell, asked=Asked(100, 1))])
    assert "4 users, dataset a$b^{$.jsonl" in texts(tmp_path / "split.svg")


@pytest.mark.parametrize(
    "server",
    [
        None,
        {},
        {"queue_s": 0.001},
        {"queue_s": 0.01, "prefill_s": "soon"},
        {"queue_s": 0.01, "prefill_s": True},
        {"queue_s": 0.01, "prefill_s": -0.001},
        {"queue_s": None, "prefill_s": [1], "batch_sizes": {"x": 1, "2": "y"}},
        {"batch_sizes": 7},
    ],
)
def test_what_is_no_duration_splits_nothing_and_breaks_no_report(tmp_path: Path, server: object):
    report = written(tmp_path, [sample(0, 30.0, server)])
    (cell,) = json.loads((tmp_path / "summary.json").read_text())["cells"]
    assert cell["split"] is None
    assert not (tmp_path / "split.png").exists()
    assert "consists of" not in report


# Replies that came whole


def test_the_latency_of_a_whole_reply_is_split_as_its_headers_tell(tmp_path: Path):
    tgi = {"validation_s": 0.001, "queue_s": 0.010, "inference_s": 0.080}
    report = written(tmp_path, [sample(i, 100.0, tgi, streamed=False) for i in range(3)])
    assert "| cell | requests | mean latency | network + client | validation | queue | inference |" in report, (
        "there is no first token to speak of"
    )
    assert "| 4 users 100→1 | 3 | 100.0 ms | 9.0 ms (9 %) | 1.0 ms (1 %) | 10.0 ms (10 %) | 80.0 ms (80 %) |" in report
    ours = split([sample(0, 100.0, tells(10.0, 30.0) | {"decode_s": 0.05}, streamed=False)])
    assert ours is not None
    assert ours["parts"] == pytest.approx({"network_s": 0.01, "queue_s": 0.01, "prefill_s": 0.03, "decode_s": 0.05})


def test_without_a_queue_told_the_remainder_is_called_what_it_is(tmp_path: Path):
    report = written(tmp_path, [sample(0, 100.0, {"prefill_s": 0.06, "decode_s": 0.5})])
    assert "| cell | requests | mean TTFT | network + client + queue | prefill |" in report
    assert "| 4 users 100→1 | 1 | 100.0 ms | 40.0 ms (40 %) | 60.0 ms (60 %) |" in report
    assert "network + client + queue" in texts(tmp_path / "split.svg")
    whole = split([sample(0, 700.0, {"prefill_s": 0.06, "decode_s": 0.5}, streamed=False)])
    assert whole is not None
    assert whole["parts"] == pytest.approx({"network_and_queue_s": 0.14, "prefill_s": 0.06, "decode_s": 0.5})


def test_a_stream_is_not_split_by_times_that_include_its_decoding():
    assert split([sample(0, 100.0, {"validation_s": 0.0, "queue_s": 0.01, "inference_s": 0.08})]) is None


TGI = {"x-validation-time": "1", "x-queue-time": "12", "x-inference-time": "340", "x-total-time": "353"}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (TGI, {"validation_s": 0.001, "queue_s": 0.012, "inference_s": 0.34}),
        ({**TGI, "x-queue-time": "1e3"}, {"validation_s": 0.001, "inference_s": 0.34}),
        ({"x-queue-time": "-4"}, None),
        ({"x-queue-time": "9" * 400}, None),
        ({"x-queue-time": "²"}, None),
        ({**TGI, "x-tokenclock-timing": '{"queue_s": 0.5}'}, {"queue_s": 0.5}),
        ({**TGI, "x-tokenclock-timing": "[{}, {}]"}, None),
        ({"x-tokenclock-timing": "{"}, None),
        ({}, None),
    ],
)
def test_headers_tell_the_servers_times_or_nothing(headers: dict[str, str], said: object):
    assert told(headers) == said


def test_both_protocols_read_the_headers_of_a_whole_reply():
    times = told(TGI)
    body = b'{"generated_text": "hi", "details": {"finish_reason": "length", "generated_tokens": 1}}'
    assert TgiEndpoint(streams=False).read_whole(body, TGI).server == times
    body = b'{"choices": [{"text": "hi", "finish_reason": "length"}]}'
    assert OpenAiEndpoint("completions", "m", streams=False).read_whole(body, TGI).server == times


TIMINGS = b'"timings": {"prompt_n": 5, "prompt_ms": 320.5, "predicted_n": 2, "predicted_ms": 44}'


@pytest.mark.parametrize(
    "chunk",
    [
        b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], %s}',
        b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}, %s}',
    ],
)
def test_llama_cpps_timings_come_with_the_last_chunk_or_with_the_usage(chunk: bytes):
    endpoint = OpenAiEndpoint("chat", "m")
    assert endpoint.read(ServerSentEvent("message", chunk % TIMINGS, None)).server == {
        "prefill_s": 0.3205,
        "decode_s": 0.044,
    }
    assert endpoint.read(ServerSentEvent("message", chunk % b'"timings": {"prompt_ms": "x"}', None)).server is None
    assert endpoint.read(ServerSentEvent("message", chunk % b'"timings": [1]', None)).server is None


def test_llama_cpps_timings_of_a_whole_reply_are_read_too():
    endpoint = OpenAiEndpoint("completions", "m", streams=False)
    body = b'{"choices": [{"text": "hi", "finish_reason": "length"}], %s}' % TIMINGS
    assert endpoint.read_whole(body, {}).server == {"prefill_s": 0.3205, "decode_s": 0.044}
    assert endpoint.read_whole(body, TGI).server == told(TGI), "what was asked for goes before"


def test_the_tables_columns_add_up_as_they_are_printed(tmp_path: Path):
    """Whatever the sizes of the parts: within what rounding three of them and the whole can do."""
    samples = [sample(0, 1234.5678, tells(0.04321, 1111.1)), sample(1, 3.21987, tells(0.3, 1.111), users=1)]
    report = written(tmp_path, samples)
    rows = re.findall(r"^\| [14] users? 100→1 \| 1 \| (.*%\)) \|$", report, re.M)
    assert len(rows) == 2
    for row in rows:
        whole, *parts = (float(re.match(r"[-\d.]+", entry)[0]) for entry in row.split(" | "))  # type: ignore[index]
        digit = 10.0 ** -len(re.match(r"\d+\.(\d+)", row)[1])  # type: ignore[index]
        assert sum(parts) == pytest.approx(whole, abs=2 * digit)
