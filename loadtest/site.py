"""An endpoint is looked at before it is measured: what it speaks, what it says of itself, and whether prompts come out
exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.counting import PromptMaker
from loadtest.endpoints.base import Description, Endpoint, EndpointError
from loadtest.endpoints.choice import Wanted, choose
from loadtest.prompts import PromptError, Prompts
from loadtest.transport.base import Connect, Target, Timeouts, TransportError


@dataclass(frozen=True, slots=True)
class Site:
    """An endpoint that has been looked at and can be measured."""

    url: str
    target: Target
    connect: Connect  # for what is timed
    endpoint: Endpoint
    description: Description
    prompts: Prompts
    notes: tuple[str, ...] = ()  # what was guessed or couldn't be made sure of, a clause each


@dataclass(frozen=True, slots=True)
class Look:
    """How an endpoint is looked at, and will be connected to."""

    connect: Connect  # for what is timed
    control: Connect  # for what is not
    wanted: Wanted = field(default_factory=Wanted)
    tokenizer: Path | None = None  # a tokenizer.json that is said to be the endpoint's
    timeouts: Timeouts = field(default_factory=Timeouts)

    def at(self, url: str, seed: str, lengths: Iterable[int], total_tokens: int) -> Site:
        """Ask the endpoint what it is, and prove that prompts have the length they should.

        Raises: EndpointError with what it said and the remedy.
        """
        try:
            chosen = choose(url, self.wanted, self.control)
            connection = chosen.control(self.control)(chosen.target)
            try:
                description = chosen.endpoint.describe(connection)
                most = description.max_total_tokens
                if most is not None and total_tokens > most:
                    raise EndpointError(
                        f"{url} takes at most {most} tokens, prompt and new ones together; this run needs "
                        f"{total_tokens}: serve a longer model or measure shorter cells"
                    )
                maker = PromptMaker(chosen.endpoint, connection, self.tokenizer, seed, self.timeouts)
                prompts, notes = maker.prompts(sorted(set(lengths)))
            finally:
                connection.close()
        except TransportError as error:
            raise EndpointError(f"{url} does not answer: {error}; is it running, and is the URL right?") from error
        except PromptError as error:
            raise EndpointError(str(error)) from error
        said = f"{chosen.endpoint.protocol}: {chosen.why}"
        connect = chosen.connect(self.connect)
        return Site(url, chosen.target, connect, chosen.endpoint, description, prompts, (said, *notes))
