"""A model's two passes over KV rows, as functions of tensors alone, so that they can be recorded.

`rows` are the keys of all layers, then the values of all layers: views of `KVRows`, which a pass writes into.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from server.backends.kv_rows import PromptCache, StepCache


class Pass(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._takes = inspect.signature(model.forward).parameters

    def _known(self, **keywords: Any) -> dict[str, Any]:
        """Those that the model's forward takes: they come and go with transformers' versions, and with models."""
        return {name: value for name, value in keywords.items() if name in self._takes}


class PromptPass(Pass):
    """One prompt, whole."""

    def __init__(self, model: Any, logits_to_keep: int = 1) -> None:
        """The logits of so many last tokens are kept; 0: of all. As transformers has it."""
        super().__init__(model)
        self._logits_to_keep = logits_to_keep

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        """int64[n], int64[n] (0 to n - 1), float[1, kv_heads, n, head_dim] each -> float[kept, V]"""
        layers = len(rows) // 2
        output = self.model(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            past_key_values=PromptCache(rows[:layers], rows[layers:]),
            use_cache=True,
            **self._known(cache_position=positions, logits_to_keep=self._logits_to_keep),
        )
        return output.logits[0, -self._logits_to_keep :]


class DecodePass(Pass):
    """A step of several texts, each of which appends one token."""

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
        output = self.model(
            input_ids=token_ids,
            position_ids=positions.unsqueeze(1),
            attention_mask=mask,
            past_key_values=StepCache(positions, rows[:layers], rows[layers:]),
            use_cache=True,
            **self._known(cache_position=last),
        )
        return output.logits[:, -1]
