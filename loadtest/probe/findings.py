"""What looks wrong with an endpoint, each in one sentence with its remedy, decided from what was seen and nothing else.

A doubt looks at one request and says what is wrong with it, or None. `DOUBTS` is all of them, the gravest first; the
names are what machines read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest import stats, trust
from loadtest.probe.witness import Probed
from loadtest.report.numbers import quantity
from loadtest.verdict import Verdict

FEWEST_GAPS = 8  # that a pattern can be seen in
LEAST_PAUSE_S = 0.001  # shorter ones between bursts are nobody's doing

OF_STATUS = {
    401: "the key is missing or wrong: say --api-key, or set the variable that its help names",
    403: "the key may not do this: say another --api-key",
    404: "is the URL the base, and --endpoint-type right?",
    405: "is the URL the base, and --endpoint-type right?",
    400: "it refuses the request as it is: --extra-body changes fields, null leaves one out",
    422: "it refuses the request as it is: --extra-body changes fields, null leaves one out",
}
OF_VERDICT = {
    Verdict.OVERLOADED: "it has no room now: ask again when it is idle or ready",
    Verdict.HTTP_ERROR: "the server's log says more",
    Verdict.ERROR_IN_STREAM: "a tool that reads the status only would call this a success; the server's log says more",
    Verdict.TRUNCATED: "a time limit or a crash cut it: look at the log of the server and of every proxy before it",
    Verdict.STOPPED_EARLY: "the server ignores `ignore_eos`: lengths can't be fixed there",
    Verdict.EMPTY: "nothing was generated: is the prompt empty, or filtered?",
    Verdict.TIMEOUT: "is it still loading? --first-byte-timeout, --idle-timeout and --timeout allow more",
    Verdict.CONNECTION: "something on the way closes it: look at the log of the server and of every proxy before it",
    Verdict.CANCELLED: "what was seen until then is shown",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a reply is held against."""

    input_tokens: int | None  # None: the prompt was given as a text
    new_tokens: int
    ends_with_done: bool  # the protocol's streams end with `[DONE]`
    unverified: bool  # TLS without a look at the certificate


@dataclass(frozen=True, slots=True)
class Finding:
    code: str  # a name of `DOUBTS`, or a verdict
    sentence: str  # of the first request that it is true of
    requests: tuple[int, ...]  # counted from 1


def redirect(seen: Probed, _: Expected) -> str | None:
    status, to = seen.sample.status, seen.headers.get("location")
    if status is None or not 300 <= status < 400 or to is None:
        return None
    return f"It redirects to {to}: probe that URL, a redirect would be part of every TTFT."


def compressed(seen: Probed, _: Expected) -> str | None:
    coding = seen.headers.get("content-encoding")
    if coding is None:
        return None
    return f"The reply is compressed ({coding}), unasked: turn it off, compressors hold tokens back."


def failed(seen: Probed, expected: Expected) -> str | None:
    sample = seen.sample
    if sample.complete or redirect(seen, expected) or compressed(seen, expected):
        return None
    remedy = OF_STATUS.get(sample.status or 0) or OF_VERDICT[sample.verdict]
    return f"It ended as {sample.verdict} ({sample.detail}): {remedy}."


def buffered(seen: Probed, _: Expected) -> str | None:
    found = trust.buffering([seen.sample])
    if not found["buffered"]:
        return None
    shared = round(found["shared_read_share"] * found["token_events"])
    said = seen.headers.get("x-accel-buffering")
    hint = "" if said else "; the header x-accel-buffering: no tells nginx"
    return (
        f"The stream was buffered on its way: {shared} of {found['token_events']} token events came with others in one "
        f"read, so TTFT and gaps aren't the server's; turn off buffering in proxies{hint}."
    )


def coalesced(seen: Probed, expected: Expected) -> str | None:
    gaps = stats.itl_s(seen.sample)
    if len(gaps) < FEWEST_GAPS or buffered(seen, expected):
        return None
    mean = sum(gaps) / len(gaps)
    short = sum(gap < mean / 10 for gap in gaps)
    pauses = [gap for gap in gaps if gap > mean]
    if short * 2 < len(gaps) or len(pauses) < 2 or max(pauses) < LEAST_PAUSE_S:
        return None
    return (
        f"Tokens come in bursts: {short} of {len(gaps)} gaps are below a tenth of the mean, with pauses up to "
        f"{quantity(max(pauses), 's', 3)} between; a proxy's buffer or the server's stream interval gathers them."
    )


def chunk_is_not_token(seen: Probed, _: Expected) -> str | None:
    sample = seen.sample
    events, tokens = len(sample.events), sample.got.new_tokens
    if not sample.streamed or not events or tokens == events:
        return None
    why = "some have several, or a token without text has none" if tokens > events else "some tokens have several"
    return (
        f"An event isn't a token: {tokens} tokens came in {events} events ({why}), so a gap between events is no "
        "inter-token latency; compare TPOT instead."
    )


