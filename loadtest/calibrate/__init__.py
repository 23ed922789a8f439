"""How wrong the client's own clock is: the load of a run once more, against a server whose schedule is known.

CALIBRATED, what one load gives, in the verb's --json and in run.json:

```
{"shape": {"concurrency", "input_tokens", "tokens", "first_s", "gap_s", "event_bytes", "arrivals", "in_waves",
           "protocol", "transport"},                 what was replayed, shortened to fit
 "seconds": 3.0, "cells": ["T 256→768", ...],        how long requests were begun; the cells that it stands for
 "requests": 64, "paired": 60, "verdicts": {"complete": 64},      all phases; paired: steady, and whole
 "errors": {"ttft_s": SPREAD, "itl_s": SPREAD, "latency_s": SPREAD},     see errors.py
 "server_late_s": SPREAD, "schedule_kept": true,     the truth server's own lateness, in no error
 "server_stamps": 1.0, "kernel_stamps": 1.0, "shared_reads": 0.0,        shares: requests, requests, token events
 "tokens_per_s": 3021.0, "cpu_us_per_token": 41.2 | null,
 "client": {"verdict", "saturated", "reasons", ...}}              as in summary.json
SPREAD = {"n", "p50", "p99", "max", "judged"}        seconds; p50 and p99 null where not printable, all null of none
```
"""
