"""The text of all events equals the decoded whole, wherever tokens cut characters.

Oracle: `tokenizer.decode` of all ids at once. Ids are those of real text in several scripts, and any ids at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.detokenizer import Detokenizer
from server.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def splitting(splitting_folder: Path) -> Tokenizer:
    return Tokenizer.load(str(splitting_folder))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "東京は夜の七時", "🙂👩‍👩‍👧 done", "\u0301 combining", "a\u200db"]
)
def test_a_character_is_given_out_whole_with_the_token_that_completes_it(splitting: Tokenizer, text: str):
    ids = splitting.encode(text)
    assert len(ids) == len(text.encode()), "every byte is a token here"
    given_out = pieces(splitting, ids)
    assert "".join(given_out) == text
    assert not any("\ufffd" in piece for piece in given_out)
    assert given_out[-1] == ""


def test_a_text_that_ends_inside_a_character_gives_up_its_tail_at_the_end(splitting: Tokenizer):
    ids = splitting.encode("日本")[:-1]
    given_out = pieces(splitting, ids)
    assert given_out[:3] == ["", "", "日"]
    assert given_out[-1] == "\ufffd"
    assert "".join(given_out) == splitting.decode(ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 258), max_size=60))
def test_the_text_of_all_events_equals_the_decoded_whole_for_any_ids(splitting: Tokenizer, ids: list[int]):
    assert "".join(pieces(splitting, ids)) == splitting.decode(ids)


def test_special_tokens_are_no_text(splitting: Tokenizer):
    ids = [0, *splitting.encode("hé"), 1]
    assert pieces(splitting, ids) == ["", "h", "", "é", "", ""]


@pytest.fixture(scope="module")
def falling_back() -> Tokenizer:
    """Llama 2's kind of decoder: ▁ for spaces, bytes as tokens of their own, the first space stripped."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁": 3, "a": 4, "é": 5}
    vocabulary |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    bpe = Bpe(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", eos_token="</s>"), [1])


@given(st.lists(st.integers(0, 261), max_size=40))
def test_a_decoder_that_rewrites_its_past_never_breaks_the_stream(falling_back: Tokenizer, ids: list[int]):
    # What is out can't be taken back, so the text may differ from the whole; it must neither raise nor fall short.
    assert len("".join(pieces(falling_back, ids))) >= len(falling_back.decode(ids))


@pytest.mark.parametrize("text", ["the café", "the 時計 a", "🙂"])
def test_with_byte_fallback_valid_text_still_comes_out_whole(falling_back: Tokenizer, text: str):
    ids: list[int] = []
    for character in text.replace("the", "\0"):
        known = {"\0": 2, " ": 3, "a": 4, "é": 5}.get(character)
        ids += [known] if known is not None else [6 + byte for byte in character.encode()]
    assert "".join(pieces(falling_back, ids)) == falling_back.decode(ids) == text


def test_a_tokenizers_own_truncation_and_padding_are_not_applied(splitting_folder: Path):
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(splitting_folder)
    fast.backend_tokenizer.enable_truncation(8)
    fast.backend_tokenizer.enable_padding(length=12)
    tokenizer = Tokenizer(fast, [1])
    assert len(tokenizer.encode("a" * 25)) == 25
    assert len(tokenizer.encode("a")) == 1
