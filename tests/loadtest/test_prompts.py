"""Prompts have exactly N tokens by the server's count, come from a seed, and are never the same twice.

Oracle: a tokenizer that cuts words into known pieces, independent of the word lengths that the prompts are built from.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.prompts import WORDS, PromptError, Prompts, probe_text, word_lengths


@dataclass
class Piece:
    start: int
    stop: int


def tokenize(text: str, longest: int = 4, around: int = 2) -> list[Piece]:
    """A space goes with its word; words are cut every `longest` characters; `around` tokens cover nothing."""
    pieces = [Piece(0, 0)] * around
    begin = 0
    while begin < len(text):
        end = text.find(" ", begin + 1)
        end = len(text) if end < 0 else end
        pieces += [Piece(i, min(i + longest, end)) for i in range(begin, end, longest)]
        begin = end
    return pieces


@pytest.mark.parametrize("longest", [3, 4, 5, 50])
@pytest.mark.parametrize("tokens", [3, 4, 17, 256, 768])
def test_a_prompt_has_exactly_as_many_tokens_as_asked(longest: int, tokens: int):
    lengths, around = word_lengths(tokenize(probe_text(), longest))
    assert around == 2
    assert lengths == {word: -(-(len(word) + 1) // longest) for word in WORDS}
    prompts = Prompts(lengths, around, seed=3)
    for _ in range(20):
        assert len(tokenize(prompts.draw(tokens), longest)) == tokens


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others():
    lengths, around = word_lengths(tokenize(probe_text()))
    one, two, other = (Prompts(lengths, around, seed) for seed in (1, 1, 2))
    drawn = [[prompts.draw(50) for _ in range(5)] for prompts in (one, two, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_no_prompt_is_drawn_twice_and_an_exhausted_length_is_an_error():
    prompts = Prompts({"a": 1, "b": 1}, around=0, seed=1)
    drawn = {prompts.draw(3) for _ in range(8)}
    assert len(drawn) == 8, "there are exactly 2 ** 3"
    with pytest.raises(PromptError, match="all prompts of 3 tokens have been used"):
        prompts.draw(3)


def test_words_whose_tokens_reach_over_a_neighbour_are_left_out():
    words = ("one", "two", "three")
    # " one" | " two th" | "ree": the second token runs into the third word
    lengths, around = word_lengths([Piece(0, 4), Piece(4, 11), Piece(11, 14)], words)
    assert (lengths, around) == ({"one": 1}, 0)


def test_bytes_that_share_a_character_are_counted_each():
    words = ("éa",)
    lengths, _ = word_lengths([Piece(0, 1), Piece(1, 2), Piece(1, 2), Piece(2, 3)], words)
    assert lengths == {"éa": 4}


def test_a_length_below_what_the_server_adds_itself_is_an_error_that_names_it():
    prompts = Prompts({"a": 1}, around=2, seed=1)
    with pytest.raises(PromptError, match=r"the server adds 2 by itself; ask for at least 3"):
        prompts.draw(2)


def test_a_tokenizer_that_splits_every_word_is_an_error():
    with pytest.raises(PromptError, match="splits every known word"):
        Prompts({"word": 2}, around=0, seed=1)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=6), unique=True, min_size=1
    )
)
def test_lengths_of_any_words_add_up_to_the_tokens_of_the_probe(words: list[str]):
    tokens = tokenize(probe_text(words), around=1)
    lengths, around = word_lengths(tokens, words)
    assert around + sum(lengths.values()) == len(tokens)
