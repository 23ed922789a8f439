"""TGI's routes answer in TGI's shapes, and bad input gets one sentence that names the value and the limit.

Method: the real app with the demonstration model, over real HTTP; expected text from the model through `generate`-equal
greedy decoding (see test_generation.py), shapes from text-generation-inference's own types.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

PROMPT = "We measure the time to the first word because"


def ask(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    reply = client.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(client: httpx.Client, headers: dict[str, str] | None = None, **parameters: Any) -> list[tuple[str, Any]]:
    """(event name, object) of every event, read by a parser of the test's own."""
    with client.stream(
        "POST", "/generate_stream", json={"inputs": PROMPT, "parameters": parameters}, headers=headers
    ) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        body = b"".join(reply.iter_raw()).decode()
    assert body.endswith("\n\n")
    events = []
    for block in body[:-2].split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


def test_a_stream_has_one_event_a_token_and_its_text_is_the_plain_answer(demo: httpx.Client):
    plain = ask(demo, max_new_tokens=20, details=True, ignore_eos=True)
    events = [said for _, said in stream(demo, max_new_tokens=20, details=True, ignore_eos=True)]
    assert [said["index"] for said in events] == list(range(1, 21))
    assert all(set(said) == {"index", "token", "generated_text", "details"} for said in events)
    assert all(set(said["token"]) == {"id", "text", "logprob", "special"} for said in events)
    assert all(said["generated_text"] is None and said["details"] is None for said in events[:-1])
    assert events[-1]["generated_text"] == plain["generated_text"] == "".join(said["token"]["text"] for said in events)
    assert [said["token"] for said in events] == plain["details"]["tokens"]


def test_details_count_tokens_and_say_why_it_ended(demo: httpx.Client):
    counted = len(demo.post("/tokenize", json={"inputs": PROMPT}).json())
    details = stream(demo, max_new_tokens=5, details=True, ignore_eos=True)[-1][1]["details"]
    assert details == {"finish_reason": "length", "generated_tokens": 5, "seed": None, "input_length": counted}
    plain = ask(demo, max_new_tokens=5, details=True, do_sample=True, seed=42, ignore_eos=True)["details"]
    assert (plain["seed"], plain["generated_tokens"], plain["prefill"]) == (42, 5, [])
    assert "details" not in ask(demo, max_new_tokens=5)
    assert stream(demo, max_new_tokens=5)[-1][1]["details"] is None


def test_without_parameters_it_samples_and_with_empty_ones_it_does_not(demo: httpx.Client):
    # TGI's own trap. The prompt leaves room for a few tokens only, since nothing can limit them here.
    prompt = PROMPT * 200
    counted = demo.post("/tokenize", json={"inputs": prompt}).json()
    prompt = prompt[: counted[480]["stop"]]
    greedy = {demo.post("/generate", json={"inputs": prompt, "parameters": {}}).json()["generated_text"] for _ in "ab"}
    sampled = {demo.post("/generate", json={"inputs": prompt}).json()["generated_text"] for _ in "abc"}
    assert len(greedy) == 1
    assert len(sampled) > 1


def test_a_stop_sequence_ends_the_text_and_is_part_of_it(demo: httpx.Client):
    whole = ask(demo, max_new_tokens=40, ignore_eos=True)["generated_text"]
    stop = whole[30:34]
    details = ask(demo, max_new_tokens=40, ignore_eos=True, stop=[stop], details=True)
    assert details["details"]["finish_reason"] == "stop_sequence"
    assert whole.startswith(details["generated_text"])
    assert stop in details["generated_text"]


def test_the_full_text_begins_with_the_prompt_where_asked(demo: httpx.Client):
    new = ask(demo, max_new_tokens=4)["generated_text"]
    assert ask(demo, max_new_tokens=4, return_full_text=True)["generated_text"] == PROMPT + new
    assert stream(demo, max_new_tokens=4, return_full_text=True)[-1][1]["generated_text"] == PROMPT + new


