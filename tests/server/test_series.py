"""Series are written to the byte as the text format 0.0.4 asks, under exactly the names they were given.

Method: expected texts by hand; prometheus_client's own parser reads them back as a second opinion.
"""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.series import Counter, Gauge, Histogram, Series, text


def written(series: Series) -> str:
    registry = CollectorRegistry()
    registry.register(series)
    return text(registry)


def test_a_counter_keeps_the_name_it_was_given():
    asked = Counter("tgi_request_count", "Texts that were asked for")
    assert written(asked) == (
        "# HELP tgi_request_count Texts that were asked for\n# TYPE tgi_request_count counter\ntgi_request_count 0.0\n"
    )
    asked.inc()
    asked.inc(2)
    assert written(asked).endswith("\ntgi_request_count 3.0\n")


def test_known_labels_are_there_from_the_start_and_others_from_their_first_event():
    cut = Counter("cut_total", "Cut", ["err"], [("dropped",)])
    cut.inc(1, "slow_reader")
    assert written(cut).splitlines()[2:] == ['cut_total{err="dropped"} 0.0', 'cut_total{err="slow_reader"} 1.0']


def test_a_gauge_says_what_it_was_set_to_last():
    waiting = Gauge("tgi_queue_size", "Waiting")
    waiting.set(7)
    waiting.set(2)
    assert written(waiting) == "# HELP tgi_queue_size Waiting\n# TYPE tgi_queue_size gauge\ntgi_queue_size 2.0\n"


def test_a_bucket_holds_what_is_at_most_its_bound_and_all_that_came_before():
    took = Histogram("took_seconds", "Took", (0.00015, 1, 2.5), ["method"], [("prefill",)])
    took.observe(1, "decode")  # exactly a bound
    took.observe(1.5, "decode", times=3)
    took.observe(9, "decode")
    assert written(took) == (
        "# HELP took_seconds Took\n"
        "# TYPE took_seconds histogram\n"
        'took_seconds_bucket{method="prefill",le="0.00015"} 0.0\n'
        'took_seconds_bucket{method="prefill",le="1"} 0.0\n'
        'took_seconds_bucket{method="prefill",le="2.5"} 0.0\n'
        'took_seconds_bucket{method="prefill",le="+Inf"} 0.0\n'
        'took_seconds_sum{method="prefill"} 0.0\n'
        'took_seconds_count{method="prefill"} 0.0\n'
        'took_seconds_bucket{method="decode",le="0.00015"} 0.0\n'
        'took_seconds_bucket{method="decode",le="1"} 1.0\n'
        'took_seconds_bucket{method="decode",le="2.5"} 4.0\n'
        'took_seconds_bucket{method="decode",le="+Inf"} 5.0\n'
        'took_seconds_sum{method="decode"} 14.5\n'
        'took_seconds_count{method="decode"} 5.0\n'
    )


def test_bounds_may_come_later():
    length = Histogram("tokens", "Tokens", ())
    assert 'tokens_bucket{le="+Inf"} 0.0' in written(length)
    length.set_bounds((5, 10))
    length.observe(7)
    assert written(length).splitlines()[2:5] == [
        'tokens_bucket{le="5"} 0.0',
        'tokens_bucket{le="10"} 1.0',
        'tokens_bucket{le="+Inf"} 1.0',
    ]


def test_a_label_without_a_value_is_left_out():
    took = Counter("took_total", "Took", ["error_type"])
    took.inc(1, "")
    assert written(took).endswith("\ntook_total 1.0\n")


def test_a_series_that_has_nothing_to_say_is_left_out():
    assert written(Counter("took_total", "Took", ["error_type"])) == ""


@given(meaning=st.text(), value=st.text(min_size=1), number=st.floats(allow_nan=False))
def test_any_text_and_number_comes_back_as_it_was(meaning: str, value: str, number: float):
    model = Gauge("build_info", meaning, ["model"])
    model.set(number, value)
    lines = written(model)
    assert lines.count("\n") == 3, "a line feed in a text must not end its line"
    family = next(iter(text_string_to_metric_families("".join(lines))))
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"model": value}, number)]


def test_no_event_of_any_thread_is_lost():
    count, took = Counter("count_total", "Count"), Histogram("took_seconds", "Took", (1, 2))

    def work() -> None:
        for _ in range(20_000):
            count.inc()
            took.observe(1.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "count_total 80000.0" in written(count)
    assert "took_seconds_count 80000.0" in written(took)


def test_a_value_for_every_label_is_asked_for():
    cut = Counter("cut_total", "Cut", ["err"])
    cut.inc()
    with pytest.raises(ValueError, match=r"shorter|longer"):
        written(cut)
