"""How many tokens a prompt has, as the server counts them, where it has no route that says so.

A reply tells: `usage`, or TGI's details. So a prompt is sent with one token to generate, before anything is measured.
Two such counts, of a list of words once and twice, tell what stands around every prompt (a template, special tokens)
and whether each word is one token; only where one isn't are halves of the list looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.endpoints.base import Endpoint, EndpointError, Piece
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.prompts import WORDS, Prompts, probe_text, word_lengths
from loadtest.transport.base import Connection, Timeouts
from loadtest.verdict import Verdict

Count = Callable[[str], int]
MOST_WORDS = 64  # where replies count: a text of them all, twice, must fit a small model
GENERATED = {Verdict.COMPLETE, Verdict.STOPPED_EARLY, Verdict.EMPTY}


class Uncounted(Exception):
    """The reply came, and says nothing of the prompt's length."""


def by_reply(endpoint: Endpoint, connection: Connection, timeouts: Timeouts) -> Count:
    """Raises, when called: Uncounted; EndpointError where the endpoint refuses a request as it will be measured."""
    numbers = itertools.count()

    def count(prompt: str) -> int:
        order = Order(f"tokenclock-count-{next(numbers)}", Cell(None, None, 1, 0, 1), "warmup", prompt, 0)
        seen = measure(connection, endpoint, order, run="", process=0, user=0, timeouts=timeouts)
        if seen.verdict not in GENERATED:
            hint = "; is --api-key right?" if seen.status in (401, 403) else ""
            raise EndpointError(f"a first request, for one token, ends as {seen.verdict}: {seen.detail}{hint}")
        if seen.got.input_tokens is None:
            raise Uncounted
        return seen.got.input_tokens

    return count


def lengths_by_counts(count: Count, words: Sequence[str]) -> tuple[dict[str, int], int]:
    """(tokens of each word with its space, tokens that stand around every text), by counting texts.

    Where a tokenizer merges words the sum is off; the caller checks a prompt of each length.
    """
    once, twice = count(probe_text(words)), count(probe_text([*words, *words]))
    around = 2 * once - twice

    def split(part: Sequence[str], tokens: int) -> Iterator[tuple[str, int]]:
        if tokens == len(part) or len(part) == 1:  # a word has one token at least
            yield from ((word, tokens // len(part)) for word in part)
            return
        half = part[: len(part) // 2]
        in_half = count(probe_text(half)) - around
        yield from split(half, in_half)
        yield from split(part[len(half) :], tokens - in_half)

    return dict(split(words, once - around)), around


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Prompts of exact lengths for an endpoint, counted by its own route, its replies or a tokenizer."""

    endpoint: Endpoint
    connection: Connection  # of requests that aren't timed
    tokenizer: Path | None
    seed: str
    timeouts: Timeouts

    def prompts(self, lengths: Sequence[int]) -> tuple[Prompts, list[str]]:
        """Prompts, and what is to be said of their lengths: a clause each, none where they are exact.

        Raises: EndpointError, TransportError, PromptError.
        """
        pieces = self.endpoint.tokenize(self.connection, probe_text())
        count: Count
        if pieces is not None:
            found, count = word_lengths(pieces), self._by_route
        else:
            try:
                count = by_reply(self.endpoint, self.connection, self.timeouts)
                found = lengths_by_counts(count, WORDS[:MOST_WORDS])
            except Uncounted:
                return self._uncounted()
        prompts = Prompts(*found, seed=self.seed)
        return prompts, [said for length in lengths if (said := self._wrong(prompts, count, length))]

    def _by_route(self, text: str) -> int:
        return len(self.endpoint.tokenize(self.connection, text) or ())

    def _wrong(self, prompts: Prompts, count: Count, length: int) -> str | None:
        counted = count(prompts.draw(length))
        if self.endpoint.truncates:  # what is too long is cut to the length; what is too short gets more words
            while counted < length:
                prompts.lengthen(length - counted)
                counted = count(prompts.draw(length))
            return None
        if counted == length:
            return None
        return f"a prompt made of {length} tokens has {counted} by the server's count: its tokenizer merges words"

    def _uncounted(self) -> tuple[Prompts, list[str]]:
        if self.tokenizer is not None:
            tokenize = by_tokenizer(self.tokenizer)
            said = f"the endpoint counts no prompts; {self.tokenizer} does, which knows nothing of a chat's template"
            return Prompts(*word_lengths(tokenize(probe_text())), seed=self.seed), [said]
        one_each = dict.fromkeys(WORDS[:MOST_WORDS], 1)
        if self.endpoint.truncates:
            return Prompts(one_each, 0, seed=self.seed), []
        said = "the endpoint counts no prompts: a word is taken for a token; --tokenizer would count"
        return Prompts(one_each, 0, seed=self.seed), [said]


def by_tokenizer(path: Path) -> Callable[[str], list[Piece]]:
    """A tokenizer.json's tokens of a text, special ones included.

    Raises: EndpointError where it can't be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EndpointError(f"{path} is no tokenizer that can be read ({error}): name a tokenizer.json") from error
    return lambda text: [Piece(start, stop) for start, stop in tokenizer.encode(text).offsets]
