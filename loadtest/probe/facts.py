"""A probe as one object of JSON: what `--json` prints, and all that the waterfall is drawn from.

    schema        1
    url, protocol, transport, seed
    notes         what was guessed, or couldn't be made sure of
    asked         {input_tokens: null where --prompt gave the text, new_tokens}
    requests      one object each, in the order they were sent:
      verdict, detail, status, clock ("kernel" | "user")
      streamed    whether the reply was to come in events; else it is one, at its end
      connection  "fresh" | "reused" | "unseen", where a library opens its own; null where none was
      address, tls               of a fresh one; tls is its version or null
      http        "HTTP/1.1" | "HTTP/2", null where no answer said
      phases      seconds each took, one after the other, null where it wasn't seen:
                  name_s, tcp_s, tunnel_s, tls_s, http2_s (its SETTINGS), before the clock starts; then
                  send_s (to the last byte handed to the kernel), headers_s, first_event_s, first_token_s,
                  tokens_s (first to last token; of a whole reply, all of it), end_s (to the last byte, or to giving up)
      events      [{at_s, tokens, read}], every event; at_s counts from the clock's start; events of one read share it
      ttft_s, ttft_text_s, latency_s, tpot_s    as in every report
      got         {input_tokens, new_tokens, counted_by}
      server      the server's own timing, or null
      headers     of the reply, without cookies
      text        what was generated
    medians       of the complete requests: ttft_s, latency_s, tpot_s
    findings      [{code, sentence, requests}], what looks wrong; requests are counted from 1

Seconds are floats. Secrets are hidden in every string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from loadtest import stats
from loadtest.probe.findings import Finding
from loadtest.probe.witness import Probed
from loadtest.redaction import hidden

SCHEMA = 1
NEVER_SHOWN = {"set-cookie", "set-cookie2", "authorization", "proxy-authorization", "x-amz-security-token"}
BEFORE_THE_CLOCK = ("name_s", "tcp_s", "tunnel_s", "tls_s", "http2_s")
METRICS = {"ttft_s": stats.ttft_s, "latency_s": stats.latency_s, "tpot_s": stats.tpot_s}


def facts(about: Mapping[str, Any], probed: Sequence[Probed], findings: Sequence[Finding]) -> dict[str, Any]:
    """`about`: url, protocol, transport, seed, notes and asked."""
    complete = [each.sample for each in probed if each.sample.complete]
    values = {name: [v for sample in complete if (v := of(sample)) is not None] for name, of in METRICS.items()}
    shown: dict[str, Any] = hidden(
        {
            "schema": SCHEMA,
            **about,
            "requests": [_request(each, any(p.opened for p in probed[:i])) for i, each in enumerate(probed)],
            "medians": {name: median(found) if found else None for name, found in values.items()},
            "findings": [asdict(finding) for finding in findings],
        },
        names=False,
    )
    return shown


def _request(seen: Probed, opened_before: bool) -> dict[str, Any]:
    sample = seen.sample
    started_ns = sample.started_ns
    connection = None if started_ns is None else "fresh" if seen.opened else "reused" if opened_before else "unseen"
    return {
        "verdict": sample.verdict.value,
        "detail": sample.detail,
        "status": sample.status,
        "clock": sample.clock,
        "streamed": sample.streamed,
        "connection": connection,
        "address": seen.opened and seen.opened.address,
        "tls": seen.opened and seen.opened.tls,
        "http": seen.http,
        "phases": _phases(seen),
        "events": []
        if started_ns is None
        else [
            {"at_s": (event.t_ns - started_ns) / 1e9, "tokens": event.reading.tokens, "read": event.read_id}
            for event in seen.events
        ],
        "ttft_s": stats.ttft_s(sample),
        "ttft_text_s": stats.ttft_text_s(sample),
        "latency_s": stats.latency_s(sample),
        "tpot_s": stats.tpot_s(sample),
        "got": asdict(sample.got),
        "server": sample.server,
        "headers": {name: value for name, value in seen.headers.items() if name not in NEVER_SHOWN},
        "text": seen.text,
    }


def _phases(seen: Probed) -> dict[str, float | None]:
    """Each from the end of the one before it that was seen; none is negative."""
    sample, opened = seen.sample, seen.opened
    parts = (opened.name_ns, opened.tcp_ns, opened.tunnel_ns, opened.tls_ns, opened.http2_ns) if opened else (None,) * 5
    phases = {name: None if ns is None else ns / 1e9 for name, ns in zip(BEFORE_THE_CLOCK, parts, strict=True)}
    ends_ns = {
        "send_s": sample.sent_ns,
        "headers_s": sample.headers_ns,
        "first_event_s": seen.events[0].t_ns if seen.events and sample.streamed else None,
        "first_token_s": sample.events[0][0] if sample.events and sample.streamed else None,
        "tokens_s": sample.events[-1][0] if sample.events else None,
        "end_s": sample.ended_ns,
    }
    before_ns = sample.started_ns
    for name, end_ns in ends_ns.items():
        if before_ns is None or end_ns is None:
            phases[name] = None
        else:
            # `sent` is read after the send returned: a reply that is faster has the kernel's stamp before it.
            phases[name] = max(end_ns - before_ns, 0) / 1e9
            before_ns = max(end_ns, before_ns)
    return phases
