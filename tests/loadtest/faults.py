"""The schedule server's faults after three of eight tokens, and what each must be called."""

from __future__ import annotations

from loadtest.verdict import Verdict

#: (fault, verdict, token events that came before it, part of the detail)
FAULTS = [
    ("truncate", Verdict.TRUNCATED, 3, "3 of 8 tokens"),
    ("truncate_clean", Verdict.TRUNCATED, 3, "3 of 8 tokens"),
    ("stall", Verdict.TIMEOUT, 3, "nothing arrived for 0.4 s"),
    ("reset", Verdict.CONNECTION, 3, "Connection reset by peer"),
    ("garble", Verdict.ERROR_IN_STREAM, 8, "not JSON"),
    ("garble_http", Verdict.ERROR_IN_STREAM, 3, "not HTTP/1.1"),
    ("error_event", Verdict.ERROR_IN_STREAM, 3, "generation: Request failed during generation"),
    ("stop_early", Verdict.STOPPED_EARLY, 3, "3 of 8 tokens although EOS was suppressed"),
    ("http_500", Verdict.HTTP_ERROR, 0, "HTTP 500: Incomplete generation"),
    ("overloaded", Verdict.OVERLOADED, 0, "HTTP 429: Model is overloaded"),
    ("empty", Verdict.TRUNCATED, 0, "0 of 8 tokens"),
    ("close_before_headers", Verdict.CONNECTION, 0, "before the response's headers"),
]
