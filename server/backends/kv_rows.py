"""Keys and values of every slot, and the caches through which a model's attention layers write into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache


class KVRows:
    """Per layer float[slots, kv_heads, length, head_dim], twice."""

    @torch.inference_mode()
    def __init__(self, model: Any, slots: int, length: int) -> None:
        """As many layers and as wide as a first token's cache in `model`."""
        first = DynamicCache()
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64), past_key_values=first, use_cache=True)

        def rows(part: torch.Tensor) -> torch.Tensor:
            return part.new_zeros((slots, part.shape[1], length, part.shape[3]))

        self.keys = [rows(layer.keys) for layer in first.layers]
        self.values = [rows(layer.values) for layer in first.layers]

    def part(self, slots: slice, window: int) -> list[torch.Tensor]:
        """Views of the first positions of some rows: the keys of all layers, then the values."""
        return [rows[slots, :, :window] for rows in (*self.keys, *self.values)]

    def clear(self, slot: int, length: int) -> None:
        """A text of so many positions is over. Masked or not, a NaN that it left would spread: 0 x NaN."""
        for rows in self.part(slice(slot, slot + 1), length):
            rows.zero_()


class PromptCache(Cache):  # type: ignore[misc]  # transformers is Any to mypy
    """The cache of a whole prompt, which fills views of one row."""

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self._keys, self._values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by every attention layer with float[1, kv_heads, n, head_dim]."""
        self._keys[layer_idx].copy_(key_states)
        self._values[layer_idx].copy_(value_states)
        return key_states, value_states


class StepCache(Cache):  # type: ignore[misc]  # transformers is Any to mypy
    """The cache of one step: every row appends one position, each at its own place."""

    def __init__(self, positions: torch.Tensor, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self._positions = positions
        self._rows = torch.arange(positions.shape[0])
        self._keys, self._values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by every attention layer with float[n, kv_heads, 1, head_dim]."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self._keys[0].shape[2] - 1

    def get_mask_sizes(self, *_args: Any, **_kwargs: Any) -> tuple[int, int]:
        return self._keys[0].shape[2], 0
