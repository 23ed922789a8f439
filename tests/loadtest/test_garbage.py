"""A request leaves no reference cycle behind, so a run needs no garbage collection between two tokens, and has none.

Method: what the interpreter's own collector finds after twenty requests that end well, or don't; and whether it is on
when the samples of a run are kept, in a process of its own, since locust patches sockets.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
from loadtest.runner import Load, spawned
import gc, gevent
from loadtest.counting import ONE_EACH
from loadtest.dispatch import ClosedLoop, ids
from loadtest.endpoints.base import parse_url
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.plan import Cell
from loadtest.prompts import Prompts
from loadtest.transport.base import Timeouts
from loadtest.transport.gevent_socket import GeventConnection
from loadtest.truth.process import truth

kept = []
with truth(first=0.05, gap=0.05) as server:
    dispatch = ClosedLoop(Cell(None, None, 2, 8, 8), Prompts(ONE_EACH, 0, 1), ids("gc", 0), lambda: (2, 2))
    keep = lambda sample: kept.append((sample.phase, gc.isenabled()))
    load = Load(parse_url(server.url), GeventConnection, TgiEndpoint(), dispatch, "gc", 0, Timeouts(), keep, print)
    with spawned(load, 2, drain_s=10.0):
        gevent.sleep(0.6)
assert gc.isenabled()
print(sorted(set(kept)))
"""


def test_a_run_collects_no_garbage_between_two_tokens_and_neither_while_its_streams_drain():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout.strip() == "[('drain', False), ('warmup', False)]", done.stderr


@pytest.mark.parametrize("fault", [None, "truncate", "error_event", "http_500", "stop_early"])
def test_a_request_leaves_no_cycle_behind(truth: Any, fault: str | None):
    truth.measure(new_tokens=8, each=2, fault=fault)  # what a first request sets up stays
    gc.collect()
    gc.disable()
    try:
        samples = truth.measure(new_tokens=8, each=20, fault=fault)
        assert len(samples) == 20
        found = gc.collect()
    finally:
        gc.enable()
    assert found < 20, "less than one object a request"
