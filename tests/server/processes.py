"""A server in a process of its own: started, found by what it says, and gone when the test is over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import httpx
import pytest

COMMAND = (sys.executable, "-m", "server", "serve", "--port", "0")


@contextmanager
def process(
    *options: str,
    command: Sequence[str] = COMMAND,
    environment: Mapping[str, str] | None = None,
    log: list[str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its URL, as soon as it says where it listens. Its log lines are put into `log`."""
    log = [] if log is None else log
    running = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"} | dict(environment or {}),
    )
    assert running.stdout is not None
    assert running.stderr is not None
    reader: threading.Thread | None = None
    try:
        for line in running.stderr:
            log.append(line)
            if found := re.search(r"listening on (\S+),", line):
                reader = threading.Thread(target=lambda: log.extend(running.stderr or ()), daemon=True)
                reader.start()  # or the pipe fills up
                yield running, found[1]
                break
        else:
            pytest.fail("it never said where it listens")
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()
        if reader is not None:
            reader.join(10)
        running.stdout.close()
        running.stderr.close()


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_ready(client: httpx.Client, route: str = "/health") -> set[int]:
    """The statuses that `route` answered until it was 200."""
    seen = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = client.get(route).status_code
        seen.add(status)
        if status == 200:
            return seen
        time.sleep(0.02)
    pytest.fail(f"not ready after a minute: {seen}")
