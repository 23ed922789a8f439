"""A model's two passes over KV rows, as functions of tensors alone, so that they can be recorded.

`rows` are the keys of all layers, then the values of all layers: views of `KVRows`, which a pass writes into.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from server.backends.kv_rows import PromptCache, StepCache


class PromptPass(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """One prompt, whole."""

    def __init__(self, model: Any, all_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self._all_logits = all_logits
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes and not all_logits else {}
        self._takes_cache_position = "cache_position" in takes

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        """int64[n], int64[n] (0 to n - 1), float[1, kv_heads, n, head_dim] each -> float[1, V]: the last token's
        logits. With `all_logits` float[n, V].
        """
        layers = len(rows) // 2
        # 4.x wants the position in the cache beside the position in the text; later versions dropped it.
        more = {"cache_position": positions} if self._takes_cache_position else {}
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            past_key_values=PromptCache(rows[:layers], rows[layers:]),
            use_cache=True,
            **self._last_only,
            **more,
        )
        return output.logits[0] if self._all_logits else output.logits[:, -1]


class DecodePass(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A step of several texts, each of which appends one token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._takes_cache_position = "cache_position" in inspect.signature(model.forward).parameters

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        last: torch.Tensor,
        *rows: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over n rows, each of which writes its key at its own position. Returns float[n, V].

        int64[n, 1], int64[n], float[n, 1, 1, window], int64[1]: the window's last position; then
        float[n, kv_heads, window, head_dim] each.
        """
        layers = len(rows) // 2
        more = {"cache_position": last} if self._takes_cache_position else {}
        output = self.model(
            input_ids=token_ids,
            position_ids=positions.unsqueeze(1),
            attention_mask=mask,
            past_key_values=StepCache(positions, rows[:layers], rows[layers:]),
            use_cache=True,
            **more,
        )
        return output.logits[:, -1]