def test_truncate_keeps_the_end_of_the_prompt(demo: httpx.Client):
    last = stream(demo, max_new_tokens=2, details=True, truncate=3)[-1][1]
    assert last["details"]["input_length"] == 3
    ids = [token["id"] for token in demo.post("/tokenize", json={"inputs": PROMPT}).json()]
    told = ask(demo, max_new_tokens=1, decoder_input_details=True, truncate=3)["details"]["prefill"]
    assert [token["id"] for token in told] == ids[-3:]


def test_tokenize_gives_ids_and_the_bytes_they_cover(demo: httpx.Client):
    text = "A clock, 時計"
    utf8 = text.encode()
    pieces = demo.post("/tokenize", json={"inputs": text}).json()
    assert all(set(piece) == {"id", "text", "start", "stop"} for piece in pieces)
    assert all(piece["text"] == utf8[piece["start"] : piece["stop"]].decode() for piece in pieces)
    assert pieces[0]["start"] == pieces[0]["stop"] == 0, "the special token covers nothing"
    assert pieces[-1]["stop"] == len(utf8)


def test_timing_is_one_event_more_only_for_those_who_ask(demo: httpx.Client):
    names = [name for name, _ in stream(demo, max_new_tokens=3, ignore_eos=True)]
    assert names == ["message"] * 3
    events = stream(demo, {"x-tokenclock-timing": "1", "x-request-id": "mine"}, max_new_tokens=3, ignore_eos=True)
    assert [name for name, _ in events] == ["message"] * 3 + ["tokenclock"]
    timing = events[-1][1]
    assert set(timing) == {"request_id", "queue_s", "prefill_s", "decode_s", "batch_sizes"}
    assert timing["request_id"] == "mine"
    assert sum(timing["batch_sizes"].values()) == 2
    reply = demo.post(
        "/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 3}}, headers={"x-tokenclock-timing": "1"}
    )
    assert set(json.loads(reply.headers["x-tokenclock-timing"])) == set(timing)


def test_a_request_id_is_echoed_or_made(demo: httpx.Client):
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    assert demo.post("/generate", json=body, headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    made = {demo.post("/generate", json=body).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ""}, "`inputs` cannot be empty"),
        ({"inputs": "a", "parameters": {"temperature": -1}}, "`temperature` must be strictly positive. Given: -1.0"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, "`temperature` must be strictly positive. Given: 0.0"),
        ({"inputs": "a", "parameters": {"top_p": 1.0}}, "`top_p` must be > 0.0 and < 1.0. Given: 1.0"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "`top_k` must be strictly positive. Given: 0"),
        ({"inputs": "a", "parameters": {"repetition_penalty": 0}}, "`repetition_penalty` must be strictly positive"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "`max_new_tokens` must be strictly positive"),
        (
            {"inputs": "a", "parameters": {"max_new_tokens": 511}},
            "`inputs` tokens + `max_new_tokens` must be <= 512. Given: 2 `inputs` tokens and 511 `max_new_tokens`; "
            "shorten the prompt or ask for at most 510",
        ),
        ({"inputs": "clock " * 600}, "`inputs` must have less than 512 tokens. Given: "),
        ({"inputs": "a", "parameters": {"stop": list("abcde")}}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"inputs": "a", "parameters": {"stop": [""]}}, "`stop` cannot hold an empty string"),
        ({"inputs": "a", "parameters": {"truncate": 0}}, "`truncate` must be strictly positive"),
        ({"inputs": "a", "parameters": {"seed": -1}}, "`seed` must be from 0 to 2^64 - 1. Given: -1"),
        ({"inputs": "a", "parameters": {"typical_p": 1.0}}, "`typical_p` must be > 0.0 and < 1.0. Given: 1.0"),
        ({"inputs": "a", "parameters": {"best_of": 0}}, "`best_of` "),
        ({"inputs": "a", "parameters": {"top_n_tokens": 6}}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"inputs": "a", "parameters": {"frequency_penalty": 3}}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "regex"}}}, "`grammar` is not supported by this server"),
        ({"inputs": "a", "parameters": {"adapter_id": "x"}}, "`adapter_id` is not supported by this server"),
        ({"inputs": "a", "parameters": {"max_new_tokens": "2"}}, "`parameters.max_new_tokens`: "),
        ({"inputs": "a", "parameters": {"details": 1}}, "`parameters.details`: "),
        ({"inputs": "a", "parameters": {"watermark": True}}, "`watermark` is not supported by this server"),
        ({"inputs": "a", "parameters": {"nonsense": 1}}, "`parameters.nonsense`"),
        ({"inputs": 3}, "`inputs`"),
        ({}, "`inputs`"),
        ([], "the body must be an object"),
    ],
)
@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_bad_input_is_422_with_one_sentence(demo: httpx.Client, route: str, body: Any, message: str):
    reply = demo.post(route, json=body)
    assert reply.status_code == 422
    assert set(reply.json()) == {"error", "error_type"}
    assert reply.json()["error_type"] == "validation"
    assert reply.json()["error"].startswith("Input validation error: ")
    assert message in reply.json()["error"]
    assert "\n" not in reply.json()["error"]


