"""Text as it becomes readable: a character is given out with the token that completes it.

The text of all pushes and the final flush, put together, is the decoded whole. While the end of the text is an
incomplete character the stream holds it back; a text that ends inside a character gives up its tail in `flush`.

A decoder with byte fallback (Llama 2's) can rewrite text it has given out: a whole character followed by a stray byte
becomes four U+FFFD. What is out stays out then; from there on the text follows the whole by length.
"""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

from server.tokenizer import Tokenizer


class Detokenizer:
    """One per request."""

    __slots__ = ("_given", "_remembered", "_stream", "_token_ids", "_tokenizer", "recent")

    def __init__(self, tokenizer: Tokenizer, remembered: int = 0) -> None:
        """`recent` keeps so many characters from before the last push."""
        self._tokenizer = tokenizer
        self._remembered = remembered
        self._stream: Any = DecodeStream(skip_special_tokens=True)  # None once it has failed
        self._token_ids: list[int] = []
        self._given = 0  # characters given out so far
        self.recent = ""  # the last ones of them

    def push(self, token_id: int) -> str:
        """The text that became readable with this token; "" while a character is incomplete."""
        self._token_ids.append(token_id)
        if self._stream is not None:
            try:
                return self._give(self._stream.step(self._tokenizer.fast, token_id) or "")
            except Exception:  # what the binding raises for "invalid prefix": this decoder rewrites earlier text
                self._stream = None
        rest = self._rest()
        return self._give("" if rest.endswith("\ufffd") else rest)

    def flush(self) -> str:
        """What is still held back, incomplete characters as U+FFFD."""
        return self._give(self._rest())

    def _rest(self) -> str:
        return self._tokenizer.decode(self._token_ids)[self._given :]

    def _give(self, text: str) -> str:
        self._given += len(text)
        self.recent = self.recent[-self._remembered :] + text if self._remembered else text
        return text
