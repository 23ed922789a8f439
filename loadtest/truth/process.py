"""A truth server for as long as a `with` block runs, in a process of its own, and what it recorded.

    with truth(first=0.2, gap=0.02, cpu=0) as server:
        ...                      # a load on 127.0.0.1:server.port
        records = server.records()

Only the standard library, so it works the same where gevent has patched it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CALL_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0


class Truth:
    """The running server."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.process = process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def records(self) -> list[dict[str, Any]]:
        """One object a stream, in order of arrival, those under way included: see `stream.Record`."""
        return [json.loads(line) for line in self._call("GET", "/truth").splitlines()]

    def clear(self) -> None:
        """Forget every stream, those under way included."""
        self._call("DELETE", "/truth")

    def _call(self, method: str, path: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=CALL_TIMEOUT_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"the truth server answers {response.status} to {method} {path}: {body[:200]!r}")
        return body


@contextmanager
def truth(**options: float | str | bool | Path) -> Iterator[Truth]:
    """Options are the command line's: `truth(first_spread=0, openai=True)` is `--first-spread 0 --openai`.

    Raises: RuntimeError where it does not start; why stands on stderr.
    """
    flags: list[str] = []
    for name, value in options.items():
        if value is not False:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest.truth", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C in a terminal is its client's business; it ends when its stdin closes
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the truth server did not start: it ended with {process.wait(END_TIMEOUT_S)}")
        yield Truth(json.loads(line)["port"], process)
    finally:
        process.stdin.close()  # which it ends on
        process.stdout.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
