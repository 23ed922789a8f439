"""Every series says what it claims: TGI's names, buckets and meanings, OpenTelemetry's, and our own.

Method: requests whose instants are set by hand, so that every sum has a closed form; the engine over a scripted
backend, so that every count has one; TGI's names from its dashboard; promtool as the judge of names.
"""

from __future__ import annotations

import math
import queue
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import pairwise

import pytest

from server import __version__
from server.backends.base import Limits, Sampling, Step
from server.bounds import (
    BATCH,
    FIRST_TOKEN_S,
    PER_TOKEN_S,
    RECOMMENDED_FIRST_TOKEN_S,
    RECOMMENDED_PER_TOKEN_S,
    RECOMMENDED_REQUEST_S,
    REQUEST_S,
    STEP_S,
    TGI_S,
    hundredths,
)
from server.engine.engine import Engine
from server.engine.request import Delivery, Failure, Request, Task, Token
from server.metrics import ABSENT, NOTES, Metrics
from tests.server.scripted import ScriptedBackend, put_all
from tests.server.test_engine import Alphabet, Letters

LIMITS = Limits(slots=4, max_input_tokens=2000, max_total_tokens=4000, vocabulary=10, sampling=frozenset())
#: Every name in the queries of TGI's dashboard. Source: huggingface/text-generation-inference@db931fcf,
#: assets/tgi_grafana.json.
DASHBOARD = """
    tgi_batch_concat tgi_batch_concat_duration_bucket tgi_batch_current_max_tokens tgi_batch_current_size
    tgi_batch_decode_duration_bucket tgi_batch_filter_duration_bucket tgi_batch_forward_duration_bucket
    tgi_batch_inference_duration_bucket tgi_queue_size tgi_request_count tgi_request_duration_bucket tgi_request_failure
    tgi_request_generated_tokens_bucket tgi_request_generated_tokens_count tgi_request_generated_tokens_sum
    tgi_request_input_length_bucket tgi_request_mean_time_per_token_duration_bucket tgi_request_queue_duration_bucket
    tgi_request_skipped_tokens_bucket tgi_request_success
""".split()
#: What promtool has against TGI's names, and nothing else.
EXCEPTIONS = {
    *(
        f'{name} counter metrics should have "_total" suffix'
        for name in (
            "tgi_request_count",
            "tgi_request_success",
            "tgi_request_failure",
            "tgi_batch_inference_count",
            "tgi_batch_inference_success",
            "tgi_batch_inference_failure",
            "tgi_batch_concat",
        )
    ),
    'tgi_request_count non-histogram and non-summary metrics should not have "_count" suffix',
    'tgi_batch_inference_count non-histogram and non-summary metrics should not have "_count" suffix',
}


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of the text by its name and labels, without their quotation marks."""
    lines = (line for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    return {name.replace('"', ""): float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def request(prompt: int = 3, most: int = 8, operation: str = "text_completion", **reached: float) -> Request:
    """Arrived at 100 s; `reached` sets the other instants."""
    made = Request("r", Task("", (1,) * prompt, most, Sampling(), operation=operation), lambda _: None, 100.0)
    for name, instant in reached.items():
        setattr(made, name, instant)
    return made


def a_success(metrics: Metrics, operation: str = "text_completion", new_tokens: int = 4) -> None:
    """2 s to be read, 3 s in the queue, 0.5 s of prefill, and a token every 0.25 s."""
    last = 105.5 + 0.25 * (new_tokens - 1)
    reached = {"queued_s": 102.0, "prefill_started_s": 105.0, "first_token_s": 105.5, "last_token_s": last}
    done = request(operation=operation, **reached)
    done.new_tokens = new_tokens
    metrics.received([done.task])
    metrics.token(done, None)
    for _ in range(new_tokens - 1):
        metrics.token(done, 0.25)
        metrics.queued(0, 1)
    metrics.ended(done, "success")
    metrics.queued(0, 0)


def test_tgis_times_of_a_text_are_the_differences_of_its_instants():
    metrics = Metrics()
    metrics.loaded(LIMITS)
    a_success(metrics)
    now = values(metrics)
    sums = {
        "duration": 6.25,
        "validation_duration": 2,
        "queue_duration": 3,
        "inference_duration": 1.25,
        "mean_time_per_token_duration": 1.25 / 4,
        "generated_tokens": 4,
        "input_length": 3,
        "max_new_tokens": 8,
    }
    assert {name: now[f"tgi_request_{name}_sum"] for name in sums} == pytest.approx(sums)
    assert {now[f"tgi_request_{name}_count"] for name in sums} == {1}
    assert (now["tgi_request_count"], now["tgi_request_success"]) == (1, 1)


def test_opentelemetrys_times_are_of_successful_texts_and_the_duration_of_all_of_them():
    metrics = Metrics("cpu", "m")
    a_success(metrics)
    a_success(metrics, "chat", new_tokens=1)
    metrics.ended(request(), "slow_reader")
    now = values(metrics)
    text = "gen_ai_operation_name=text_completion,gen_ai_provider_name=tokenclock,gen_ai_request_model=m"
    chat = text.replace("text_completion", "chat")
    assert now[f"gen_ai_server_time_to_first_token_seconds_sum{{{text}}}"] == 5.5
    assert now[f"gen_ai_server_time_to_first_token_seconds_sum{{{chat}}}"] == 5.5
    assert now[f"gen_ai_server_time_per_output_token_seconds_sum{{{text}}}"] == 0.25
    assert f"gen_ai_server_time_per_output_token_seconds_sum{{{chat}}}" not in now, "one token has no next one"
    assert now[f"gen_ai_server_request_duration_seconds_sum{{{text}}}"] == 6.25
    assert now[f"gen_ai_server_request_duration_seconds_count{{{text},error_type=slow_reader}}"] == 1


@pytest.mark.parametrize(
    ("told", "err"), [("template_error", "template"), ("overloaded", "overloaded"), ("healthcheck", "healthcheck")]
)
def test_a_refusal_is_counted_under_tgis_word_for_it(told: str, err: str):
    metrics = Metrics()
    metrics.refused(told)
    now = values(metrics)
    assert (now["tgi_request_count"], now[f"tgi_request_failure{{err={err}}}"]) == (1, 1)
    assert sum(value for name, value in now.items() if name.startswith("tgi_request_failure")) == 1
    assert sum(value for name, value in now.items() if name.startswith("tokenclock_aborted")) == 0, "it was never taken"


def test_a_text_whose_engine_is_lost_is_counted_once_even_if_the_engine_comes_back():
    metrics, text = Metrics(), request()
    metrics.filling(text)
    metrics.token(text, None)
    for _ in range(2):
        metrics.lost(text, "generation")
    metrics.ended(text, "success")
    metrics.queued(0, 0)
    now = values(metrics)
    assert now["tgi_request_failure{err=generation}"] == now["tokenclock_aborted_requests_total{cause=generation}"] == 1
    assert now["tgi_request_success"] == 0
    assert now["tgi_batch_current_max_tokens"] == 0


@pytest.mark.parametrize("outcome", ["dropped", "generation", "slow_reader", "whatever comes next"])
def test_a_text_that_was_cut_is_counted_by_its_cause(outcome: str):
    metrics = Metrics()
    metrics.received([request().task])
    metrics.ended(request(), outcome)
    now = values(metrics)
    assert (
        now[f"tgi_request_failure{{err={outcome}}}"]
        == now[f"tokenclock_aborted_requests_total{{cause={outcome}}}"]
        == 1
    )
    assert (now["tgi_request_count"], now["tgi_request_success"]) == (1, 0)
    assert now["tgi_request_duration_count"] == 0, "TGI's times are of successful texts"


def test_what_the_batch_may_grow_to_is_counted_from_the_first_token_to_the_end():
    metrics = Metrics()
    one, two, never = request(3, 8), request(5, 100), request(9, 9)
    metrics.token(one, None)
    metrics.token(two, None)
    metrics.queued(1, 2)
    assert values(metrics)["tgi_batch_current_max_tokens"] == 3 + 8 + 5 + 100
    metrics.ended(never, "dropped")
    metrics.ended(one, "success" if one.last_token_s else "dropped")
    metrics.queued(0, 1)
    assert values(metrics)["tgi_batch_current_max_tokens"] == 5 + 100
    metrics.ended(two, "generation")
    metrics.queued(0, 0)
    assert values(metrics)["tgi_batch_current_max_tokens"] == 0


def test_a_slot_that_is_being_filled_is_in_use_before_it_decodes():
    metrics = Metrics()
    metrics.loaded(LIMITS)

    def said() -> tuple[float, ...]:
        now = values(metrics)
        return (
            now["tgi_queue_size"],
            now["tgi_batch_current_size"],
            now["tokenclock_slots_in_use"],
            now["tokenclock_slots"],
        )

    filling, other = request(), request()
    metrics.filling(filling)
    metrics.queued(2, 1)
    assert said() == (2, 1, 2, 4)
    metrics.ended(other, "dropped")
    metrics.queued(1, 1)
    assert said() == (1, 1, 2, 4), "another one's end empties no slot that is being filled"
    metrics.token(filling, None)
    metrics.queued(1, 2)
    assert said() == (1, 2, 2, 4)
    metrics.filling(other)
    metrics.ended(other, "dropped")
    metrics.queued(0, 2)
    assert said() == (0, 2, 2, 4)


def test_tokens_of_a_step_are_told_together_and_each_has_its_own_gap():
    metrics = Metrics()
    batch = [request() for _ in range(5)]
    for gaps in ([0.02] * 5, [0.02, 0.02, 0.5, 0.02, 0.5]):
        for each, gap in zip(batch, gaps, strict=True):
            metrics.token(each, gap)
        metrics.queued(0, 5)
    now = values(metrics)
    assert now["tokenclock_output_tokens_total"] == now["tokenclock_inter_token_latency_seconds_count"] == 10
    assert now["tokenclock_inter_token_latency_seconds_sum"] == pytest.approx(8 * 0.02 + 2 * 0.5)
    assert now["tokenclock_inter_token_latency_seconds_bucket{le=0.02}"] == 8
    assert now["tokenclock_inter_token_latency_seconds_bucket{le=0.5}"] == 10


def test_the_parts_of_a_step_add_up():
    metrics = Metrics()
    metrics.stepped("decode", 0.5, 3)
    metrics.completed("decode", 0.75, 0.125)
    metrics.completed("prefill", 9.0, 1.0)  # its call never came back
    now = values(metrics)
    parts = [now[f"tgi_batch_{part}_duration_sum{{method=decode}}"] for part in ("forward", "decode", "filter")]
    assert parts == [0.5, 0.125, 0.125]
    assert now["tgi_batch_inference_duration_sum{method=decode}"] == sum(parts)
    assert now["tokenclock_step_duration_seconds_sum{step=decode}"] == 0.5
    assert (now["tokenclock_decode_batch_size_sum"], now["tokenclock_decode_batch_size_count"]) == (3, 1)
    for method, good, bad in (("decode", 1, 0), ("prefill", 0, 1)):
        counts = [now[f"tgi_batch_inference_{what}{{method={method}}}"] for what in ("count", "success", "failure")]
        assert counts == [1, good, bad]
    assert now["tgi_batch_inference_duration_count{method=prefill}"] == 0


class Run:
    """An engine over a scripted backend, and what became of every request."""

    def __init__(self, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("server.engine.engine.Detokenizer", Letters)
        self.metrics = Metrics()
        self.metrics.loaded(backend.limits)
        self.inbox: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self.engine = Engine(backend, Alphabet(), self.hand_over, self.metrics, lambda _: None)  # type: ignore[arg-type]

    def hand_over(self, batch: Sequence[tuple[Request, Delivery]]) -> None:
        for of, delivery in batch:
            of.deliver([delivery])

    def submit(self, prompt: Sequence[int], new_tokens: int) -> Request:
        made = Request(
            "r", Task("", tuple(prompt), new_tokens, Sampling(ignore_eos=True)), partial(put_all, self.inbox)
        )
        self.metrics.received([made.task])
        self.engine.submit(made)
        return made

    def ends(self, texts: int) -> list[Delivery]:
        """The last delivery of so many texts."""
        last: list[Delivery] = []
        while len(last) < texts:
            delivery = self.inbox.get(timeout=10)
            if isinstance(delivery, Failure) or delivery.finish is not None:
                last.append(delivery)
        return last


def test_over_the_engine_every_sum_has_its_closed_form(monkeypatch: pytest.MonkeyPatch):
    run = Run(ScriptedBackend(slots=3, chunks=2), monkeypatch)
    for new_tokens in range(1, 21):  # 210 tokens of 20 texts
        run.submit((1, 2, 3)[: new_tokens % 3 + 1], new_tokens)
    run.engine.start()
    assert all(isinstance(last, Token) for last in run.ends(20))
    assert run.engine.stop(10)
    now = values(run.metrics)
    prompts = sum(new_tokens % 3 + 1 for new_tokens in range(1, 21))
    expected = {
        "tgi_request_count": 20,
        "tgi_request_success": 20,
        "tgi_request_generated_tokens_sum": 210,
        "tgi_request_max_new_tokens_sum": 210,
        "tgi_request_input_length_sum": prompts,
        "tokenclock_input_tokens_total": prompts,
        "tokenclock_output_tokens_total": 210,
        "tokenclock_inter_token_latency_seconds_count": 210 - 20,
        "tokenclock_decode_batch_size_sum": 210 - 20,
        "tgi_batch_inference_success{method=prefill}": 2 * 20,
        "tokenclock_step_duration_seconds_count{step=prefill}": 2 * 20,
        "tgi_queue_size": 0,
        "tgi_batch_current_size": 0,
        "tgi_batch_current_max_tokens": 0,
        "tgi_batch_max_total_tokens": 3 * 100,
        "tokenclock_slots_in_use": 0,
        "tokenclock_slots": 3,
    }
    assert {name: now[name] for name in expected} == expected
    operation = "gen_ai_operation_name=text_completion,gen_ai_provider_name=tokenclock"
    assert now[f"gen_ai_server_time_to_first_token_seconds_count{{{operation}}}"] == 20
    assert now[f"gen_ai_server_time_per_output_token_seconds_count{{{operation}}}"] == 19, "one has a single token"
    assert now[f"gen_ai_server_request_duration_seconds_count{{{operation}}}"] == 20
    decodes = now["tgi_batch_inference_count{method=decode}"]
    assert (
        decodes == now["tokenclock_decode_batch_size_count"] == now["tgi_batch_forward_duration_count{method=decode}"]
    )
    assert 190 / 3 <= decodes <= 190
    assert sum(value for name, value in now.items() if name.startswith("tgi_request_failure")) == 0


def test_prompts_that_join_a_running_batch_are_counted(monkeypatch: pytest.MonkeyPatch):
    run = Run(ScriptedBackend(slots=3), monkeypatch)
    for _ in range(3):
        run.submit((1, 2), 50)
    run.engine.start()
    run.ends(3)
    run.engine.stop(10)
    assert values(run.metrics)["tgi_batch_concat{reason=free_slot}"] == 2, "the first one has nobody to join"


def test_a_backend_that_breaks_is_a_failed_step_and_its_texts_are_aborted(monkeypatch: pytest.MonkeyPatch):
    run = Run(ScriptedBackend(slots=2, fail_after=3), monkeypatch)
    for _ in range(2):
        run.submit((1, 2), 50)
    run.engine.start()
    assert all(isinstance(last, Failure) for last in run.ends(2))
    run.engine.stop(10)
    now = values(run.metrics)
    assert now["tgi_batch_inference_failure{method=decode}"] >= 1
    assert now["tgi_batch_inference_success{method=decode}"] == 3
    assert now["tokenclock_aborted_requests_total{cause=generation}"] == 2
    assert now["tgi_batch_current_max_tokens"] == now["tokenclock_slots_in_use"] == now["tgi_queue_size"] == 0


def test_while_a_prompt_is_read_the_gauges_say_so(monkeypatch: pytest.MonkeyPatch):
    reading, go_on = threading.Event(), threading.Event()

    class Slow(ScriptedBackend):
        def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
            reading.set()
            assert go_on.wait(10)
            return super().prefill(slot, token_ids, sampling)

    run = Run(Slow(slots=2), monkeypatch)
    for _ in range(3):
        run.submit((1, 2), 2)
    run.engine.start()
    assert reading.wait(10)
    now = values(run.metrics)
    assert (now["tgi_queue_size"], now["tgi_batch_current_size"], now["tokenclock_slots_in_use"]) == (2, 0, 1)
    go_on.set()
    run.ends(3)
    run.engine.stop(10)


def test_every_name_of_tgis_dashboard_is_there_or_has_a_reason():
    metrics = Metrics()
    samples = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert len(DASHBOARD) == 20
    missing = {name for name in DASHBOARD if name not in samples}
    assert missing == {"tgi_batch_concat_duration_bucket", "tgi_request_skipped_tokens_bucket"}
    assert {name.removesuffix("_bucket") for name in missing} <= set(ABSENT)


def test_labels_are_those_that_tgis_queries_name():
    labels = {series.name: series.labels for series in Metrics().series}
    assert labels["tgi_request_failure"] == ("err",)
    assert labels["tgi_batch_concat"] == ("reason",)
    of_calls = {name for name, names in labels.items() if name.startswith("tgi_batch_") and names == ("method",)}
    durations = {f"tgi_batch_{part}_duration" for part in ("inference", "forward", "decode", "filter")}
    assert of_calls == durations | {f"tgi_batch_inference_{part}" for part in ("count", "success", "failure")}


def test_tgis_durations_have_its_buckets():
    assert len(TGI_S) == 35
    exact = [Decimal("0.0001") * Decimal("1.5") ** k for k in range(1, 36)]
    assert list(TGI_S) == pytest.approx([float(each) for each in exact], rel=1e-14)
    # Multiplied up in binary, as TGI does: the first of its `le` is no 0.00015.
    text = Metrics().render().decode()
    assert 'tgi_request_duration_bucket{le="0.00015000000000000001"} 0.0' in text
    assert text.count("tgi_request_duration_bucket") == 36


def test_tgis_token_counts_have_a_hundred_buckets_to_the_most_there_can_be():
    metrics = Metrics()
    metrics.loaded(LIMITS)
    text = metrics.render().decode()
    for name, most in (("input_length", 2000), ("generated_tokens", 4000), ("max_new_tokens", 4000)):
        bounds = [line.split('"')[1] for line in text.splitlines() if line.startswith(f"tgi_request_{name}_bucket")]
        assert bounds == [*(str(most // 100 * k) for k in range(1, 101)), "+Inf"]
    assert hundredths(2047)[:2] == (20.47, 40.94)


@pytest.mark.parametrize(
    ("bounds", "recommended", "first", "last"),
    [
        (FIRST_TOKEN_S, RECOMMENDED_FIRST_TOKEN_S, 1e-3, 1e2),
        (PER_TOKEN_S, RECOMMENDED_PER_TOKEN_S, 1e-4, 1e1),
        (REQUEST_S, RECOMMENDED_REQUEST_S, 1e-3, 1e3),
        (STEP_S, (), 1e-4, 1e1),
    ],
)
def test_neighbouring_bounds_are_at_most_28_percent_apart(
    bounds: Sequence[float], recommended: Sequence[float], first: float, last: float
):
    assert (bounds[0], bounds[-1]) == (first, last)
    assert set(recommended) <= set(bounds)
    ratios = [high / low for low, high in pairwise(bounds)]
    assert len(ratios) >= 50
    assert min(ratios) > 1
    assert max(ratios) <= 1.28 + 1e-9


def test_the_recommended_bounds_alone_are_not_dense_enough():
    assert max(high / low for low, high in pairwise(RECOMMENDED_FIRST_TOKEN_S)) == 5


def test_the_build_is_told():
    named = [name for name in values(Metrics("neuron", 'a "model"')) if name.startswith("tokenclock_build_info")]
    assert len(named) == 1
    assert f"version={__version__},python=3." in named[0]
    assert named[0].endswith("backend=neuron,model=a \\model\\}")


def test_names_follow_their_family_and_are_said_once():
    names = [series.name for series in Metrics().series]
    assert len(names) == len(set(names)) == 35
    assert {name.split("_")[0] for name in names} == {"tgi", "gen", "tokenclock"}
    assert [name for name in names if name.startswith("gen_ai")] == [
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds",
        "gen_ai_server_request_duration_seconds",
    ]
    assert set(NOTES) <= set(names)
    assert not set(ABSENT) & set(names)
    assert list(BATCH) == sorted(BATCH)


def test_two_apps_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    a_success(one)
    assert (values(one)["tgi_request_success"], values(other)["tgi_request_success"]) == (1, 0)


def test_nothing_is_not_a_number():
    metrics = Metrics()
    a_success(metrics)
    found: Mapping[str, float] = values(metrics)
    assert not [name for name, value in found.items() if math.isnan(value)]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_promtool_names_tgis_exceptions_and_nothing_else():
    metrics = Metrics("cpu", "m")
    metrics.loaded(LIMITS)
    a_success(metrics)
    metrics.refused("healthcheck")
    metrics.ended(request(), "slow_reader")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), capture_output=True, check=False, timeout=60
    )
    assert set(checked.stderr.decode().splitlines()) == EXCEPTIONS, checked.stdout
