"""samples.jsonl gives back what was written, conforms to its schema, and survives a run that was killed.

Samples are generated over the whole range of their types; the schema is read by an independent validator.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loadtest
from loadtest.plan import Asked, Cell
from loadtest.sample import Got, Sample, SampleError, read_samples, write_samples
from loadtest.verdict import Verdict

SCHEMA = json.loads((Path(loadtest.__file__).parent / "samples.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

ns = st.integers(0, 2**63)
count = st.integers(0, 10**6)
seconds = st.floats(0, 1e6)
name = st.text(min_size=1, max_size=20)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


samples = st.builds(
    Sample,
    run=name,
    id=name,
    process=count,
    user=count,
    cell=st.builds(
        Cell,
        config=maybe(st.sampled_from("LT")),
        slots=maybe(st.integers(1, 64)),
        concurrency=st.integers(1, 512),
        input_tokens=count,
        new_tokens=count,
        wave=maybe(count),
        dataset=maybe(name),
    ),
    phase=st.sampled_from(["warmup", "ramp", "steady", "drain"]),
    got=st.builds(Got, maybe(count), count, st.sampled_from(["server", "tokenizer", "events"])),
    scheduled_ns=ns,
    connect_ns=maybe(ns),
    started_ns=maybe(ns),
    sent_ns=maybe(ns),
    headers_ns=maybe(ns),
    events=st.lists(st.tuples(ns, st.integers(1, 100), count), max_size=5).map(tuple),
    first_text_ns=maybe(ns),
    ended_ns=ns,
    clock=st.sampled_from(["kernel", "user"]),
    transport=name,
    verdict=st.sampled_from(Verdict),
    detail=maybe(st.text()),
    status=maybe(st.integers(100, 599)),
    asked=maybe(st.builds(Asked, maybe(count), st.integers(1, 10**6))),
    server=maybe(
        st.fixed_dictionaries(
            {"queue_s": seconds, "prefill_s": seconds, "decode_s": seconds},
            optional={"batch_sizes": st.dictionaries(st.integers(1, 64).map(str), count), "request_id": name},
        )
    ),
)


@given(samples)
def test_a_sample_comes_back_as_it_was_written(sample: Sample):
    line = sample.to_json()
    assert "\n" not in line
    assert Sample.from_json(line) == sample


@given(samples, st.sampled_from(["naïve", "\ud83d", "\n\x7f", "🙂"]), st.integers(2**64, 2**70))
def test_a_line_is_ascii_and_whole_whatever_a_server_says(sample: Sample, said: str, huge: int):
    for odd in (replace(sample, detail=said), replace(sample, detail=said, server={said: huge})):
        line = odd.to_json()
        assert line.isascii()
        assert "\n" not in line
        assert Sample.from_json(line) == odd


@given(samples)
def test_every_line_conforms_to_the_schema(sample: Sample):
    VALIDATOR.validate(json.loads(sample.to_json()))


def test_the_schema_is_valid_and_names_every_field_and_no_other():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == {"schema"} | {field.name for field in fields(Sample)}
    came_later = {field.name for field in fields(Sample) if field.default is not MISSING} - {"server"}
    assert {"asked"} <= came_later, "older files have none"
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"]) - came_later
    assert set(SCHEMA["properties"]["asked"]["properties"]) == {field.name for field in fields(Asked)}
    assert set(SCHEMA["properties"]["cell"]["properties"]) == {field.name for field in fields(Cell)}
    assert set(SCHEMA["properties"]["got"]["properties"]) == {field.name for field in fields(Got)}
    assert set(SCHEMA["properties"]["verdict"]["enum"]) == set(Verdict)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("phase",), "cooldown"),
        (("verdict",), "fine"),
        (("scheduled_ns",), 1.5),
        (("ended_ns",), None),
        (("events",), [[1, 1]]),
        (("events",), [[1, 0, 0]]),
        (("cell", "concurrency"), 0),
        (("got", "counted_by"), "me"),
        (("extra",), 1),
    ],
)
def test_the_schema_refuses_what_is_no_sample(path: tuple[str, ...], value: object):
    line = json.loads(_sample().to_json())
    VALIDATOR.validate(line)
    place = line
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(line)


@settings(max_examples=20)
@given(st.lists(samples, max_size=4))
def test_a_file_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]):
    path = tmp_path_factory.mktemp("run") / "samples.jsonl"
    write_samples(path, written)
    assert list(read_samples(path)) == written


def _sample(detail: str | None = None) -> Sample:
    cell = Cell("L", 1, 1, 256, 1, wave=0)
    return Sample(
        "r", "1", 0, 0, cell, "steady", Got(256, 1, "server"), 1, None, 2, 3, 4, ((5, 1, 0),), 5, 6,
        "kernel", "gevent", Verdict.COMPLETE, detail, 200,
    )  # fmt: skip


@pytest.mark.parametrize(
    "detail",
    [
        "cut",
        "zerschnitten: größer →",
    ],
)
def test_a_last_line_cut_anywhere_is_left_out(tmp_path: Path, detail: str):
    whole, cut = (_sample().to_json() + "\n").encode(), _sample(detail).to_json().encode()
    path = tmp_path / "samples.jsonl"
    for kept in range(len(cut) + 1):
        path.write_bytes(whole + cut[:kept])
        assert list(read_samples(path)) == [_sample()]


@pytest.mark.parametrize("garbage", ["", "garbage", "[]", "null", "{}", '{"schema": 2}', '{"schema": 1, "run": "r"}'])
def test_a_line_that_is_no_sample_is_named_by_its_number(tmp_path: Path, garbage: str):
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{_sample().to_json()}\n{garbage}\n{_sample().to_json()}\n", encoding="utf-8")
    with pytest.raises(SampleError, match=r"samples\.jsonl, line 2: "):
        list(read_samples(path))
