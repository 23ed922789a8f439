"""The verb `probe`: look at an endpoint, ask it once or a few times, and show what each answer consisted of.

Exit codes: 0 every request complete; 1 asked, but not so; 2 it couldn't be asked; 130 interrupted, with what was seen
until then.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import gevent
from gevent import GreenletExit

from loadtest.dispatch import ids
from loadtest.endpoints.base import EndpointError
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.probe.facts import facts
from loadtest.probe.findings import Expected, findings
from loadtest.probe.waterfall import ink_for, render
from loadtest.probe.witness import Probed, Witness
from loadtest.prompts import PromptError
from loadtest.redaction import hide
from loadtest.sample import Sample
from loadtest.site import Look, NoCounts, Site
from loadtest.transport.base import Timeouts, monotonic_ns
from loadtest.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    url: str
    look: Look  # at the endpoint, before
    timeouts: Timeouts
    requests: int
    input_tokens: int
    new_tokens: int
    prompt: str | None  # instead of one that has `input_tokens`
    seed: int
    verify: bool  # certificates
    as_json: bool


def run(options: Options) -> int:
    try:
        site = look(options)
        probed = probe(site, options)
    except (EndpointError, PromptError) as error:
        print(hide(f"tokenclock: {error}"), file=sys.stderr)
        return 2
    show(site, probed, options)
    if any(each.sample.verdict is Verdict.CANCELLED for each in probed):
        return 130
    return 0 if all(each.sample.complete for each in probed) else 1


def look(options: Options) -> Site:
    """The endpoint. One that refuses to count prompts can still be asked, and what it refuses is then to be seen.

    Raises: EndpointError.
    """
    total_tokens, seed = options.input_tokens + options.new_tokens, f"{options.seed}-probe"
    if options.prompt is not None:
        return options.look.at(options.url, seed, (), options.new_tokens)
    try:
        return options.look.at(options.url, seed, [options.input_tokens], total_tokens)
    except NoCounts as error:
        return error.site


def probe(site: Site, options: Options) -> list[Probed]:
    """One request after the other on one connection, until one is interrupted.

    Raises: EndpointError, PromptError.
    """
    input_tokens = None if options.prompt is not None else options.input_tokens
    cell = Cell(None, site.description.slots, 1, input_tokens, options.new_tokens)
    probed: list[Probed] = []
    next_id = ids(f"probe-{options.seed}", 0)
    with closing(Witness(site.connect(site.target))) as witness:
        for _ in range(options.requests):
            prompt = site.prompts.drawn_for(cell)[0] if options.prompt is None else options.prompt
            order = Order(next(next_id), cell, "steady", prompt, monotonic_ns())
            sample = _interruptible(site, witness, order, options.timeouts)
            probed.append(witness.probed(sample, site.endpoint))
            if sample.verdict is Verdict.CANCELLED:
                break
    return probed


def _interruptible(site: Site, witness: Witness, order: Order, timeouts: Timeouts) -> Sample:
    """The sample; Ctrl-C makes it a cancelled one. Raises: KeyboardInterrupt where nothing had begun."""
    work = gevent.spawn(
        partial(measure, witness, site.endpoint, order, run="probe", process=0, user=0, timeouts=timeouts)
    )

    def interrupt(*_: object) -> None:
        if gevent.getcurrent() is work:  # a library's socket blocks, and the loop with it
            raise GreenletExit
        work.kill(block=False)

    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        sample = work.get()
    finally:
        signal.signal(signal.SIGINT, usual)
    if not isinstance(sample, Sample):
        raise KeyboardInterrupt
    return sample


def show(site: Site, probed: list[Probed], options: Options) -> None:
    expected = Expected(
        None if options.prompt is not None else options.input_tokens,
        options.new_tokens,
        ends_with_done="openai" in site.endpoint.protocol,
        unverified=site.target.tls and not options.verify,
    )
    about = {
        "url": options.url,
        "protocol": site.endpoint.protocol,
        "transport": probed[0].sample.transport,
        "seed": options.seed,
        "notes": list(site.notes),
        "asked": {"input_tokens": expected.input_tokens, "new_tokens": expected.new_tokens},
    }
    said = facts(about, probed, findings(probed, expected))
    encoding = sys.stdout.encoding
    text = json.dumps(said, indent=1) + "\n" if options.as_json else render(said, ink_for(encoding))
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
