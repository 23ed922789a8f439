"""The workers of `--processes N`: processes of this machine that are started, watched and ended with their master."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_S = 10.0


class Children:
    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._by_pid = {process.pid: process for process in processes}

    def ended(self, pid: int | None) -> bool:
        """Whether this is one of them, and no more."""
        return pid in self._by_pid and self._by_pid[pid].poll() is not None

    def lost(self) -> list[str]:
        """Sentences, one for each that has ended."""
        codes = {pid: process.poll() for pid, process in self._by_pid.items()}
        return [f"the process {pid} ended with {code}" for pid, code in codes.items() if code is not None]


@contextmanager
def children(count: int, port: int, results: Path, own: Sequence[str]) -> Iterator[Children]:
    """Start `count` workers of the master at `port`; on the way out they have ended.

    They get a session of their own, so that Ctrl-C reaches their master alone, which stops them in order; they end by
    themselves where it is killed outright. own: options with keys, which no message carries.
    """
    command = [sys.executable, "-m", "loadtest", "run", "--worker", "--master-host", "127.0.0.1"]
    command += ["--master-port", str(port), "--parent", str(os.getpid()), "--results", str(results), *own]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        while len(processes) < count:
            started = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
            processes.append(started)
        yield Children(processes)
    finally:
        deadline_s = time.monotonic() + END_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