def test_a_body_that_is_not_json_is_400(demo: httpx.Client):
    reply = demo.post("/generate", content=b'{"inputs": ', headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error_type"]) == (400, "validation")


def test_neutral_values_of_what_is_not_supported_are_fine(demo: httpx.Client):
    ask(
        demo,
        max_new_tokens=1,
        best_of=1,
        typical_p=None,
        watermark=False,
        top_n_tokens=None,
        decoder_input_details=False,
    )


def test_the_server_survives_everything_above(demo: httpx.Client):
    assert demo.get("/health").status_code == 200
    assert ask(demo, max_new_tokens=2, ignore_eos=True)["generated_text"]


def test_metrics_count_requests_tokens_and_first_tokens(demo: httpx.Client):
    def value(name: str) -> float:
        lines = demo.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(name + " ")).split()[1])

    names = (
        "tgi_request_count",
        "tgi_request_success",
        "tokenclock_output_tokens_total",
        "tokenclock_input_tokens_total",
        "tgi_request_queue_duration_count",
        "tokenclock_inter_token_latency_seconds_count",
        'tgi_request_failure{err="validation"}',
    )
    demo.post("/generate", json={"inputs": ""})  # so that the last series exists
    before = [value(name) for name in names]
    stream(demo, max_new_tokens=7, ignore_eos=True)
    demo.post("/generate", json={"inputs": ""})
    counted = len(demo.post("/tokenize", json={"inputs": PROMPT}).json())
    assert [value(name) - was for name, was in zip(names, before, strict=True)] == [2, 1, 7, counted, 1, 6, 1]
    assert value("tgi_queue_size") == value("tgi_batch_current_size") == 0


def test_info_has_tgis_keys_and_our_settings(demo: httpx.Client):
    info = demo.get("/info").json()
    assert {"model_id", "max_input_tokens", "max_total_tokens", "max_concurrent_requests", "version"} <= set(info)
    assert (info["slots"], info["max_total_tokens"], info["max_input_tokens"]) == (4, 512, 511)
    assert info["settings"]["threads"] == 1


def test_pages_of_any_origin_may_ask(demo: httpx.Client):
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    allowed = demo.options("/generate", headers=asked | {"access-control-request-headers": "content-type"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "*")
    reply = demo.post("/tokenize", json={"inputs": "a"}, headers={"origin": "https://example.org"})
    assert reply.headers["access-control-allow-origin"] == "*"


def test_the_times_of_a_plain_reply_add_up(demo: httpx.Client):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 40, "ignore_eos": True}}
    headers = demo.post("/generate", json=body, headers={"x-tokenclock-timing": "1"}).headers
    whole = int(headers["x-total-time"])
    parts = [int(headers[f"x-{part}-time"]) for part in ("validation", "queue", "inference")]
    assert whole >= sum(parts) > 0
    assert float(headers["x-compute-time"]) * 1000 == pytest.approx(whole, abs=1)
    assert int(headers["x-time-per-token"]) == pytest.approx(parts[2] / 40, abs=1)
    timing = json.loads(headers["x-tokenclock-timing"])
    assert (timing["prefill_s"] + timing["decode_s"]) * 1000 == pytest.approx(parts[2], abs=1.1)
    assert timing["queue_s"] * 1000 == pytest.approx(parts[0] + parts[1], abs=2.1), "the body's reading is in it"


