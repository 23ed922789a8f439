"""A server that is started for one configuration and stopped after it: `--serve 'COMMAND {slots} {port}'`.

The command gets a session of its own, so that Ctrl-C reaches this process alone, which then ends the server in order:
SIGTERM, a grace time, SIGKILL for it and everything it started.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loadtest.endpoints.base import EndpointError, parse_url
from loadtest.redaction import hide
from loadtest.transport.base import HttpRequest, TransportError, fetch
from loadtest.transport.choice import controlling
from loadtest.transport.tls import Tls

GRACE_S = 30.0
PR_SET_PDEATHSIG = 1  # Source: prctl(2)
POLL_S = 0.2
TAIL_LINES = 3


@contextmanager
def served(template: str, slots: int, log: Path, ready_s: float) -> Iterator[tuple[str, str]]:
    """Start the command, wait until /health says 200, and stop it on the way out. Yields (url, command).

    Raises: EndpointError where it can't be started, ends, or isn't ready in `ready_s` seconds.
    """
    port = free_port()
    try:
        command = template.format(slots=slots, port=port)
        arguments = shlex.split(command)
    except (KeyError, IndexError, ValueError) as error:
        raise EndpointError(
            f"--serve {template!r} can't be read ({error}): only {{slots}} and {{port}} are filled in"
        ) from error
    if "{port}" not in template:
        raise EndpointError(f"--serve {template!r} has no {{port}}: the server must listen where it is looked for")
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise EndpointError(f"{arguments[0]} can't be started: {error.strerror}") from error
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log, ready_s)
            yield url, command
        finally:
            _end(process)
            out.close()
            _without_keys(log)


def _without_keys(log: Path) -> None:
    """Servers there are that log the key they were started with."""
    with suppress(OSError):
        written = log.read_text(encoding="utf-8", errors="surrogateescape")
        shown = hide(written)
        if shown != written:
            log.write_text(shown, encoding="utf-8", errors="surrogateescape")


def _end_with_parent() -> None:
    """Runs in the child: where the kernel can (Linux), SIGTERM reaches it even if this process is killed outright."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, ready_s: float) -> None:
    connection = controlling("gevent", Tls())(parse_url(url))
    give_up = time.monotonic() + ready_s
    try:
        while time.monotonic() < give_up:
            if process.poll() is not None:
                tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:])
                raise EndpointError(f"the server ended with {process.returncode} before it was ready: {tail}")
            try:
                status, _ = fetch(connection, HttpRequest("GET", "/health"), timeout_s=5)
            except TransportError:
                status = 0
            if status == 200:
                return
            time.sleep(POLL_S)
        raise EndpointError(f"the server was not ready after {ready_s:g} s; its log: {log}")
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()
