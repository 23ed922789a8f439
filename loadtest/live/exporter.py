"""GET /metrics of the load generator, on a port of its own: Prometheus watches both halves of a test.

What a scrape costs is spent where no stream has anything to do, a family at a time. Nothing that goes wrong here ends a
test: a port in use is a sentence.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.pywsgi import LoggingLogAdapter, WSGIServer
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from loadtest.breath import breathe
from loadtest.interruption import linger, told
from loadtest.live.calibrated import Calibrated, newest
from loadtest.live.processes import Processes
from loadtest.live.series import Seen, families

logger = logging.getLogger(__name__)
HOST, PORT, OFF = "TOKENCLOCK_METRICS_HOST", "TOKENCLOCK_METRICS_PORT", "off"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", "9646"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS = 8  # at once; more have to wait
PATIENCE_S = 10.0  # a scraper that hasn't got its answer by then is cut off
CLOSING_S = 1.0
LAST_S = 15.0  # from one scrape on, a test's end waits at most so long for the next, which hears how it ended
BY_PROMETHEUS = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"  # a header of every scrape, and of nobody else's request


class NoMetrics(Exception):
    """They can't be served; the message says why, and what to do."""


@contextmanager
def exported(processes: Processes, results: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Serve metrics meanwhile, where the environment says; `say` hears where, or why not. A Prometheus that scrapes at
    least every LAST_S seconds hears how it ended, unless it was cut short; where it doesn't, `say` hears so.
    """
    if os.environ.get(PORT) == OFF:
        yield
        return
    try:
        exporter = Exporter(processes, results)
    except NoMetrics as error:
        say(str(error))
        yield
        return
    say(f"metrics: {exporter.url}")
    try:
        yield
        exporter.wait_for_last(say)
    finally:
        exporter.close()


class Exporter:
    """Serves /metrics from now on, until `close`."""

    def __init__(self, processes: Processes, results: Path, environment: Mapping[str, str] = os.environ) -> None:
        """results: where a calibrated run is looked for. Raises: NoMetrics."""
        self._processes = processes
        self._scraped_s = -math.inf  # when Prometheus last did
        self._told = 0  # requests that it heard of then
        self._calibrated: Sequence[Calibrated] = newest(results)
        host, port = environment.get(HOST) or DEFAULT_HOST, environment.get(PORT) or DEFAULT_PORT
        if not (port.isascii() and port.isdecimal() and int(port) < 65536):
            raise NoMetrics(
                f"no metrics: {PORT} is {port!r}, which is no port: set it to a number up to 65535, or to {OFF}"
            )
        quiet: Any = LoggingLogAdapter(logger, logging.DEBUG)  # what scanners send is no news
        try:
            listener = _listening(host, int(port))
        except OSError as error:
            raise NoMetrics(
                f"no metrics: {host}:{port} can't be listened on ({error.strerror or error}); set {PORT} to another "
                f"port or to {OFF}, or {HOST} to an address of this machine"
            ) from error
        self._server = _Server(listener, self._answer, log=None, error_log=quiet, spawn=Pool(CONNECTIONS))
        self._server.start()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def wait_for_last(self, say: Callable[[str], object]) -> None:
        """Where requests ended since Prometheus' last scrape: until the next, or an interruption."""

        def wanting() -> bool:
            return self._told != self._requests() and time.monotonic() < self._scraped_s + LAST_S

        if wanting() and not told():
            say(f"metrics: until Prometheus has scraped once more, {LAST_S:g} s at most")
        linger(wanting)
        if self._told != self._requests() and math.isfinite(self._scraped_s):
            say(
                f"metrics: Prometheus has heard of {self._told} of {self._requests()} requests: it did not scrape again"
            )

    def _requests(self) -> int:
        return sum(sum(state.requests.values()) for state in self._processes.states())

    def close(self) -> None:
        """Scrapes that run may finish."""
        self._server.stop(timeout=CLOSING_S)

    def _answer(self, request: Mapping[str, Any], begin: Callable[..., object]) -> Iterable[bytes]:
        if request["PATH_INFO"] != "/metrics":
            status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"it is /metrics\n"
        elif request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"it is GET /metrics\n"
        else:
            requests = self._requests()
            status, kind, body = HTTPStatus.OK, CONTENT_TYPE, b"".join(self._written())
            if BY_PROMETHEUS in request:
                self._told, self._scraped_s = requests, time.monotonic()
        length = ("Content-Length", str(len(body)))
        begin(f"{status.value} {status.phrase}", [("Content-Type", kind), length, ("Connection", "close")])
        return [b"" if request["REQUEST_METHOD"] == "HEAD" else body]

    def _written(self) -> Iterator[bytes]:
        breathe()
        for family in families(Seen(self._processes.states(), self._processes.users(), self._calibrated)):
            breathe()
            yield generate_latest(_One(family))


def _listening(host: str, port: int) -> socket.socket:
    """Raises: OSError. gevent's own would leave its socket open then."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


class _One(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class _Server(WSGIServer):  # type: ignore[misc]  # gevent has no types
    def handle(self, sock: Any, address: Any) -> None:
        with gevent.Timeout(PATIENCE_S, False):
            super().handle(sock, address)
