"""How far to trust the numbers: every report carries these sentences, also where nothing speaks against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.report.clock import calibrated_said
from loadtest.report.escaping import escape
from loadtest.report.numbers import ABSENT, quantity
from loadtest.trust import REMEDY, SUSPECT

Summary = Mapping[str, Any]


def sentences(summary: Summary) -> Iterator[str]:
    """Markdown sentences, one doubt each: client, stream, plan, page, first call, and what is missing."""
    said = escape(calibrated_said(summary["calibration"]))
    yield f"**Client error**, {said}. It is no part of the intervals above."
    cells = summary["cells"]
    if any(entry["samples"]["complete"] for entry in cells):
        yield _client(summary)
        yield _stream(summary)
        yield _stamps(summary)
        yield from _blocks(summary)
        yield _plan(summary)
        yield from _shared_prefix(summary)
    else:
        yield "**No complete request** in the steady phase: nothing can be said of client, stream or plan."
    if summary["plan"] is not None:
        yield from _page(summary)
    for first in summary["cold"]:
        verdict = "" if first["verdict"] == "complete" else f", {first['verdict']}"
        yield (
            f"**Cold first call** ({escape(first['label'])}): TTFT {quantity(first['ttft_s'], 's')}{verdict}; "
            "it enters no figure."
        )
    for note in summary["notes"]:
        yield f"**Note**: {escape(note)}."


def _client(summary: Summary) -> str:
    cells = summary["cells"]
    if summary["client"]["saturated"]:
        return (
            "**The client was saturated**, so these figures are in part the client's own: "
            + escape("; ".join(summary["client"]["reasons"]))
            + f". Remedy: {REMEDY}."
        )
    begin = "**The client was not the bottleneck**"
    if summary["client"]["verdict"] == SUSPECT:
        reasons = escape("; ".join(summary["client"]["reasons"]))
        begin = f"**The client is suspect**: {reasons}. Still it was not the bottleneck"
    tightest = max(cells, key=lambda entry: (entry["client"]["lag_s"] or 0) / entry["client"]["limit_s"])
    seen = tightest["client"]
    late = [lag for entry in cells if (lag := entry["client"]["hub_lag_p99_s"]) is not None]
    cpu = [entry["client"]["cpu"] for entry in cells if entry["client"]["cpu"] is not None]
    return (
        f"{begin}: nearest to its limit came {escape(tightest['label'])}, {seen['lag_statistic']} of the lag "
        f"{quantity(seen['lag_s'], 's', 3)} of at most {quantity(seen['limit_s'], 's', 3)} (n = {seen['lag_n']}); "
        f"event loop p99 at most {quantity(max(late), 's', 3) if late else ABSENT}; "
        f"CPU at most {f'{100 * max(cpu):.0f} % of one core' if cpu else ABSENT}."
        " Lag is started − scheduled, less the cost of a fresh connection."
    )


def _stream(summary: Summary) -> str:
    if not any(entry.get("streamed", True) for entry in summary["cells"]):
        return "**Nothing was streamed**: replies came whole, so there is a latency and no TTFT, TPOT or ITL."
    buffered = [
        f"{entry['label']} ({100 * entry['stream']['shared_read_share']:.0f} %)"
        for entry in summary["cells"]
        if entry["stream"]["buffered"]
    ]
    if buffered:
        return (
            "**The stream was buffered on its way**: most token events came out of a read with others, "
            f"so ITL and TPOT are not the server's: {escape(', '.join(buffered))}."
        )
    most = max(entry["stream"]["shared_read_share"] or 0 for entry in summary["cells"])
    return (
        "**The stream was not buffered**: "
        f"at most {100 * most:.1f} % of a cell's token events shared a read with another."
    )


def _stamps(summary: Summary) -> str:
    clocks: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    transports: Counter[str] = Counter()
    for entry in summary["cells"]:
        clocks.update(entry["clocks"])
        transports.update(entry["transports"])
        counted.update(entry["counted_by"])
    meaning = {"kernel": "the kernel's receive stamps", "user": "a clock read after each read returned"}
    stamps = ", ".join(f"{meaning.get(clock, clock)} ({n} requests)" for clock, n in sorted(clocks.items()))
    counts = ", ".join(f"{who} ({n})" for who, n in sorted(counted.items()))
    carried = ", ".join(f"{name} ({n})" for name, n in sorted(transports.items()))
    carried += " over HTTP/2" if carried and summary.get("http2") else ""
    return (
        f"**Arrivals** are {stamps or ABSENT}; **requests** were carried by {carried or ABSENT}; "
        f"**tokens** were counted by {counts or ABSENT}."
    )


def _blocks(summary: Summary) -> Iterator[str]:
    """What intervals outside waves rest on, or why there are none."""
    reasons: dict[str, list[str]] = {}
    cut = []
    for entry in summary["cells"]:
        if (blocks := entry["blocks"]) and blocks["n"]:
            cut.append(f"{entry['label']} ({blocks['n']} of {quantity(blocks['each_s'], 's', 3)})")
        elif blocks and entry["samples"]["complete"]:
            of = "of the rates" if entry["cell"]["concurrency"] == 1 else "of medians and rates"
            reasons.setdefault(f"{of}: {blocks['why']}", []).append(entry["label"])
    if cut:
        yield (
            "**Intervals from blocks**: requests in flight together are no independent observations, blocks of at "
            f"least ten requests a user nearly are: {escape(', '.join(cut))}. What keeps a server slow for as "
            "long as a block they know too little of."
        )
    for why, labels in reasons.items():
        yield f"**No interval** {escape(why)} ({escape(', '.join(labels))})."


def _plan(summary: Summary) -> str:
    wrong = [f"{entry['label']}: {said}" for entry in summary["cells"] for said in entry["off_plan"]]
    if wrong:
        return f"**Off plan** (marked *): {escape('; '.join(wrong))}."
    return "**On plan**: every complete request had the tokens that were asked for, as far as the server counts them."


def _shared_prefix(summary: Summary) -> Iterator[str]:
    """Where it was asked for: by itself nothing is shared but what the server puts before every prompt."""
    if tokens := summary["shared_prefix_tokens"]:
        of = " or ".join(sorted({f"{entry['cell']['input_tokens']}" for entry in summary["cells"]}))
        yield (
            f"**Shared prefix**: every prompt begins with the same {tokens} of its {of} tokens, so a server with a "
            "prefix cache may skip them: TTFT and input throughput aren't those of whole prompts."
        )


def _page(summary: Summary) -> Iterator[str]:
    yield (
        "**The published page** ran each cell once, without HTTP, tokenizer or streaming; "
        "here a repetition is a wave, and the median of ten or more is shown."
    )
    if any(entry["cell"]["concurrency"] > 1 for entry in summary["cells"]):
        yield (
            "**T encoding time is not comparable with the page's** where the engine prefills one request after the "
            "other, as tokenclock's own server does: the page prefilled its four prompts as one batch."
        )
