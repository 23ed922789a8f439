"""A token's bytes are what it stands for: tokens of a text, put together, spell the text.

Method: tokenizers of both kinds that Llamas have, byte-level BPE and SentencePiece with byte fallback, made here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from server.errors import TemplateError
from server.tokenizer import Tokenizer

TEXTS = ["The clock", "時計 é", "a  b\n", "🕰️", "0xE6"]


@pytest.fixture(params=["demo", "splitting", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "sentencepiece":
        vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
        vocabulary |= {piece: 259 + i for i, piece in enumerate(["▁", "▁T", "h", "e", "▁c", "l", "o", "c", "k", "▁a"])}
        bpe = Fast(models.BPE(vocab=vocabulary, merges=[("▁", "c")], byte_fallback=True, unk_token="<unk>"))
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>"), [2])
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return Tokenizer.load(str(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_spell_the_text(tokenizer: Tokenizer, text: str):
    ids = [token_id for token_id in tokenizer.encode(text) if token_id not in tokenizer.special_ids]
    assert b"".join(map(tokenizer.utf8, ids)).decode().removeprefix(" ") == text
    assert len(ids) > 1


def test_a_part_of_a_character_is_shown_as_such_and_a_special_token_by_its_name(tokenizer: Tokenizer):
    ids = tokenizer.encode("é", templated=True)[-2:]
    assert [tokenizer.text(token_id) for token_id in ids] == ["\ufffd", "\ufffd"]
    assert tokenizer.text(min(tokenizer.eos_token_ids)) == "</s>"


def test_a_template_that_raises_is_one_sentence(demo_folder: Path):
    tokenizer = Tokenizer.load(str(demo_folder))
    tokenizer._whole.chat_template = "{{ raise_exception('Roles must\\nalternate') }}"
    with pytest.raises(TemplateError, match=r"the chat template refuses the messages: Roles must$"):
        tokenizer.chat([{"role": "user", "content": "a"}])
