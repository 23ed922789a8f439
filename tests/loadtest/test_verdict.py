"""The verdict is a pure function of what was seen; the table below is its definition."""

from __future__ import annotations

import pytest

from loadtest.verdict import Outcome, Verdict, judge

GOOD = {"status": 200, "tokens": 5, "demanded": 5, "finished": True}


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (GOOD, Verdict.COMPLETE),
        (GOOD | {"tokens": 6}, Verdict.COMPLETE),
        (GOOD | {"tokens": 4}, Verdict.STOPPED_EARLY),
        (GOOD | {"tokens": 0}, Verdict.EMPTY),
        (GOOD | {"finished": False}, Verdict.TRUNCATED),
        (GOOD | {"error": "overheated"}, Verdict.ERROR_IN_STREAM),
        (GOOD | {"finished": False, "timed_out": "silent"}, Verdict.TIMEOUT),
        (GOOD | {"finished": False, "broken": "reset"}, Verdict.CONNECTION),
        (GOOD | {"broken": "reset"}, Verdict.COMPLETE),  # after the stream's own end
        (GOOD | {"cancelled": True}, Verdict.CANCELLED),
        ({"status": 503, "error": "loading"}, Verdict.OVERLOADED),
        ({"status": 429}, Verdict.OVERLOADED),
        ({"status": 404}, Verdict.HTTP_ERROR),
        ({"status": 204, "finished": True, "tokens": 5}, Verdict.HTTP_ERROR),
        ({"broken": "refused"}, Verdict.CONNECTION),
        ({"timed_out": "no connection"}, Verdict.TIMEOUT),
        ({}, Verdict.TRUNCATED),
    ],
)
def test_what_was_seen_decides(seen: dict, verdict: Verdict):
    judged, detail = judge(Outcome(**seen))
    assert judged is verdict
    assert (detail is None) == (verdict is Verdict.COMPLETE)
