"""A request leaves no reference cycle behind, so a run needs no garbage collection between two tokens.

Method: what the interpreter's own collector finds after twenty requests that end well, or don't.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest


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
