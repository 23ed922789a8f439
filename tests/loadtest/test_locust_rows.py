"""Locust's table has the same rows whether a stream's gaps are logged one by one or together.

Method: both ways into two entries of locust's own statistics, in a process of its own, since locust patches sockets.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import loadtest.runner
from loadtest.books import log_all
import random
from locust.stats import RequestStats
draw = random.Random(7)
for sizes in ([0], [1], [2], [300], [1, 0, 5, 127, 64]):
    one, all_ = RequestStats().entries[("/", "ITL")], RequestStats().entries[("/", "ITL")]
    for size in sizes:
        kinds = [0.0, draw.uniform(0, 3), draw.uniform(3, 400), draw.gammavariate(1, 9e3)]
        gaps = [draw.choice(kinds) * draw.choice([1, 1.5, 7]) for _ in range(size)]
        for gap in gaps:
            one.log(gap, 0)
        log_all(all_, gaps)
    assert one.num_requests == all_.num_requests == sum(sizes)
    assert one.response_times == all_.response_times
    assert sum(one.num_reqs_per_sec.values()) == sum(all_.num_reqs_per_sec.values())
    assert (one.min_response_time, one.max_response_time) == (all_.min_response_time, all_.max_response_time)
    assert abs(one.total_response_time - all_.total_response_time) <= 1e-9 * one.total_response_time
    for q in (0.5, 0.9, 0.99):
        assert one.get_response_time_percentile(q) == all_.get_response_time_percentile(q)
print("same")
"""


def test_gaps_logged_together_are_gaps_logged_one_by_one():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout.strip() == "same", done.stderr
