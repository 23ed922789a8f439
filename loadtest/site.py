"""An endpoint is looked at before it is measured: what it speaks, what it says of itself, and whether prompts come out
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from loadtest.counting import PromptMaker, Uncounted, by_reply
from loadtest.datasets import Dataset, DatasetPrompts, Order, notes
from loadtest.dispatch import Source
from loadtest.endpoints.base import Description, Endpoint, EndpointError, Prompt
from loadtest.endpoints.choice import Chosen, Wanted, choose
from loadtest.prompts import PromptError, Shared
from loadtest.split.scrape import NoScrape, Page, Scrape, scraping
from loadtest.transport.base import Connect, Connection, Target, Timeouts, TransportError

#: What is sent once for each kind of line before a run: a line of its own would be in a prefix cache from then on.
TRIES: dict[str, Prompt] = {"text": "the", "token ids": [1], "messages": [{"role": "user", "content": "the"}]}


@dataclass(frozen=True, slots=True)
class Site:
    """An endpoint that has been looked at and can be measured."""

    url: str
    target: Target
    connect: Connect  # for what is timed
    endpoint: Endpoint
    description: Description
    prompts: Source
    notes: tuple[str, ...] = ()  # what was guessed or couldn't be made sure of, a clause each
    metrics: Scrape | NoScrape = field(default_factory=NoScrape)  # the server's own


class NoCounts(EndpointError):
    """It answers, and no prompt's length can be learned from it; the message says what it does instead."""

    def __init__(self, message: str, site: Site) -> None:
        super().__init__(message)
        self.site = site  # it can be asked all the same


@dataclass(frozen=True, slots=True)
class Look:
    """How an endpoint is looked at, and will be connected to."""

    connect: Connect  # for what is timed
    control: Connect  # for what is not
    wanted: Wanted = field(default_factory=Wanted)
    tokenizer: Path | None = None  # a tokenizer.json that is said to be the endpoint's
    timeouts: Timeouts = field(default_factory=Timeouts)
    shared: Shared | None = None  # what all synthetic prompts begin with
    metrics: Page | None = None  # where the server's own are read; None: nowhere

    def at(self, url: str, seed: str, lengths: Iterable[int], total_tokens: int) -> Site:
        """Ask the endpoint what it is, and prove that prompts have the length they should. Without `lengths` nothing
        is counted, and a prompt's word is taken for a token.

        Raises: EndpointError with what it said and the remedy; NoCounts among them.
        """
        with self._first_look(url) as (chosen, connection, description):
            most = description.max_total_tokens
            if most is not None and total_tokens > most:
                raise EndpointError(
                    f"{url} takes at most {most} tokens, prompt and new ones together; this run needs "
                    f"{total_tokens}: serve a longer model or measure shorter cells"
                )

            def maker(endpoint: Endpoint) -> PromptMaker:
                return PromptMaker(endpoint, connection, self.tokenizer, seed, self.timeouts, self.shared)

            try:
                chosen, (prompts, said) = _accepted(chosen, lambda asked: maker(asked).prompts(sorted(set(lengths))))
            except EndpointError as error:
                said = [f"no prompt could be counted, a word is taken for a token: {error}"]
                uncounted = self._site(url, chosen, description, maker(chosen.endpoint).prompts(())[0], said)
                raise NoCounts(str(error), uncounted) from error
        if self.shared is not None:
            said.append(f"all prompts share their first {self.shared.tokens} tokens; the rest is never twice the same")
        return self._site(url, chosen, description, prompts, said)

    def at_with(self, url: str, seed: str, dataset: Dataset, order: Order) -> Site:
        """Ask the endpoint what it is, and whether it takes each kind of line that the dataset has.

        Raises: EndpointError with what it said and the remedy.
        """
        with self._first_look(url) as (chosen, connection, description):
            most, longest = description.max_total_tokens, dataset.longest
            if most is not None and longest.least_tokens > most:
                raise EndpointError(
                    f"{url} takes at most {most} tokens, prompt and new ones together; {dataset.name}, line "
                    f"{longest.number}, needs {longest.least_tokens} or more: serve a longer model or leave it out"
                )
            chosen, said = _accepted(chosen, lambda asked: list(self._tried(asked, connection, dataset)))
        said = [*notes(dataset, order), *said]
        return self._site(url, chosen, description, DatasetPrompts(dataset, order, seed), said)

    def _tried(self, endpoint: Endpoint, connection: Connection, dataset: Dataset) -> Iterator[str]:
        """What is to be said of the kinds of line, each of which is tried once.

        Raises: EndpointError naming the line.
        """
        count = by_reply(endpoint, connection, self.timeouts)
        for line in dataset.first_of_each_kind():
            try:
                endpoint.request(line.prompt, line.asked.new_tokens, "tokenclock-try", None)
                count(TRIES[line.kind])
            except Uncounted:
                yield f"the endpoint counts no prompts ({line.kind}): there will be no total throughput"
            except EndpointError as error:
                raise EndpointError(f"{dataset.name}, line {line.number}: {error}") from error

    @contextmanager
    def _first_look(self, url: str) -> Iterator[tuple[Chosen, Connection, Description]]:
        try:
            chosen = choose(url, self.wanted, self.control)
            connection = chosen.control(self.control)(chosen.target)
            try:
                description = chosen.endpoint.describe(connection)
                yield chosen, connection, description
            finally:
                connection.close()
        except TransportError as error:
            raise EndpointError(f"{url} does not answer: {error}; is it running, and is the URL right?") from error
        except PromptError as error:
            raise EndpointError(str(error)) from error

    def _site(self, url: str, chosen: Chosen, description: Description, prompts: Source, said: Iterable[str]) -> Site:
        spoken = f"{chosen.endpoint.protocol}: {chosen.why}"
        connect = chosen.connect(self.connect)
        metrics = scraping(self.control, chosen.target, self.metrics)
        return Site(url, chosen.target, connect, chosen.endpoint, description, prompts, (spoken, *said), metrics)


Result = TypeVar("Result")


def _accepted(chosen: Chosen, attempt: Callable[[Endpoint], Result]) -> tuple[Chosen, Result]:
    """What comes of an attempt, without the fields that the endpoint refuses: strict servers take none that they don't
    know. Raises: EndpointError where nothing of ours is refused.
    """
    while True:
        try:
            return chosen, attempt(chosen.endpoint)
        except EndpointError as refusal:
            less = chosen.endpoint.without(str(refusal))
            if less is None:
                raise
            endpoint, left_out = less
            chosen = replace(chosen, endpoint=endpoint, why=f"{chosen.why}; it takes no {left_out}")
