"""Prompts of exactly N tokens as the server counts them, seeded, never twice the same.

Never twice, because a server that keeps prefixes would answer a repeated prompt from memory; how they begin can be
shared on purpose. The server is asked once
how many tokens each word of a list has, preceded by a space; a prompt is then a random row of words whose tokens add
up. That sum is exact for tokenizers that never merge across a space (byte-level BPE, SentencePiece with split words),
and the caller checks it on a prompt of every length before anything is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.plan import Cell

#: Common English words: short, and mostly one token each in any vocabulary.
WORDS = tuple(
    """the of and to in is you that it he was for on are as with his they at be this have from or one had by word
    but not what all were we when your can said there use an each which she do how their if will up other about
    out many then them these so some her would make like him into time has look two more write go see number no
    way could people my than first water been call who its now find long down day did get come made may part
    over new sound take only little work know place year live me back give most very after thing our just name
    good man think say great where help through much before line right too mean old any same tell boy follow
    came want show also around form three small set put end does another well large must big even such because
    turn here why ask went men read need land different home us move try kind hand picture again change off play
    spell air away animal house point page letter mother answer found study still learn should world high every
    near add food between own below country plant last school father keep tree never start city earth eye light
    thought head under story saw left late run while press close night real life few north open seem together
    next white children begin got walk example ease paper group always music those both mark often book clock
    town table worker window sea boat river star minute second machine reader report question""".split()
)

#: Of lengths with 2 ** 96 prompts and more none is remembered, and memory does not grow: two of 10 ** 12 draws are one
#: with a probability of 10 ** -5.
ENOUGH_BITS = 96
MOST_TRIES = 100  # for a prompt that was not made before


class PromptError(ValueError):
    """No prompt of that length can be made; the message says why."""


class Offsets(Protocol):
    """Where a token begins and ends in its text; `WORDS` are ASCII, so bytes and characters are the same."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


def probe_text(words: Sequence[str] = WORDS) -> str:
    """The text whose tokens tell how many each word has: send it to the server's /tokenize."""
    return "".join(f" {word}" for word in words)


def word_lengths(tokens: Sequence[Offsets], words: Sequence[str] = WORDS) -> tuple[dict[str, int], int]:
    """(tokens of each word with its space, tokens that stand around every text) from the tokens of `probe_text`.

    A token belongs to the word it ends in. Words whose tokens reach over a neighbour are left out.
    """
    around = sum(1 for token in tokens if token.stop <= token.start)
    inside = sorted((token.start, token.stop) for token in tokens if token.stop > token.start)
    lengths: dict[str, int] = {}
    end, i = 0, 0
    for word in words:
        begin, end = end, end + 1 + len(word)
        clean, count = True, 0
        while i < len(inside) and inside[i][1] <= end:
            clean = clean and inside[i][0] >= begin
            count, i = count + 1, i + 1
        if i < len(inside) and inside[i][0] < end:  # a token that begins here and ends in the next word
            clean = False
        if clean and count:
            lengths[word] = count
    return lengths, around


@dataclass(frozen=True, slots=True)
class Shared:
    """What every prompt begins with: as many tokens of words, drawn from a seed that processes may have in common. What
    the server puts before a text (a BOS token, a chat's template) is the same in any case, and not counted here.
    """

    tokens: int
    seed: int | str


class Prompts:
    """Draws prompts. One per process and configuration, each with a seed of its own, so that none repeats another."""

    def __init__(self, lengths: Mapping[str, int], around: int, seed: int | str, shared: Shared | None = None) -> None:
        """Raises: PromptError where no word is a single token: then not every length can be reached."""
        self._lengths = dict(lengths)
        self._around = around
        self._words = sorted(lengths)
        self._single = [word for word in self._words if lengths[word] == 1]
        self._widest = max(lengths.values(), default=0)
        self._random = random.Random(seed)  # noqa: S311 - a load, not a secret
        self._made: set[str] = set()  # of lengths that have few prompts
        if not self._single:
            raise PromptError(
                "the server's tokenizer splits every known word: no prompt of an exact length can be made"
            )
        self.shared_tokens = shared.tokens if shared else 0
        self.shared_text = self._row(shared.tokens, random.Random(f"{shared.seed}-shared")) if shared else ""  # noqa: S311

    def lengthen(self, tokens: int) -> None:
        """From here on a prompt has so many tokens more than it is asked for: its endpoint cuts it to its length."""
        self._around -= tokens

    def draw(self, input_tokens: int) -> str:
        """A prompt of exactly `input_tokens` tokens, the special ones around it included.

        Raises: PromptError where that is fewer than the server adds by itself, or all such prompts have been used.
        """
        if input_tokens <= self._around:
            raise PromptError(
                f"a prompt of {input_tokens} tokens can't be made: the server adds {self._around} by itself; "
                f"ask for at least {self._around + 1}"
            )
        own_tokens = input_tokens - self._around - self.shared_tokens
        if own_tokens <= 0:
            raise PromptError(
                f"prompts of {input_tokens} tokens, {max(self._around, 0)} of them the server's own, can't share "
                f"{self.shared_tokens} and differ: share at most {self.shared_tokens + own_tokens - 1}"
            )
        for _ in range(MOST_TRIES):
            prompt = self.shared_text + self._row(own_tokens, self._random)
            if own_tokens * math.log2(len(self._single)) >= ENOUGH_BITS:
                return prompt
            if prompt not in self._made:
                self._made.add(prompt)
                return prompt
        fewer = " or share fewer" if self.shared_tokens else ""
        raise PromptError(f"all prompts of {input_tokens} tokens have been used: ask for longer ones{fewer}")

    def drawn_for(self, cell: Cell) -> tuple[str, None]:
        """A prompt of the cell's length; what its request asks for, the cell says."""
        assert cell.input_tokens is not None, "a cell without a length is a dataset's"
        return self.draw(cell.input_tokens), None

    def _row(self, tokens: int, draw: random.Random) -> str:
        """Words as `random.choice` draws them, at a third of its cost: streams wait meanwhile."""
        words = [""]
        while tokens > 0:
            among = self._words if tokens >= self._widest else self._single
            index = draw.getrandbits(len(among).bit_length())
            if index < len(among):
                words.append(among[index])
                tokens -= self._lengths[among[index]]
        return " ".join(words)


class TokenIds:
    """The same as token ids, which no tokenizer can merge: for endpoints that take them."""

    def __init__(self, ids: Iterable[int], seed: int | str, shared: Shared | None = None) -> None:
        self._rows = Prompts({str(each): 1 for each in ids}, 0, seed, shared)

    def draw(self, input_tokens: int) -> list[int]:
        """Raises: PromptError as `Prompts.draw`."""
        return [int(each) for each in self._rows.draw(input_tokens).split()]

    def drawn_for(self, cell: Cell) -> tuple[list[int], None]:
        assert cell.input_tokens is not None, "a cell without a length is a dataset's"
        return self.draw(cell.input_tokens), None
