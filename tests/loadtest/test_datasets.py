"""A dataset's lines are read whole or refused with their number; all are used before any is used twice.

Oracle: the lines as they are written here, by the standard library's json. What the report makes of a dataset run is
computed from samples with chosen instants.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loadtest
from loadtest.datasets import ORDERS, Dataset, DatasetError, DatasetPrompts, notes, parse
from loadtest.dispatch import ClosedLoop, ids
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.measure import Order, measure
from loadtest.open_loop import OpenLoop
from loadtest.plan import Asked, Cell
from loadtest.report import tables, write
from loadtest.sample import Got, Sample, SampleError, write_samples
from loadtest.transport.base import Timeouts
from loadtest.transport.gevent_socket import GeventConnection
from loadtest.verdict import Verdict
from tests.loadtest.conftest import Scheduled, Truth
from tests.loadtest.orders import sample

CELL = Cell(None, 4, 2, None, None, dataset="chat.jsonl")
HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo"}]


def lines(*said: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in said)


def read(*said: Any, new_tokens: int = 256) -> Dataset:
    return parse(lines(*said), "chat.jsonl", new_tokens)


def numbered(n: int) -> Dataset:
    """The k-th line asks for k new tokens."""
    return read(*({"prompt": f"prompt {k}", "max_tokens": k} for k in range(1, n + 1)))


# --- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "prompt", "asked", "kind"),
    [
        ({"prompt": "What is the capital of India?"}, "What is the capital of India?", Asked(None, 77), "text"),
        ({"prompt": "a", "output_tokens": 10}, "a", Asked(None, 10), "text"),  # vLLM
        ({"prompt": "a", "max_tokens": 3}, "a", Asked(None, 3), "text"),  # fw-ai, OpenAI's completions
        ({"prompt": "a", "max_completion_tokens": 4}, "a", Asked(None, 4), "text"),
        ({"prompt": "a", "max_tokens": 64.0}, "a", Asked(None, 64), "text"),  # pandas, where a line had none
        ({"prompt": "a", "max_tokens": None, "messages": None}, "a", Asked(None, 77), "text"),
        ({"prompt": "a", "max_tokens": 5, "output_tokens": 5}, "a", Asked(None, 5), "text"),
        ({"prompt": [5, 0, 9]}, [5, 0, 9], Asked(3, 77), "token ids"),
        ({"messages": HELLO, "max_tokens": 9}, HELLO, Asked(None, 9), "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, None, Asked(None, 77), "messages"),
    ],
)  # fmt: skip
def test_a_line_is_a_prompt_and_what_it_asks_for(said: Any, prompt: Any, asked: Asked, kind: str):
    (line,) = read(said, new_tokens=77).lines
    assert line.prompt == (prompt or said["messages"])
    assert (line.asked, line.kind, line.number) == (asked, kind, 1)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (b"prompt", "prompt is not JSON ("),
        (b'{"prompt": "a"', '{"prompt": "a" is not JSON ('),
        (b'{"prompt": "\xff"}', "is not JSON ("),
        (b'["a"]', '["a"] is no object: write {"prompt": …} or {"messages": …}'),
        (b'{"text": "a", "id": 1}', "has either `prompt` or `messages`, this one neither among its fields (text, id)"),
        (b"{}", "neither among its fields (none)"),
        (lines({"prompt": "a", "messages": HELLO}), "this one both `prompt` and `messages`: say one of them"),
        (b'{"prompt": ""}', 'prompt is ""; it must be a text or a list of token ids, and not empty'),
        (b'{"prompt": []}', "prompt is []; it must be a text or a list of token ids"),
        (b'{"prompt": [1, "a"]}', 'prompt is [1,"a"]; it must be a text or a list of token ids'),
        (b'{"prompt": [1, true]}', "prompt is [1,true]; it must be"),
        (b'{"prompt": [-1]}', "prompt is [-1]; it must be"),
        (b'{"prompt": 7}', "prompt is 7; it must be"),
        (b'{"messages": []}', "messages is []; it must be a list such as"),
        (b'{"messages": "hi"}', 'messages is "hi"; it must be a list such as'),
        (b'{"messages": [{"content": "hi"}]}', 'messages is [{"content":"hi"}]; it must be a list such as'),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens is 0; it must be a whole number from 1 to 2,147,483,647"),
        (b'{"prompt": "a", "max_tokens": 1e300}', "max_tokens is 1e+300; it must be a whole number"),
        (b'{"prompt": "a", "output_tokens": 1.5}', "output_tokens is 1.5; it must be a whole number"),
        (b'{"prompt": "a", "output_tokens": "64"}', 'output_tokens is "64"; it must be a whole number'),
        (b'{"prompt": "a", "max_completion_tokens": true}', "max_completion_tokens is true; it must be"),
        (
            b'{"prompt": "a", "max_tokens": 5, "output_tokens": 6}',
            "max_tokens is 5, output_tokens is 6: they mean the same, say one of them",
        ),
        (b'{"messages": [{"role": "user", "content": ' + b"[" * 400 + b"]" * 400 + b"}]}", "nest it less deeply"),
        (lines({"prompt": ["x" * 500]}), "x…; it must be"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named_with_its_number_and_value(bad: bytes, sentence: str):
    with pytest.raises(DatasetError) as error:
        parse(lines({"prompt": "good"}) + b"\n" + bad.strip() + b"\n" + lines({"prompt": "good"}), "my.jsonl", 8)
    assert str(error.value).startswith("my.jsonl, line 3: ")
    assert sentence in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("data", [b"", b"\n\n  \n", b"\xef\xbb\xbf\n"])
def test_a_file_without_lines_is_refused(data: bytes):
    with pytest.raises(DatasetError, match=r"my\.jsonl has no lines: each must be an object such as"):
        parse(data, "my.jsonl", 8)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_change_nothing():
    plain = parse(b'{"prompt": "a"}\n{"prompt": "b"}', "f", 8)
    other = parse(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', "f", 8)
    assert [line.prompt for line in other.lines] == [line.prompt for line in plain.lines] == ["a", "b"]
    assert [line.number for line in other.lines] == [2, 4]


def test_what_is_not_sent_is_named_and_different_prompts_are_counted():
    dataset = read({"prompt": "a", "temperature": 0.5}, {"messages": HELLO, "id": 7}, {"prompt": "a", "max_tokens": 3})
    assert (dataset.not_sent, dataset.different) == (("id", "temperature"), 2)
    assert (
        dataset.sha256
        == hashlib.sha256(
            lines({"prompt": "a", "temperature": 0.5}, {"messages": HELLO, "id": 7}, {"prompt": "a", "max_tokens": 3})
        ).hexdigest()
    )
    said = list(notes(dataset, "shuffle"))
    assert said[0] == "chat.jsonl: 3 lines (text, messages), shuffled by the seed"
    assert said[1].startswith("chat.jsonl: fields that are not sent: id, temperature; ")
    assert len(list(notes(numbered(2), "sequential"))) == 1


texts = st.text(st.characters(codec="utf-8"), min_size=1)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1)
objects = st.one_of(
    st.fixed_dictionaries({"prompt": texts | st.lists(st.integers(0, 2**31), min_size=1)}),
    st.fixed_dictionaries({"messages": messages}),
)


@given(st.lists(objects, min_size=1, max_size=5), st.booleans())
def test_any_prompt_comes_out_as_it_was_written(said: list[dict[str, Any]], ascii_only: bool):
    data = "\n".join(json.dumps(each, ensure_ascii=ascii_only) for each in said).encode()
    assert [line.prompt for line in parse(data, "f", 8).lines] == [next(iter(each.values())) for each in said]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_dataset_or_a_sentence(data: bytes):
    with suppress(DatasetError):
        assert parse(data, "f", 8).lines


# --- order -----------------------------------------------------------------------------------------------------------


def drawn(dataset: Dataset, order: Any, seed: int | str, n: int) -> list[int]:
    prompts = DatasetPrompts(dataset, order, seed)
    pairs = [prompts.drawn_for(CELL) for _ in range(n)]
    assert prompts.said()["drawn"] == n
    assert all(prompt == f"prompt {asked.new_tokens}" for prompt, asked in pairs), "a prompt keeps what it asks for"
    return [asked.new_tokens for _, asked in pairs]


def test_lines_come_in_the_files_order_or_shuffled_by_the_seed():
    dataset = numbered(50)
    in_order = list(range(1, 51))
    assert drawn(dataset, "sequential", 1, 50) == in_order
    shuffled = drawn(dataset, "shuffle", 1, 50)
    assert sorted(shuffled) == in_order != shuffled
    assert drawn(dataset, "shuffle", 1, 50) == shuffled != drawn(dataset, "shuffle", 2, 50)
    assert [line.number for line in dataset.lines] == in_order, "shuffling leaves the dataset as it is"


@pytest.mark.parametrize("order", ORDERS)
def test_every_line_is_used_before_any_is_used_twice(order: Any):
    once = drawn(numbered(7), order, 3, 7)
    assert drawn(numbered(7), order, 3, 24) == (once * 4)[:24]


@pytest.mark.parametrize(
    ("said", "requests", "repeats"),
    [
        (["a", "b", "c"], 3, False),
        (["a", "b", "c"], 4, True),
        (["a", "b", "a"], 2, True),
        (["a"], 1, False),
        (["a", "a"], 1, False),
    ],
)
def test_prompts_that_were_sent_more_than_once_are_said(said: list[str], requests: int, repeats: bool):
    prompts = DatasetPrompts(read(*({"prompt": each} for each in said)), "shuffle", 1)
    sentence = prompts.repeats(requests)
    assert (sentence is not None) is repeats
    if sentence:
        assert sentence.startswith(f"{requests} requests used {len(said)} line")
        assert f"with {len(set(said))} different prompts" in sentence
        assert "may answer a repeated prompt from memory" in sentence


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_closed_loop_sends_each_line_with_what_it_asks_for():
    loop = ClosedLoop(CELL, DatasetPrompts(numbered(5), "sequential", 1), ids("run", 0), lambda: (1, 1))
    orders = []
    for _ in range(6):
        order = loop.take(0)
        assert order is not None
        loop.done(0, sample())
        orders.append((order.prompt, order.asked, order.cell.label))
    assert orders == [(f"prompt {k}", Asked(None, k), "1 user, dataset chat.jsonl") for k in (1, 2, 3, 4, 5, 1)]


def test_an_open_loop_sends_each_line_with_what_it_asks_for():
    loop = OpenLoop(
        replace(CELL, concurrency=1), DatasetPrompts(numbered(4), "sequential", 1), ids("run", 0), count(), 1e-9 * 6
    )
    user = gevent.spawn(lambda: [loop.take(0) for _ in range(6)])
    loop.begin()
    orders = user.get(timeout=5)
    loop.close()
    assert [(order.prompt, order.asked) for order in orders] == [
        (f"prompt {k}", Asked(None, k)) for k in (1, 2, 3, 4, 1, 2)
    ]


def measured(truth: Truth, asked: Asked, cell: Cell = CELL, **schedule: Any) -> Sample:
    connection = GeventConnection(truth.target)
    order = Order("x", cell, "steady", "one two three", 0, asked)
    endpoint = Scheduled(schedule={"jitter": 0, **schedule})
    seen = measure(connection, endpoint, order, run="r", process=0, user=0, timeouts=Timeouts(10, 10, 10, 30))
    connection.close()
    return seen


def test_a_request_asks_for_its_own_tokens_and_is_judged_by_them(truth: Truth):
    seen = measured(truth, Asked(None, 5))
    assert (seen.verdict, seen.asked, len(seen.events)) == (Verdict.COMPLETE, Asked(None, 5), 5)
    assert seen.got == Got(3, 5, "server")
    early = measured(truth, Asked(None, 9), fault="stop_early")
    assert early.verdict is Verdict.STOPPED_EARLY
    assert f"{early.got.new_tokens} of 9 tokens" in str(early.detail)


def test_what_a_request_asks_for_wins_over_its_cell(truth: Truth):
    seen = measured(truth, Asked(None, 5), Cell(None, None, 1, 4, 20))
    assert (len(seen.events), seen.demanded) == (5, Asked(None, 5))


def test_a_prompt_that_nobody_counted_is_sent_whole():
    def parameters(asked: int | None) -> Any:
        return json.loads(TgiEndpoint().request("one two", 5, "x", asked).body)["parameters"]

    assert "truncate" not in parameters(None)
    assert parameters(2)["truncate"] == 2


# --- samples and report ----------------------------------------------------------------------------------------------

MS = 1_000_000
SCHEMAS = Path(loadtest.__file__).parent


def request(
    k: int, asked: Asked, got_input: int | None = 10, got_new: int | None = None, phase: str = "steady"
) -> Sample:
    """The k-th starts at k seconds, has its first token after 100 ms and the last after 500 ms."""
    new_tokens = asked.new_tokens if got_new is None else got_new
    start = 1000 * k * MS
    return Sample(
        run="r",
        id=f"r-{k}",
        process=0,
        user=0,
        cell=CELL,
        phase=phase,
        got=Got(got_input, new_tokens, "server"),
        scheduled_ns=start,
        connect_ns=None,
        started_ns=start,
        sent_ns=start,
        headers_ns=start,
        events=((start + 100 * MS, 1, 0), (start + 500 * MS, new_tokens - 1, 1)),
        first_text_ns=start + 100 * MS,
        ended_ns=start + 500 * MS,
        clock="kernel",
        transport="gevent",
        verdict=Verdict.COMPLETE,
        detail=None,
        status=200,
        asked=asked,
    )


def a_run(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    clocks = {"mono_ns": 0, "wall_ns": 1}
    base = {
        "schema": 1,
        "run": "r",
        "tool": {"name": "tokenclock", "version": "0.1.0"},
        "created": "2026-11-22T21:55:00Z",
        "command": ["tokenclock", "run"],
        "plan": None,
        "configs": [],
        "waves": None,
        "seed": 1,
        "options": {},
        "endpoints": [{"config": None, "url": "http://a", "protocol": "tgi", "info": None, "command": None}],
        "machine": {"platform": "Linux", "cpu": "any", "cores": 2, "memory_bytes": None, "python": "3.11.7"},
        "versions": {},
        "processes": [{"process": 0, "host": "here", "pid": 1, "start": clocks, "end": None}],
        "client": [],
        "dataset": DatasetPrompts(dataset, "shuffle", 1).said() | {"drawn": 3},
        "shared_prefix_tokens": 0,
        "open_loop": None,
        "interrupted": False,
    }
    return base | changes


def reported(folder: Path, samples: list[Sample], run: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for name, written in (("samples", [json.loads(each.to_json()) for each in samples]), ("run", [run])):
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
        for each in written:
            jsonschema.Draft202012Validator(schema).validate(each)
    write_samples(folder / "samples.jsonl", samples)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return write(folder).read_text(encoding="utf-8"), json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_a_dataset_run_is_one_cell_with_throughput_of_what_was_got(tmp_path: Path):
    samples = [request(k, Asked(None, n), got_input=10 * n) for k, n in enumerate((4, 8, 20))]
    report, summary = reported(tmp_path, samples, a_run(numbered(4)))
    (cell,) = summary["cells"]
    assert cell["label"] == "2 users, dataset chat.jsonl"
    assert cell["cell"] == {
        "config": None,
        "slots": 4,
        "concurrency": 2,
        "input_tokens": None,
        "new_tokens": None,
        "dataset": "chat.jsonl",
    }
    assert cell["metrics"]["throughput_output_tokens_per_s"]["mean"] == pytest.approx(32 / 2.5)
    assert cell["metrics"]["throughput_total_tokens_per_s"]["mean"] == pytest.approx((32 + 320) / 2.5)
    assert cell["off_plan"] == []
    assert "from memory" not in report
    assert "| 2 users, dataset chat.jsonl |" in report
    assert "**On plan**" in report
    assert "- prompts from chat.jsonl (SHA-256 `" in report
    assert "4 lines, 4 different prompts, shuffled by the seed, 3 drawn" in report
    assert "2 users, dataset chat.jsonl" in tables(summary)


def test_requests_that_got_other_tokens_than_they_asked_for_are_one_sentence(tmp_path: Path):
    samples = [
        request(0, Asked(None, 4)),
        request(1, Asked(10, 8), got_new=6),
        request(2, Asked(12, 5), got_new=9),
        request(3, Asked(None, 8), got_new=6),
    ]
    report, summary = reported(tmp_path, samples, a_run(numbered(9)))
    assert summary["cells"][0]["off_plan"] == [
        "1 of 4 complete requests had other input tokens than asked for, by -2 to -2",
        "3 of 4 complete requests had other new tokens than asked for, by -2 to +4",
    ]
    assert "**Off plan**" in report


def test_where_nobody_counted_a_prompt_there_is_no_total_and_the_report_says_so(tmp_path: Path):
    samples = [request(0, Asked(None, 4)), request(1, Asked(None, 4), got_input=None)]
    report, summary = reported(tmp_path, samples, a_run(numbered(9)))
    metrics = summary["cells"][0]["metrics"]
    assert "throughput_total_tokens_per_s" not in metrics
    assert metrics["throughput_output_tokens_per_s"]["mean"] == pytest.approx(8 / 1.5)
    assert "nobody counted the prompts' tokens, so there is no total throughput" in report
    counted = [request(0, Asked(None, 4)), request(1, Asked(7, 4), got_input=None)]
    metrics = reported(tmp_path, counted, a_run(numbered(9)))[1]["cells"][0]["metrics"]
    assert metrics["throughput_total_tokens_per_s"]["mean"] == pytest.approx((10 + 7 + 8) / 1.5), (
        "token ids are counted"
    )


def test_a_dataset_that_was_used_up_is_said_with_its_warm_up(tmp_path: Path):
    samples = [request(0, Asked(None, 4), phase="warmup"), *(request(k, Asked(None, 4)) for k in (1, 2, 3))]
    sentence = "4 requests used 3 lines with 3 different prompts: a server that keeps prefixes may answer a repeated"
    report, summary = reported(tmp_path, samples, a_run(numbered(3)))
    assert sentence in report
    assert sentence in tables(summary)
    report, _ = reported(tmp_path, samples, a_run(numbered(4)))
    assert "a repeated prompt from memory" not in report


def test_the_fields_that_were_not_sent_are_in_the_report_and_cannot_become_markup(tmp_path: Path):
    dataset = parse(lines({"prompt": "a", "<b>": 1, "temperature": 2}), "a|b.jsonl", 8)
    report, _ = reported(tmp_path, [request(0, Asked(None, 4))], a_run(dataset))
    assert r"prompts from a\|b.jsonl (" in report
    assert r"fields that were not sent: \<b\>, temperature" in report


def test_a_sample_comes_back_with_what_it_asked_for_and_must_say_it():
    seen = request(0, Asked(None, 4))
    assert Sample.from_json(seen.to_json()) == seen
    assert seen.demanded == Asked(None, 4)
    with pytest.raises(SampleError, match="neither the request nor its cell says how many new tokens"):
        Sample.from_json(replace(seen, asked=None).to_json())


def test_a_line_of_an_older_file_is_read_and_asks_for_what_its_cell_says():
    old = json.loads(sample().to_json())
    del old["asked"], old["cell"]["dataset"]
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "samples.schema.json").read_text(encoding="utf-8"))).validate(
        old
    )
    seen = Sample.from_json(json.dumps(old))
    assert seen == sample()
    assert seen.demanded == Asked(8, 4)


@given(st.integers(1, 30), st.integers(0, 100), st.sampled_from(ORDERS))
def test_uses_of_lines_differ_by_one_at_most(n: int, requests: int, order: Any):
    uses = Counter(drawn(numbered(n), order, 5, requests))
    assert max(uses.values(), default=0) - min((uses[k] for k in range(1, n + 1)), default=0) <= 1
