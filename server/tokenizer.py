"""The text side of a model folder: tokens in, text out, and which ids end a text.

Loaded by transformers (tokenizer files, chat template, generation config), worked by the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import ModelError

LONGEST_REASON = 300


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
        self.fast.no_truncation()  # a tokenizer.json may bring both; a prompt must be neither cut nor filled up
        self.fast.no_padding()
        self.eos_token_ids = frozenset(eos_token_ids)
        self.special_ids = frozenset(tokenizer.all_special_ids)

    @classmethod
    def load(cls, model: str) -> Tokenizer:
        """Raises: ModelError where the folder has no tokenizer, or one without the fast implementation."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the tokenizers binding raises Exception itself
            raise ModelError(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from error
        if not tokenizer.is_fast:
            raise ModelError(f"{model} has only a slow tokenizer; save it with a tokenizer.json beside the weights")
        return cls(tokenizer, end_tokens(generation_config(model), tokenizer.eos_token_id))

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens the model wants around a text (BOS, usually)."""
        return list(self._encoding(text).ids)

    def pieces(self, text: str) -> list[Piece]:
        """The same tokens with the characters each one covers."""
        encoding = self._encoding(text)
        return [
            Piece(token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def _encoding(self, text: str) -> Any:
        return self.fast.encode_batch([text])[0]  # `encode` would hold the interpreter's lock for as long as it takes

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.fast.decode(list(token_ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """A token by its own name, as special tokens are shown."""
        return self.fast.id_to_token(token_id) or ""


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


def first_line(error: Exception) -> str:
    """A library's error in one line; some list every model they know."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"