def empty_first_event(seen: Probed, _: Expected) -> str | None:
    started, events = seen.sample.started_ns, seen.sample.events
    if started is None or not events or not seen.events:
        return None
    first_ns, token_ns = seen.events[0].t_ns, events[0][0]
    if seen.events[0].reading.tokens or first_ns >= token_ns:
        return None
    naive, ttft = ((t - started) / 1e9 for t in (first_ns, token_ns))
    return (
        f"The first event has no token: a tool that counts it would say TTFT {quantity(naive, 's')}, "
        f"it is {quantity(ttft, 's')}."
    )


def no_usage(seen: Probed, _: Expected) -> str | None:
    got = seen.sample.got
    if not seen.sample.complete or (got.counted_by == "server" and got.input_tokens is not None):
        return None
    if got.counted_by == "server":
        return "The server doesn't count the prompt: its length is only what was meant; --tokenizer would count."
    what = "counts nothing" if got.input_tokens is None else "doesn't count what it generated"
    return f"The server {what} (no usage): an event is taken for a token, which is wrong where one has several."


def prompt_length(seen: Probed, expected: Expected) -> str | None:
    got = seen.sample.got.input_tokens
    if got is None or expected.input_tokens is None or got == expected.input_tokens:
        return None
    return (
        f"The prompt has {got} tokens by the server's count, {expected.input_tokens} were asked for: its tokenizer "
        "merges words, or a template adds some; compare endpoints by what was counted."
    )


def fewer_tokens(seen: Probed, expected: Expected) -> str | None:
    got = seen.sample.got.new_tokens
    if not seen.sample.complete or got >= expected.new_tokens:
        return None
    return (
        f"{got} new tokens came, {expected.new_tokens} were asked for: the model ended its text; to fix the "
        'length, say what the server has against it, such as --extra-body \'{"min_tokens": "{new_tokens}"}\'.'
    )


def more_tokens(seen: Probed, expected: Expected) -> str | None:
    got = seen.sample.got.new_tokens
    if got <= expected.new_tokens:
        return None
    return (
        f"{got} new tokens came, {expected.new_tokens} were asked for: the server ignores the limit or counts "
        "otherwise; --extra-body can say the limit by another name."
    )


def no_done(seen: Probed, expected: Expected) -> str | None:
    if not expected.ends_with_done or not (seen.sample.complete and seen.sample.streamed):
        return None
    if any(event.is_done for event in seen.events):
        return None
    return "The stream ends without [DONE]: clients that wait for it hang or fail; the finish_reason was taken."


def unclean_end(seen: Probed, _: Expected) -> str | None:
    if not seen.sample.complete or seen.body_ended:
        return None
    return "The last token came, and then the body broke off: a client that reads to the end fails; look at proxies."


def user_clock(seen: Probed, _: Expected) -> str | None:
    if not seen.sample.events or seen.sample.clock == "kernel":
        return None
    return (
        "Arrivals were stamped by this process after each read, not by the kernel: they are late where it was busy; "
        "on Linux, --transport gevent and httpx have the kernel's stamps."
    )


def closes(seen: Probed, _: Expected) -> str | None:
    """What its headers say, or that its body has no other end. Of a library's own connections nothing is known."""
    if seen.sample.status is None or seen.sample.sent_ns is None:
        return None
    said = "close" in seen.headers.get("connection", "").lower()
    framed = "content-length" in seen.headers or "chunked" in seen.headers.get("transfer-encoding", "").lower()
    return CLOSES if said or not framed else None


CLOSES = (
    "The endpoint closes the connection after a reply: every request pays for a new one, apart from its TTFT here, "
    "inside it elsewhere; turn on keep-alive."
)


def unverified_tls(_: Probed, expected: Expected) -> str | None:
    if not expected.unverified:
        return None
    return "The certificate wasn't verified (--insecure): anybody may have answered; --cacert names its authority."


Doubt = Callable[[Probed, Expected], str | None]
DOUBTS: dict[str, Doubt] = {
    each.__name__: each
    for each in (
        failed,
        redirect,
        compressed,
        buffered,
        coalesced,
        chunk_is_not_token,
        empty_first_event,
        no_usage,
        prompt_length,
        fewer_tokens,
        more_tokens,
        no_done,
        unclean_end,
        user_clock,
        closes,
        unverified_tls,
    )
}


def findings(probed: Sequence[Probed], expected: Expected) -> list[Finding]:
    """One for each doubt that is true of a request; for `failed`, one for each verdict."""
    found: dict[str, tuple[str, list[int]]] = {}
    for name, doubt in DOUBTS.items():
        for number, seen in enumerate(probed, 1):
            sentence = doubt(seen, expected)
            if name == "closes" and sentence is None and _replaced(probed, number):
                sentence = CLOSES
            if sentence is not None:
                code = seen.sample.verdict.value if doubt is failed else name
                found.setdefault(code, (sentence, []))[1].append(number)
    return [Finding(code, sentence, tuple(numbers)) for code, (sentence, numbers) in found.items()]


def _replaced(probed: Sequence[Probed], number: int) -> bool:
    """The request after this one, which was complete, needed a connection of its own."""
    return probed[number - 1].sample.complete and any(after.opened is not None for after in probed[number : number + 1])
