"""What several processes share is shared out whole: prompts, shapes, names of machines, the verdict on the client.

Method: shares put together again and compared with what was shared.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from loadtest import trust
from loadtest.arrivals import KINDS, Arrivals
from loadtest.calibrate.shape import Shape
from loadtest.datasets import DatasetPrompts, parse
from loadtest.distributed.crew import Member
from loadtest.distributed.facts import processes, same_endpoint
from loadtest.distributed.spread import sendable
from loadtest.plan import Cell
from loadtest.redaction import options as shown
from loadtest.sample import Got, Sample
from loadtest.verdict import Verdict

CELL = Cell(None, None, 4, 8, 2)


def member(process: int, host: str, boot: str, **found: Any) -> Member:
    who = {"process": process, "host": host, "pid": 7, "start": {"mono_ns": 1, "wall_ns": 2}, "end": None, "boot": boot}
    told = {"who": who, "found": {"protocol": "tgi", "cell": {"slots": 4}, **found}}
    return Member(f"uid-{process}", process, answers={"task": told})


def sample(process: int, number: int, late_ns: int) -> Sample:
    begin = number * 10**9
    return Sample(
        run="r", id=f"{process}-{number}", process=process, user=0, cell=CELL, phase="steady",
        got=Got(8, 2, "server"), scheduled_ns=begin, connect_ns=None, started_ns=begin + late_ns, sent_ns=None,
        headers_ns=None, events=((begin + 10**8, 1, 1), (begin + 2 * 10**8, 1, 2)), first_text_ns=None,
        ended_ns=begin + 3 * 10**8, clock="kernel", transport="gevent", verdict=Verdict.COMPLETE, detail=None,
        status=200,
    )  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_dataset_is_dealt_out_before_any_line_comes_again(processes: int):
    lines = b"".join(json.dumps({"prompt": f"p{i}"}).encode() + b"\n" for i in range(12))
    dealt = [DatasetPrompts(parse(lines, "d", 4), "shuffle", "7").among(i, processes) for i in range(processes)]
    drawn = [each.drawn_for(CELL)[0] for _ in range(12 // processes) for each in dealt]
    assert sorted(drawn) == sorted(f"p{i}" for i in range(12))
    again = [each.drawn_for(CELL)[0] for _ in range(12 // processes) for each in dealt]
    assert again == drawn


@pytest.mark.parametrize("kind", KINDS)
def test_the_dealt_schedules_are_the_schedule(kind: Any):
    arrivals = Arrivals(kind, 50, seed=3)
    shares = [list(islice(arrivals.offsets_ns(), i, 300, 3)) for i in range(3)]
    assert sorted(each for share in shares for each in share) == list(islice(arrivals.offsets_ns(), 300))


def test_a_processs_share_of_a_shape_is_no_lighter_than_its_load():
    shape = Shape(7, 8, 20, 0.1, 0.01)
    assert shape.among(2).concurrency == 4
    open_ = replace(shape, arrivals=Arrivals("poisson", 30.0)).among(3)
    assert open_.arrivals is not None
    assert (open_.arrivals.rate_per_s, open_.concurrency) == (10.0, 3)


def test_machines_that_are_called_the_same_get_names_of_their_own():
    one, two, three = member(0, "localhost", "aaaaaaaa-1"), member(1, "localhost", "bbbbbbbb-2"), member(2, "x", "c")
    assert [each["host"] for each in processes([three, two, one])] == [
        "localhost (aaaaaaaa)",
        "localhost (bbbbbbbb)",
        "x",
    ]
    same = [member(0, "localhost", "a"), member(1, "localhost", "a")]
    assert [each["host"] for each in processes(same)] == ["localhost", "localhost"]


def test_workers_that_see_different_endpoints_are_no_run():
    assert same_endpoint([member(0, "a", "a"), member(1, "b", "b")]) is None
    said = same_endpoint([member(0, "a", "a"), member(1, "b", "b", protocol="openai-chat")])
    assert said is not None
    assert "process 1 (b, pid 7) found different endpoints, protocol tgi and openai-chat" in said


def test_the_verdict_on_the_client_is_that_of_the_process_that_is_worst_off():
    steady = [sample(0, i, 10_000) for i in range(600)] + [sample(1, i, 10_000) for i in range(600)]
    assert trust.clients(steady, {}, {})["verdict"] == trust.OK
    late = [sample(1, i, 90_000_000) for i in range(600, 610)]  # 1.6 % of its own, 0.8 % of all
    found = trust.clients(steady + late, {}, {1: "process 1 (b, 7)"})
    assert trust.client(steady + late, None)["verdict"] == trust.OK, "in the whole it would drown"
    assert found["verdict"] == trust.SATURATED
    assert found["reasons"][0].startswith("process 1 (b, 7): p99 of the requests' lag")


def test_keys_are_not_sent():
    options = {
        "api_key": "sk-1234567890",
        "header": [("x-key", "abc")],
        "extra_body": {"top_k": 1},
        "users": 4,
        "worker": 0,
    }
    assert sendable(options, shown(options)) == ({"users": 4, "extra_body": {"top_k": 1}}, ["api_key", "header"])
