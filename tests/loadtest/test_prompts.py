"""Prompts have exactly N tokens by the server's count, come from a seed, and are never the same twice.

Oracle: a tokenizer that cuts words into known pieces, independent of the word lengths that the prompts are built from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.counting import PromptMaker
from loadtest.prompts import WORDS, PromptError, Prompts, Shared, probe_text, word_lengths
from loadtest.transport.base import Timeouts


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


@pytest.mark.parametrize("words", [1, 2, 63, 64, 65])
def test_a_seed_draws_what_pythons_choice_draws_so_prompts_stay_the_same_from_release_to_release(words: int):
    prompts, draw = Prompts(dict.fromkeys(WORDS[:words], 1), around=0, seed=1), random.Random(1)
    expected = ["".join(f" {draw.choice(sorted(WORDS[:words]))}" for _ in range(50)) for _ in range(3)]
    assert [prompts._row(50, prompts._random) for _ in expected] == expected


def test_no_prompt_is_drawn_twice_and_an_exhausted_length_is_an_error():
    prompts = Prompts({"a": 1, "b": 1}, around=0, seed=1)
    drawn = {prompts.draw(3) for _ in range(8)}
    assert len(drawn) == 8, "there are exactly 2 ** 3"
    with pytest.raises(PromptError, match="all prompts of 3 tokens have been used"):
        prompts.draw(3)


def test_long_prompts_are_not_remembered_and_short_ones_are():
    prompts = Prompts(dict.fromkeys(WORDS[:64], 1), around=0, seed=1)  # 6 bits a word
    for _ in range(100):
        prompts.draw(16)
    assert not prompts._made
    prompts.draw(15)
    assert len(prompts._made) == 1


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


# --- a shared prefix --------------------------------------------------------------------------------------------------


def sharing(longest: int, tokens: int, seed: int = 3, shared_seed: int = 7) -> Prompts:
    return Prompts(*word_lengths(tokenize(probe_text(), longest)), seed, Shared(tokens, shared_seed))


def without_specials(text: str, longest: int) -> list[str]:
    return [text[piece.start : piece.stop] for piece in tokenize(text, longest, around=0)]


@pytest.mark.parametrize("longest", [3, 4, 5, 50])
@pytest.mark.parametrize(("shared", "whole"), [(1, 8), (17, 40), (200, 256), (700, 768)])
def test_prompts_share_exactly_as_many_tokens_as_asked_and_stay_exact(longest: int, shared: int, whole: int):
    prompts = sharing(longest, shared)
    drawn = [prompts.draw(whole) for _ in range(30)]
    assert {len(tokenize(text, longest)) for text in drawn} == {whole}
    tokens = [without_specials(text, longest) for text in drawn]
    assert len({tuple(each[:shared]) for each in tokens}) == 1
    assert len({tuple(each[shared:]) for each in tokens}) == 30, "the rest is never twice the same"
    assert len({tuple(each[: shared + 1]) for each in tokens}) > 1, "no more is shared than was asked for"


def test_what_is_shared_hangs_on_its_own_seed_so_that_processes_can_have_it_in_common():
    one, other, elsewhere = (sharing(4, 20, *seeds) for seeds in ((1, 7), (2, 7), (1, 8)))
    assert one.shared_text == other.shared_text != elsewhere.shared_text
    assert one.draw(40) != other.draw(40)
    assert Prompts({"a": 1}, 0, 1).shared_text == ""


def test_a_rest_that_could_not_differ_is_an_error_that_names_the_most_that_can_be_shared():
    assert len(tokenize(sharing(4, 37).draw(40))) == 40
    for tokens in (38, 39, 100):
        sentence = rf"prompts of 40 tokens, 2 of them the server's own, can't share {tokens} and differ: .* at most 37"
        with pytest.raises(PromptError, match=sentence):
            sharing(4, tokens).draw(40)


def test_a_rest_that_is_used_up_says_how_it_could_last_longer():
    prompts = Prompts({"a": 1, "b": 1}, around=0, seed=1, shared=Shared(5, 1))
    assert len({prompts.draw(7) for _ in range(4)}) == 4, "2 ** 2 rests"
    with pytest.raises(PromptError, match="ask for longer ones or share fewer"):
        prompts.draw(7)


@dataclass
class Counts:
    """An endpoint whose /tokenize counts; with `merging`, every text comes out so many tokens shorter."""

    truncates: bool
    merging: int = 0

    def tokenize(self, _: object, text: str) -> list[Piece]:
        pieces = tokenize(text)
        return pieces if text == probe_text() else pieces[: len(pieces) - self.merging]


def maker(endpoint: Counts, shared: Shared | None) -> PromptMaker:
    return PromptMaker(endpoint, None, None, "seed", Timeouts(), shared)  # type: ignore[arg-type]


def test_what_is_shared_is_not_cut_off_by_an_endpoint_that_keeps_the_last_tokens():
    shared = Shared(10, 1)
    prompts, said = maker(Counts(truncates=True), shared).prompts([20])
    assert (prompts.shared_tokens, said) == (10, [])
    with pytest.raises(PromptError, match=r"has 19 by the server's count.* cut at its begin.* --shared-prefix-tokens"):
        maker(Counts(truncates=True, merging=1), shared).prompts([20])
    assert maker(Counts(truncates=True, merging=1), None).prompts([20])[1] == [], "longer, and cut: exact"
    (said_by_other,) = maker(Counts(truncates=False, merging=1), shared).prompts([20])[1]
    assert "a prompt made of 20 tokens has 19 by the server's count" in said_by_other


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=6), unique=True, min_size=1
    )
)
def test_lengths_of_any_words_add_up_to_the_tokens_of_the_probe(words: list[str]):
    tokens = tokenize(probe_text(words), around=1)
    lengths, around = word_lengths(tokens, words)
    assert around + sum(lengths.values()) == len(tokens)
