"""A server's `/metrics` is read before and after each cell, when nothing is timed, in bounded time and size.

Only the histograms of `averages.HISTOGRAMS` are kept, as sum and count by their labels. Where an endpoint's own page
can't be read, nothing is said: most have none. One that the user names must answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gevent
from prometheus_client.parser import text_string_to_metric_families

from loadtest.endpoints.base import EndpointError, parse_url
from loadtest.plan import Cell
from loadtest.redaction import hidden
from loadtest.split.averages import ALL, STARTED
from loadtest.transport.base import Connect, HttpRequest, Seen, Target, TimedOut, Timeouts, TransportError

PATH = "/metrics"
LONGEST_S = 2.0  # to connect, and again to read: after a slower page the server isn't asked again
MOST_BYTES = 8 * 2**20
MOST_LINES = 2048  # of the histograms that are kept
SETTLE_S = 0.2  # servers count a request at its end, some after its last byte is sent
PREFIXES = (*sorted({histogram.name for histogram in ALL}), STARTED)
ACCEPT = (("accept", "text/plain;version=0.0.4, text/plain;q=0.5"),)


class ScrapeError(Exception):
    """The page can't be used; the message says what it is instead."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is read."""

    url: str | None = None  # that the user names; None: the endpoint's own


class Scrape:
    """Reads of one page, in pairs. After a read that failed there are no more: it would be slow again."""

    def __init__(self, control: Connect, target: Target, named: bool = False) -> None:
        """control: how what isn't timed is asked. named: by the user, so that it has to answer.

        Raises: EndpointError where it has to answer and doesn't.
        """
        self.url = f"{target.origin}{target.path}"
        self._control, self._target = control, target
        self._before: dict[str, Any] | None = None
        self._answers = True
        try:
            self._read()
        except ScrapeError as error:
            self._answers = False
            if named:
                raise EndpointError(
                    f"--metrics-url {self.url}: {error}; name a page of Prometheus text, or leave it out"
                ) from error

    def before(self) -> None:
        self._before = None
        if self._answers:
            self._before = self._attempt()

    def after(self, cell: Cell, phases: Sequence[str]) -> dict[str, Any] | None:
        """An entry of run.json's `server_metrics`, or None where there is nothing to tell.

        phases: of the samples that the cell's requests between the two reads have.
        """
        if self._before is None:
            return None
        gevent.sleep(SETTLE_S)
        before, after = self._before, self._attempt()
        reason = next((each["reason"] for each in (before, after) if each["reason"]), None)
        if reason is None and not (before["series"] or after["series"]):
            return None
        said = {**cell.named(), "url": self.url, "phases": list(phases), "reason": reason}
        for name, read in (("before", before), ("after", after)):
            said[name] = None if read["reason"] else {key: read[key] for key in ("started_s", "series")}
        kept: dict[str, Any] = hidden(said)
        return kept

    def _attempt(self) -> dict[str, Any]:
        try:
            return {**self._read(), "reason": None}
        except ScrapeError as error:
            self._answers = False
            return {"reason": f"{self.url}: {error}"}

    def _read(self) -> dict[str, Any]:
        """Raises: ScrapeError."""
        try:
            with closing(self._control(self._target)) as connection:
                seen, limit, page = Seen(), Timeouts(*[LONGEST_S] * 4), bytearray()
                for read in connection.exchange(HttpRequest("GET", "", ACCEPT), seen, limit):
                    page += read.data
                    if len(page) > MOST_BYTES:
                        raise ScrapeError(f"it is longer than {MOST_BYTES:,} bytes")
        except TimedOut as error:
            raise ScrapeError(SLOW) from error
        except TransportError as error:
            raise ScrapeError(f"it doesn't answer ({error})") from error
        if seen.status != 200:
            raise ScrapeError(f"it answers {seen.status}")
        return known(bytes(page))


SLOW = f"it took longer than {LONGEST_S:g} s"


def known(page: bytes) -> dict[str, Any]:
    """`{"started_s", "series": [{"name", "labels", "sum", "count"}]}` of the histograms that are known; others' lines
    aren't looked at.

    Raises: ScrapeError where a line of theirs isn't Prometheus' text format.
    """
    text = page.decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.startswith(PREFIXES) and "_bucket{" not in line]
    if len(lines) > MOST_LINES:
        raise ScrapeError(f"it has {len(lines):,} lines of the histograms that are read; {MOST_LINES:,} are the most")
    try:
        families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError as error:
        raise ScrapeError(f"it is no Prometheus text: {error}") from error
    series: dict[tuple[Any, ...], dict[str, Any]] = {}
    started_s = None
    for sample in (sample for family in families for sample in family.samples):
        value = float(sample.value)
        if not math.isfinite(value):
            raise ScrapeError(f"{sample.name} is {value}")
        name, _, part = sample.name.rpartition("_")
        if sample.name == STARTED:
            started_s = value + (started_s or 0.0)
        elif part in ("sum", "count") and any(each.has(name, sample.labels) for each in ALL):
            labels = sorted(sample.labels.items())
            of = series.setdefault((name, *labels), {"name": name, "labels": dict(labels), "sum": None, "count": None})
            of[part] = value
    whole = [each for each in series.values() if None not in (each["sum"], each["count"])]
    return {"started_s": started_s, "series": whole}


class NoScrape:
    """Where nothing is read."""

    def before(self) -> None:
        pass

    def after(self, cell: Cell, phases: Sequence[str]) -> None:
        pass


def scraping(control: Connect, endpoint: Target, page: Page | None) -> Scrape | NoScrape:
    """Headers, which may hold a key, go to the endpoint's own host and port only.

    Raises: EndpointError where the user's URL is none, or doesn't answer.
    """
    if page is None:
        return NoScrape()
    if page.url is None:
        return Scrape(control, replace(endpoint, path=endpoint.path + PATH))
    named = parse_url(page.url)
    target = replace(endpoint if named.origin == endpoint.origin else named, path=named.path or PATH)
    return Scrape(control, target, named=True)