def test_a_request_that_waited_says_how_long(demo: httpx.Client):
    busy = {"prompt": "a", "n": 4, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with demo.stream("POST", "/v1/completions", json=busy) as reply:
        lines = reply.iter_lines()
        next(lines)
        waited = demo.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}})
    assert int(waited.headers["x-queue-time"]) > 10 * int(waited.headers["x-inference-time"])


def test_of_several_texts_the_likeliest_is_the_answer(demo: httpx.Client):
    details = ask(demo, max_new_tokens=6, best_of=4, do_sample=True, ignore_eos=True, details=True)["details"]
    assert len(details["best_of_sequences"]) == 3
    means = [sum(token["logprob"] for token in each["tokens"]) / 6 for each in [details, *details["best_of_sequences"]]]
    assert means[0] == max(means)
    assert len(set(means)) == 4
    assert len({each["seed"] for each in [details, *details["best_of_sequences"]]}) == 4


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"temperature": 1e-40}, 422),
        ({"temperature": 1e300}, 422),
        ({"temperature": 1e-6}, 200),
        ({"temperature": 1e6}, 200),
        ({"repetition_penalty": 1e-300, "do_sample": True}, 422),
        ({"repetition_penalty": 1000, "do_sample": True}, 200),
        ({"top_p": 1e-30}, 200),
        ({"top_k": 10**18}, 200),
    ],
)
def test_extreme_parameters_cost_their_own_request_at_most(demo: httpx.Client, parameters: Any, status: int):
    reply = demo.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 3, **parameters}})
    assert reply.status_code == status, reply.text
    assert demo.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"inputs": "\\ud800"}', 400),
        (b'{"inputs": "a", "parameters": {"stop": ["\\udfff"]}}', 400),
        (b'{"inputs": "a", "parameters": {"grammar": "\\ud800"}}', 400),
        (b'{"inputs": "a", "parameters": {"\\ud800": 1}}', 400),
        (b'{"inputs": "\xff\xfe"}', 400),
        (b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5000 + b"}}", 400),
        (b"[" * 100_000, 400),
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', 422),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": 1e30}}', 422),
    ],
)
def test_bodies_that_are_no_text_are_refused_in_the_same_shape(demo: httpx.Client, content: bytes, status: int):
    reply = demo.post("/generate", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error", "error_type"}


def test_what_is_not_there_is_refused_in_the_same_shape(demo: httpx.Client):
    missing, wrong = demo.get("/nowhere"), demo.get("/generate")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert set(missing.json()) == set(wrong.json()) == {"error", "error_type"}


@pytest.mark.parametrize("request_id", ["x" * 129, "tab\there", "é".encode().decode("latin-1")])
def test_a_request_id_that_cannot_be_echoed_is_refused(demo: httpx.Client, request_id: str):
    headers = [(b"x-request-id", request_id.encode("latin-1"))]
    reply = demo.post("/generate", json={"inputs": "a", "parameters": {"max_new_tokens": 1}}, headers=headers)
    assert reply.status_code == 422
    assert "`x-request-id` must be 1 to 128 printable ASCII characters" in reply.json()["error"]


def test_every_request_is_counted_once_and_has_one_outcome(demo: httpx.Client):
    def values() -> tuple[float, float]:
        samples = [line.rsplit(" ", 1) for line in demo.get("/metrics").text.splitlines() if not line.startswith("#")]
        outcomes = ("tgi_request_success", "tgi_request_failure")
        return (
            sum(float(value) for name, value in samples if name == "tgi_request_count"),
            sum(float(value) for name, value in samples if name.startswith(outcomes)),
        )

    before = values()
    bodies: list[Any] = [{"inputs": "a", "parameters": {"max_new_tokens": 2}}, {"inputs": ""}, {}, {"inputs": 3}]
    for body in bodies:
        demo.post("/generate", json=body)
        demo.post("/generate_stream", json=body)
    demo.post("/generate", content=b"\xff", headers={"content-type": "application/json"})
    demo.post("/tokenize", json={"inputs": ""})
    assert [after - was for after, was in zip(values(), before, strict=True)] == [9, 9]
