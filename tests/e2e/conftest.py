"""The command lines as a user runs them, in processes of their own, and a real server to run them against."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SCHEDULE_SERVER = ROOT / "tests" / "schedule_server.py"
BIN = Path(sys.executable).parent


def tokenclock(*arguments: str, timeout: float = 100, calibrate: bool = False) -> subprocess.CompletedProcess[str]:
    """calibrate: as a `run` does by default, which takes seconds and is few tests' business."""
    if arguments[0] == "run" and not calibrate:
        arguments = (*arguments, "--no-calibrate")
    return subprocess.run(
        [sys.executable, "-m", "loadtest", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )


class Forked:
    """`tokenclock`, for commands that only refuse: see forked.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out, err)


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    command = [sys.executable, "-m", "tests.e2e.forked"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield Forked(process)  # leaving closes stdin, which ends it


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of `python -m server serve` with the demonstration model, ready. Bounded by the timeout of its test."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    assert process.stderr is not None
    try:
        url = next(found[1] for line in process.stderr if (found := re.search(r"listening on (\S+),", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        while httpx.get(f"{url}/health").status_code != 200:
            assert process.poll() is None
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
