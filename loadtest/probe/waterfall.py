"""A probe as text: phases as bars on one axis, gaps as a sparkline, what looks wrong. From its facts alone, 80 columns.

ASCII but for the bars, and those only where they can be shown. What a stranger has said is escaped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

from loadtest.report.numbers import quantity

Facts = Mapping[str, Any]

WIDTH = 80
LABEL = 13  # columns of a row's name
NUMBER = 11
BARS = WIDTH - LABEL - 2 * NUMBER - 2
LEAST_S = 0.5e-6  # shows as 0.001 ms
MOST_TEXT = 56  # characters shown of what was generated
PHASES = {  # in their order; the first five come before the clock starts
    "name_s": "name (DNS)",
    "tcp_s": "connect",
    "tunnel_s": "proxy tunnel",
    "tls_s": "TLS",
    "http2_s": "HTTP/2",
    "send_s": "send",
    "headers_s": "headers",
    "first_event_s": "first event",
    "first_token_s": "first token",
    "tokens_s": "last token",
    "end_s": "end",
}
FRESH = ("name_s", "tcp_s", "tunnel_s", "tls_s", "http2_s")
SHOWN_HEADERS = ("server", "via", "content-type", "content-encoding", "transfer-encoding", "connection")
ALSO_SHOWN = ("x-accel-buffering", "cache-control", "location")
CONNECTIONS = {
    "fresh": "a fresh connection",
    "reused": "a connection that was open",
    "unseen": "a connection of its own, whose cost isn't seen",
    None: "no connection",
}
STAMPS = {"kernel": "the kernel's receive stamps", "user": "read after each read"}


@dataclass(frozen=True, slots=True)
class Ink:
    """What bars and sparklines are drawn with."""

    bar: str
    levels: str  # of a sparkline, low to high


BLOCKS = Ink("█", "▁▂▃▄▅▆▇█")
ASCII = Ink("#", "_.:-=+*#")


def ink_for(encoding: str | None) -> Ink:
    """Blocks where the output can show them."""
    try:
        (BLOCKS.bar + BLOCKS.levels).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def render(probe: Facts, ink: Ink) -> str:
    """The text, with a newline at its end."""
    requests = probe["requests"]
    blocks = [[*_head(probe)]]
    if len(requests) > 1:
        blocks.append([*_table(probe)])
    number = _chosen(requests)
    if len(requests) > 1:
        blocks.append([f"request {number + 1}, {_why(requests[number])}"])
    one = requests[number]
    blocks += [[*_bars(one, ink)], [*_gaps(one, ink)], [*_said(one, ink)], [*_wrong(probe)]]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _head(probe: Facts) -> Iterator[str]:
    asked = probe["asked"]
    prompt = "a prompt of your own" if asked["input_tokens"] is None else f"{asked['input_tokens']} prompt tokens"
    yield from _wrapped(str(probe["url"]))
    for note in probe["notes"]:
        yield from _wrapped(f"  {note}")
    yield from _wrapped(f"  asked for {prompt} and {asked['new_tokens']} new ones, over {probe['transport']}")


def _table(probe: Facts) -> Iterator[str]:
    """A line for each request, and the medians of the complete ones."""

    def row(name: str, connection: str, *values: float | None, rest: str = "") -> str:
        numbers = "".join((quantity(v, "s") if v is not None else "-").rjust(13) for v in values)
        return f"{name:<9}{connection:<8}{numbers}  {rest}".rstrip()

    yield f"{'request':<9}{'':<8}{'TTFT':>13}{'latency':>13}{'TPOT':>13}  verdict"
    for number, one in enumerate(probe["requests"], 1):
        metrics = (one["ttft_s"], one["latency_s"], one["tpot_s"])
        yield row(str(number), one["connection"] or "none", *metrics, rest=f"{one['verdict']}, {_tokens(one)}")
    complete = sum(one["verdict"] == "complete" for one in probe["requests"])
    yield row("median", f"of {complete}", *probe["medians"].values())


def _chosen(requests: Sequence[Facts]) -> int:
    """Which request the waterfall shows: the first that isn't complete, else the one of the median TTFT."""
    for number, one in enumerate(requests):
        if one["verdict"] != "complete":
            return number
    by_ttft = sorted(range(len(requests)), key=lambda number: requests[number]["ttft_s"] or 0.0)
    return by_ttft[(len(by_ttft) - 1) // 2]


def _why(one: Facts) -> str:
    return "the one of the median TTFT" if one["verdict"] == "complete" else "the first that isn't complete"


def _bars(one: Facts, ink: Ink) -> Iterator[str]:
    """A row for each phase that was seen: when it ended after the clock's start, what it took, and where it lies."""
    seen = {name: one["phases"][name] for name in PHASES if one["phases"][name] is not None}
    if not seen:
        return
    ends = list(accumulate(seen.values(), initial=-sum(seen.get(name, 0.0) for name in FRESH)))
    begin, span = ends[0], sum(seen.values()) or 1.0
    yield f"{'':<{LABEL}}{'took':>{NUMBER}}{'ends at':>{NUMBER}}"
    if one["connection"] != "fresh":
        yield f"{'connect':<{LABEL}}{one['connection']:>{NUMBER}}"
    for (name, took), (start, end) in zip(seen.items(), pairwise(ends), strict=True):
        left, right = (round(BARS * (t - begin) / span) for t in (start, end))
        left = min(left, BARS - 1)
        bar = " " * left + ink.bar * max(right - left, 1)
        label = "given up" if name == "end_s" and one["verdict"] in ("timeout", "cancelled") else PHASES[name]
        label = "whole reply" if name == "tokens_s" and not one["streamed"] else label
        yield f"{label:<{LABEL}}{_ms(took):>{NUMBER}}{_ms(end):>{NUMBER}}  {bar}"


def _gaps(one: Facts, ink: Ink) -> Iterator[str]:
    """One character a gap between token events, as high as it is long; of more than fit, the longest of several."""
    at = [event["at_s"] for event in one["events"] if event["tokens"]]
    gaps = [round(after - before, 9) for before, after in pairwise(at)]  # what is even in ns stays so
    if not gaps:
        return
    room = WIDTH - LABEL
    each = -(-len(gaps) // room)
    peaks = [max(gaps[i : i + each]) for i in range(0, len(gaps), each)]
    top = max(gaps) or 1.0
    most = len(ink.levels) - 1
    yield f"{'gaps':<{LABEL}}" + "".join(ink.levels[round(most * peak / top)] for peak in peaks)
    longest = gaps.index(max(gaps)) + 2
    said = f"{len(gaps)} gaps, median {_ms(median(gaps))}, longest {_ms(max(gaps))}, before token event {longest}"
    yield from _entry("", said + (f"; each mark is the longest of {each}" if each > 1 else ""))


def _said(one: Facts, ink: Ink) -> Iterator[str]:
    """Verdict and counts, the server's timing, text, headers, clock."""
    status = "no answer" if one["status"] is None else f"HTTP {one['status']}"
    yield from _entry("verdict", f"{one['verdict']}, {status}")
    if one["detail"]:
        yield from _entry("", one["detail"])
    yield from _entry("tokens", _counts(one["got"]))
    times = [(name, one[key]) for name, key in (("TTFT", "ttft_s"), ("latency", "latency_s"), ("TPOT", "tpot_s"))]
    if any(value is not None for _, value in times):
        yield from _entry("times", ", ".join(f"{name} {_ms(value)}" for name, value in times if value is not None))
    server = one["server"] or {}
    timing = [
        f"{name[:-2]} {_ms(value)}" for name, value in server.items() if name.endswith("_s") and _is_number(value)
    ]
    yield from _entry("server says", ", ".join(timing) or "nothing of its own times")
    if one["text"]:
        cut = "..." if len(one["text"]) > MOST_TEXT else ""
        show = ascii if ink is ASCII else repr
        yield from _entry("text", show(one["text"][:MOST_TEXT]) + cut)
    headers = one["headers"]
    for name in (*SHOWN_HEADERS, *ALSO_SHOWN):
        if name in headers:
            yield from _entry("headers" if name == next(iter(_shown(headers))) else "", f"{name}: {headers[name]}")
    yield from _entry("clock", f"{STAMPS.get(one['clock'], one['clock'])}; {CONNECTIONS[one['connection']]}{_to(one)}")


def _wrong(probe: Facts) -> Iterator[str]:
    found = probe["findings"]
    if not found:
        yield "Nothing looks wrong."
        return
    yield "What looks wrong"
    for finding in found:
        some = len(finding["requests"]) < len(probe["requests"])
        which = f" (request {', '.join(map(str, finding['requests']))})" if some else ""
        lines = _wrapped(finding["sentence"] + which, WIDTH - 2)
        yield from (f"{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines))


def _shown(headers: Mapping[str, str]) -> list[str]:
    return [name for name in (*SHOWN_HEADERS, *ALSO_SHOWN) if name in headers]


def _tokens(one: Facts) -> str:
    got = one["got"]
    return f"{'?' if got['input_tokens'] is None else got['input_tokens']} -> {got['new_tokens']}"


def _counts(got: Mapping[str, Any]) -> str:
    prompt = "a prompt nobody counted" if got["input_tokens"] is None else f"{got['input_tokens']} in the prompt"
    by = "the server" if got["counted_by"] == "server" else f"the {got['counted_by']}"
    return f"{prompt}, {got['new_tokens']} new, counted by {by}"


def _to(one: Facts) -> str:
    where = "" if one["address"] is None else f" to {one['address']}"
    return where + ("" if one["tls"] is None else f", {one['tls']}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ms(value_s: float) -> str:
    """What rounds to nothing has no sign."""
    return quantity(value_s if abs(value_s) >= LEAST_S else 0.0, "s")


def _entry(label: str, said: str) -> Iterator[str]:
    lines = _wrapped(said, WIDTH - LABEL)
    yield from (f"{label if i == 0 else '':<{LABEL}}{line}" for i, line in enumerate(lines))


def _wrapped(said: str, width: int = WIDTH) -> list[str]:
    """Lines of a text whose control characters, if a stranger sent any, are escaped."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
    indent = safe[: len(safe) - len(safe.lstrip())]
    return textwrap.wrap(safe, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
