"""The text side of a model folder: tokens in, text out, and which ids end a text.

Loaded by transformers (tokenizer files, chat template, generation config), worked by the `tokenizers` library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from server.errors import ModelError, TemplateError
from server.logs import include_transformers

LONGEST_REASON = 300
#: GPT-2's spelling of bytes: printable ones stand for themselves, the others follow from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}
SPACE = "\u2581"  # SentencePiece's
BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of an input text; `start` and `stop` count the text's UTF-8 bytes, as TGI does."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is a transformers fast tokenizer."""
        self._whole = tokenizer
        self.fast = tokenizer.backend_tokenizer
        self.fast.no_truncation()  # a tokenizer.json may bring both; a prompt must be neither cut nor filled up
        self.fast.no_padding()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._spells_bytes = "ByteLevel" in str(self.fast.decoder)
        self._utf8: dict[int, bytes] = {}  # of the ids that have been asked for

    @classmethod
    def load(cls, model: str) -> Tokenizer:
        """Raises: ModelError where the folder has no tokenizer, or one without the fast implementation."""
        from transformers import AutoTokenizer

        include_transformers()
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the tokenizers binding raises Exception itself
            raise ModelError(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from error
        if not tokenizer.is_fast:
            raise ModelError(f"{model} has only a slow tokenizer; save it with a tokenizer.json beside the weights")
        return cls(tokenizer, end_tokens(generation_config(model), tokenizer.eos_token_id))

    def encode(self, text: str, templated: bool = False) -> list[int]:
        """Token ids, with the special tokens that the model wants around a text (BOS, usually) unless it is
        `templated`: a chat template writes them itself.
        """
        return list(self._encoding(text, templated).ids)

    def pieces(self, text: str, templated: bool = False) -> Iterator[Piece]:
        """The same tokens with the part of the text each one covers, whole characters always."""
        encoding = self._encoding(text, templated)
        at: Sequence[int] = range(len(text) + 1)  # bytes before a character
        if not text.isascii():
            at = list(accumulate((len(character.encode()) for character in text), initial=0))
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            yield Piece(token_id, text[start:stop], at[start], at[stop])

    def _encoding(self, text: str, templated: bool) -> Any:
        # `encode` would hold the interpreter's lock for as long as it takes
        return self.fast.encode_batch([text], add_special_tokens=not templated)[0]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation as the model's chat template writes it. An assistant's message at its end is carried on.

        Raises: TemplateError where the model has no template, or its template refuses the messages.
        """
        if not self._whole.chat_template:
            raise TemplateError("the model has no chat template: send a prompt to /v1/completions or /generate instead")
        goes_on = messages[-1]["role"] == "assistant"
        try:
            return str(
                self._whole.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=not goes_on,
                    continue_final_message=goes_on,
                )
            )
        except Exception as error:  # a template may raise what it likes
            raise TemplateError(f"the chat template refuses the messages: {first_line(error)}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.fast.decode(list(token_ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """A token by its own name, as special tokens are shown."""
        return self.fast.id_to_token(token_id) or ""

    def text(self, token_id: int) -> str:
        """A token read on its own; U+FFFD where it is only a part of a character."""
        return self.utf8(token_id).decode("utf-8", "replace")

    def utf8(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which may be a part of a character. A special one stands for its name."""
        known = self._utf8.get(token_id)
        if known is None:
            known = self._utf8[token_id] = self._spelled(token_id)
        return known

    def _spelled(self, token_id: int) -> bytes:
        name = self.token(token_id)
        if token_id in self.special_ids:
            return name.encode()
        if fallback := BYTE_FALLBACK.fullmatch(name):
            return bytes([int(fallback[1], 16)])
        if self._spells_bytes and all(character in BYTE_OF for character in name):
            return bytes(BYTE_OF[character] for character in name)
        if SPACE in name:  # a decoder would take it from the beginning of a text
            return name.replace(SPACE, " ").encode()
        return self.decode([token_id]).encode()


def generation_config(model: str) -> Any:
    """The generation config of a model folder, or what transformers derives from config.json where there is none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))


def end_tokens(generation_config: Any, fallback: int | None = None) -> tuple[int, ...]:
    """The ids that end a text, from a generation config that holds none, one, or a list."""
    eos = generation_config.eos_token_id
    if eos is None:
        return () if fallback is None else (fallback,)
    return (eos,) if isinstance(eos, int) else tuple(eos)


def first_line(error: BaseException) -> str:
    """A library's error in one line; some list every model they know."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"
