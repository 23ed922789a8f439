"""A real Prometheus on loopback, for as long as a test asks it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def prometheus(folder: Path) -> Iterator[Callable[[str], dict[str, float]]]:
    """Runs with the folder's prometheus.yml. Gives ask(PromQL): the values of an instant vector by their labels."""
    running = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    try:
        lines = (re.search(r'"Listening on" address=(\S+)', line) for line in running.stderr)
        address = next(found[1] for found in lines if found)
        threading.Thread(target=running.stderr.read, daemon=True).start()  # or the pipe fills up

        def ask(query: str) -> dict[str, float]:
            reply = httpx.get(f"http://{address}/api/v1/query", params={"query": query}).json()
            assert reply["status"] == "success", reply
            return {
                ",".join(sorted(f"{key}={value}" for key, value in each["metric"].items())): float(each["value"][1])
                for each in reply["data"]["result"]
            }

        yield ask
    finally:
        running.terminate()
        running.wait()
        running.stderr.close()


def until(true: Callable[[], bool], what: str | Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.05)
