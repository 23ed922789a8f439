"""Text as it becomes readable: a character is given out with the token that completes it.

The text of all pushes and the final flush, put together, is the decoded whole. While the end of the text is an
incomplete character the stream holds it back; a text that ends inside a character gives up its tail in `flush`.
"""

from __future__ import annotations

from tokenizers.decoders import DecodeStream

from server.tokenizer import Tokenizer


class Detokenizer:
    """One per request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self.text = ""  # everything given out so far

    def push(self, token_id: int) -> str:
        """The text that became readable with this token; "" while a character is incomplete."""
        self._token_ids.append(token_id)
        return self._give(self._stream.step(self._tokenizer.fast, token_id) or "")

    def flush(self) -> str:
        """What is still held back, incomplete characters as U+FFFD."""
        return self._give(self._tokenizer.decode(self._token_ids)[len(self.text) :])

    def _give(self, text: str) -> str:
        self.text += text
        return text
