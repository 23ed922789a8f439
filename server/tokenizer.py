"""The text side of a model folder: tokens in, text out, and which ids end a text.

Loaded by transformers (tokenizer files, chat template, generation config), worked by the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ModelError


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of an input text; `start` and `stop` count characters of that text."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is a transformers fast tokenizer."""
        self.fast = tokenizer.backend_tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.special_ids = frozenset(tokenizer.all_special_ids)

    @classmethod
    def load(cls, model: str) -> Tokenizer:
        """Raises: ModelError where the folder has no tokenizer, or one without the fast implementation."""
        from transformers import AutoTokenizer, GenerationConfig

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{model} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
        if not tokenizer.is_fast:
            raise ModelError(f"{model} has only a slow tokenizer; save it with a tokenizer.json beside the weights")
        try:
            eos = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # no generation_config.json: the tokenizer's own end is all there is
            eos = tokenizer.eos_token_id
        return cls(tokenizer, () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos))

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens the model wants around a text (BOS, usually)."""
        return list(self.fast.encode(text).ids)

    def pieces(self, text: str) -> list[Piece]:
        """The same tokens with the characters each one covers."""
        encoding = self.fast.encode(text)
        return [
            Piece(token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.fast.decode(list(token_ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """A token by its own name, as special tokens are shown."""
        return self.fast.id_to_token(token_id) or ""
