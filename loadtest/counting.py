"""How many tokens a prompt has, as the server counts them, where it has no route that says so.

A reply tells: `usage`, or TGI's details. So a prompt is sent with one token to generate, before anything is measured.
Two such counts, of a list of words once and twice, tell what stands around every prompt (a template, special tokens)
and whether each word is one token; only where one isn't are halves of the list looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.endpoints.base import Endpoint, EndpointError, Piece, Prompt
from loadtest.measure import Order, measure
from loadtest.plan import Cell
from loadtest.prompts import WORDS, PromptError, Prompts, Shared, TokenIds, probe_text, word_lengths
from loadtest.transport.base import Connection, Timeouts
from loadtest.verdict import Verdict

Count = Callable[[str], int]
MOST_WORDS = 64  # where replies count: a text of them all, twice, must fit a small model
ONE_EACH = dict.fromkeys(WORDS[:MOST_WORDS], 1)  # tokens, where nothing counts them
SHARED = "all of them are to share: leave out --shared-prefix-tokens"
GENERATED = {Verdict.COMPLETE, Verdict.STOPPED_EARLY, Verdict.EMPTY}


class Uncounted(Exception):
    """The reply came, and says nothing of the prompt's length."""


def by_reply(endpoint: Endpoint, connection: Connection, timeouts: Timeouts) -> Callable[[Prompt], int]:
    """Raises, when called: Uncounted; EndpointError where the endpoint refuses a request as it will be measured."""

    def count(prompt: Prompt) -> int:
        order = Order(str(uuid.uuid4()), Cell(None, None, 1, 0, 1), "warmup", prompt, 0)
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

    Where a tokenizer merges words the sum is off; the caller checks a prompt of each length. Raises: Uncounted.
    """
    once, twice = count(probe_text(words)), count(probe_text([*words, *words]))
    if once == twice:
        raise Uncounted  # whatever it counts, it isn't the prompt
    around = 2 * once - twice

    def split(part: Sequence[str], tokens: int) -> Iterator[tuple[str, int]]:
        if tokens == len(part) or len(part) == 1:  # a word has one token at least
            yield from ((word, tokens // len(part)) for word in part)
            return
        half = part[: len(part) // 2]
        in_half = count(probe_text(half)) - around
        yield from split(half, in_half)
        yield from split(part[len(half) :], tokens - in_half)

    return {word: tokens for word, tokens in split(words, once - around) if tokens > 0}, around


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Prompts of exact lengths for an endpoint, counted by its own route, its replies or a tokenizer."""

    endpoint: Endpoint
    connection: Connection  # of requests that aren't timed
    tokenizer: Path | None
    seed: str
    timeouts: Timeouts
    shared: Shared | None = None

    def prompts(self, lengths: Sequence[int]) -> tuple[Prompts | TokenIds, list[str]]:
        """Prompts, and what is to be said of their lengths: a clause each, none where they are exact.

        Raises: EndpointError, TransportError, PromptError.
        """
        if not lengths:
            return self._made_of(ONE_EACH, 0), []
        pieces = self.endpoint.tokenize(self.connection, probe_text())
        count: Count
        if pieces is not None:
            found, count = word_lengths(pieces), self._by_route
        else:
            try:
                count = by_reply(self.endpoint, self.connection, self.timeouts)
                found = lengths_by_counts(count, WORDS[:MOST_WORDS])
            except Uncounted:
                return self._as_ids(lengths, False) or self._uncounted()
        prompts = self._made_of(*found)
        said = [each for length in lengths if (each := self._wrong(prompts, count, length))]
        if said and (as_ids := self._as_ids(lengths, pieces is None)) is not None:
            return as_ids
        return prompts, [*said, *self._cross_checked(prompts, count, lengths[0])]

    def _cross_checked(self, prompts: Prompts, count: Count, length: int) -> Iterator[str]:
        """What the user's tokenizer says of a prompt that the server counts too."""
        if self.tokenizer is None:
            return
        prompt = prompts.draw(length)
        here, there = len(by_tokenizer(self.tokenizer)(prompt)), count(prompt)
        if here != there:
            yield (
                f"{self.tokenizer} makes {here} tokens of a prompt that the endpoint counts as {there}: a template or "
                "special tokens around it, or another tokenizer"
            )

    def _made_of(self, lengths: Mapping[str, int], around: int) -> Prompts:
        return Prompts(lengths, around, self.seed, self.shared)

    def _by_route(self, text: str) -> int:
        return len(self.endpoint.tokenize(self.connection, text) or ())

    def _wrong(self, prompts: Prompts, count: Count, length: int) -> str | None:
        counted = count(prompts.draw(length))
        if self.endpoint.truncates and self.shared is None:
            # What is too long is cut to the length, at its begin; what is too short gets more words.
            while counted < length:
                before = counted
                prompts.lengthen(length - counted)
                counted = count(prompts.draw(length))
                if counted <= before:
                    raise PromptError(
                        f"a prompt of {length} tokens was asked for, and the server counts {counted} however long it "
                        "is: it cuts prompts itself; ask for fewer tokens"
                    )
            return None
        if counted == length:
            return None
        said = f"a prompt made of {length} tokens has {counted} by the server's count: its tokenizer merges words"
        if self.endpoint.truncates:
            raise PromptError(f"{said}, and would be cut at its begin, which {SHARED}")
        return said

    def _as_ids(self, lengths: Sequence[int], counted: bool) -> tuple[TokenIds, list[str]] | None:
        """Prompts in the token ids of the user's tokenizer, where there is one and the endpoint takes them; counted by
        its replies, where they say so.
        """
        if self.tokenizer is None or not self.endpoint.takes_token_ids:
            return None
        made = TokenIds(ids_of(self.tokenizer, probe_text()), self.seed, self.shared)
        count = by_reply(self.endpoint, self.connection, self.timeouts)
        try:
            if any(count(made.draw(length)) != length for length in lengths) and counted:
                return None
        except Uncounted:
            pass
        except EndpointError:  # it takes texts only
            return None
        return made, [f"prompts are token ids of {self.tokenizer}"]

    def _uncounted(self) -> tuple[Prompts, list[str]]:
        if self.shared is not None and self.endpoint.truncates:
            raise PromptError(f"the endpoint counts no prompts, and cuts longer ones at their begin, which {SHARED}")
        if self.tokenizer is not None:
            tokenize = by_tokenizer(self.tokenizer)
            said = f"the endpoint counts no prompts; {self.tokenizer} does, which knows nothing of a chat's template"
            return self._made_of(*word_lengths(tokenize(probe_text()))), [said]
        if self.endpoint.truncates:
            return self._made_of(ONE_EACH, 0), []
        said = "the endpoint counts no prompts: a word is taken for a token; --tokenizer would count"
        return self._made_of(ONE_EACH, 0), [said]


def ids_of(path: Path, text: str) -> set[int]:
    """The ids of a text's tokens, without special ones. Raises: EndpointError where the tokenizer can't be read."""
    return set(_tokenizer(path).encode(text, add_special_tokens=False).ids)


def by_tokenizer(path: Path) -> Callable[[str], list[Piece]]:
    """A tokenizer.json's tokens of a text, special ones included. Raises: EndpointError where it can't be read."""
    tokenizer = _tokenizer(path)
    return lambda text: [Piece(start, stop) for start, stop in tokenizer.encode(text).offsets]


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EndpointError(f"{path} is no tokenizer that can be read ({error}): name a tokenizer.json") from error
